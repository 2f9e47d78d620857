"""Which row won: the most accurate one, if it is ahead of every other by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..baselines import PLAIN
from ..robustness.outcomes import Outcomes
from ..robustness.profiles import Column
from .statistics import CONFIDENCE, column_groups, mean_accuracies, paired_difference


NUM_RESAMPLES = 10_000


def find_winners(
    columns: Sequence[Column], outcomes: Mapping[str, Sequence[Mapping[str, Outcomes]]], seed: int = 42
) -> dict[str, dict[str, Any]]:
    """
    For each group of columns the most accurate row, and which rows it is not told apart from.

    The best of many rows is ahead of some by chance. So its differences from the others have intervals that hold all
    together with 95 % (Bonferroni), and it won if every one of them lies above 0.

    Args:
        columns (`Sequence[Column]`): What was measured.
        outcomes (`Mapping[str, Sequence[Mapping[str, Outcomes]]]`): For each row and each seed the outcomes by column.
        seed (`int`, *optional*, defaults to 42): Seed of the bootstrap.

    Returns:
        `dict[str, dict]`: For each group `best`, `won`, `not_told_apart` (names), `confidence` of each difference,
        `next`, the row that the best is least ahead of, and `differences`, by row, of the best from it, with `difference`,
        `low` and `high`.
    """
    datasets = {column.name: column.dataset for column in columns}
    winners = {}
    for group, names in column_groups(columns).items():
        means = {row: sum(mean_accuracies(runs, names)) for row, runs in outcomes.items()}
        best = max(means, key=lambda row: means[row])
        others = sorted((row for row in means if row != best), key=lambda row: -means[row])
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
        differences = {}
        for row in others:
            found = paired_difference(
                outcomes[best], outcomes[row], names, datasets, confidence, NUM_RESAMPLES, seed=seed
            )
            differences[row] = {"difference": found.difference, "low": found.low, "high": found.high}
        tied = [row for row, found in differences.items() if found["low"] <= 0]
        winners[group] = {
            "best": best,
            "won": bool(others) and not tied,
            "not_told_apart": tied,
            "confidence": confidence,
            "next": others[0] if others else None,
            "differences": differences,
        }
    return winners


def winners_in_words(winners: Mapping[str, Mapping[str, Any]], num_seeds: int) -> str:
    """
    What [`find_winners`] found, as Markdown.

    Args:
        winners (`Mapping`): From [`find_winners`].
        num_seeds (`int`): Number of seeds.
    """
    lines = [f"- {group}: {winner_in_words(found)}" for group, found in winners.items()]
    notes = ["In brackets intervals that hold for all rows together with 95 %."]
    if num_seeds == 1:
        notes.append("With one seed they are over images alone, and say nothing of other seeds.")
    return "\n".join([*lines, "", " ".join(notes)])


def winner_in_words(found: Mapping[str, Any]) -> str:
    """A sentence on one group of [`find_winners`]."""
    best = found["best"]
    differences = found["differences"]
    if not differences:
        return f"There is only {best}."
    over_plain = f", {_difference(differences[PLAIN.name])} over {PLAIN.name}" if PLAIN.name in differences else ""
    if found["won"]:
        following = found["next"]
        closest = (
            "" if following == PLAIN.name else f"; next is {following}, {_difference(differences[following])} behind"
        )
        return f"{best} won{over_plain}{closest}."
    tied = found["not_told_apart"]
    named = ", ".join(tied[:3]) + (f" and {len(tied) - 3} more" if len(tied) > 3 else "")
    return f"None won: the highest is {best}{over_plain}, which is not told apart from {named}."


def _difference(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}] points"
