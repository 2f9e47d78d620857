"""The tables of a comparison, from the outcomes of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..baselines import NULLSPACE, PERMUTED, PLAIN
from ..robustness.outcomes import Outcomes
from ..robustness.profiles import Column
from ..robustness.report_markdown import table
from .plan import BASE
from .statistics import MEAN, PairedDifference, column_groups, mean_accuracies, paired_difference
from .verdict import winners_in_words


# Kinds of rows: a way of finetuning as it is, a variant of one, the average of a row's weights with those it started from,
# and a way for as many steps as plain finetuning.
WAY = "method"
VARIANT = "variant"
AVERAGE = "interpolated"
SAME_STEPS = "equal-steps"
Summary = dict[str, dict[str, Any]]


def summarize_rows(
    columns: Sequence[Column],
    outcomes: Mapping[str, Sequence[Mapping[str, Outcomes]]],
    references: Mapping[str, Sequence[str]],
    seed: int = 42,
) -> Summary:
    """
    Accuracies in per cent of all rows, and how far each is from others, in points.

    Args:
        columns (`Sequence[Column]`): What was measured.
        outcomes (`Mapping[str, Sequence[Mapping[str, Outcomes]]]`): For each row and each seed the outcomes by column.
        references (`Mapping[str, Sequence[str]]`): For each row the rows that it is compared with.
        seed (`int`, *optional*, defaults to 42): Seed of the bootstrap.

    Returns:
        `dict[str, dict]`: For each row `columns` and `groups`, each with `mean` and `per_seed`, and `minus`, with the
        [`PairedDifference`] of each group from each of its references.
    """
    groups = column_groups(columns)
    datasets = {column.name: column.dataset for column in columns}
    summary: Summary = {}
    for name, runs in outcomes.items():
        single = {column.name: _accuracy(runs, [column.name]) for column in columns}
        summary[name] = {
            "columns": single,
            "groups": {group: _accuracy(runs, names) for group, names in groups.items()},
        }
        summary[name]["minus"] = {
            other: {
                group: _as_json(paired_difference(runs, outcomes[other], names, datasets, seed=seed))
                for group, names in groups.items()
            }
            for other in references.get(name, ())
        }
    return summary


def norm_growth(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The norm of the noise of the last round by that of the second; `None` for fewer than three rounds."""
    return history[-1]["norm"] / history[1]["norm"] if len(history) > 2 else None


def accuracy_table(summary: Summary) -> str:
    """Mean accuracy over seeds of every row in every column, and over all columns."""
    lines = []
    for name, row in summary.items():
        cells = {column: f"{values['mean']:.2f}" for column, values in row["columns"].items()}
        lines.append({"row": name, **cells, "**mean**": f"**{row['groups'][MEAN]['mean']:.2f}**"})
    return table(lines)


def difference_table(summary: Summary, pairs: Sequence[tuple[str, str]]) -> str:
    """
    Differences by group with their intervals, and the lowest and highest of the seeds.

    Args:
        summary (`dict`): From [`summarize_rows`].
        pairs (`Sequence[tuple[str, str]]`): Rows, and which of their references.
    """
    return table(
        [
            {"difference": f"{name} - {other}"}
            | {group: difference_text(values) for group, values in summary[name]["minus"][other].items()}
            for name, other in pairs
        ]
    )


def difference_text(values: Mapping[str, Any]) -> str:
    """A difference with its interval and the range of the seeds."""
    text = f"{values['difference']:+.2f} [{values['low']:+.2f}, {values['high']:+.2f}]"
    if len(values["per_seed"]) > 1:
        text += f" ({min(values['per_seed']):+.2f} to {max(values['per_seed']):+.2f})"
    return text


def figure_note(results: Mapping[str, Any]) -> str:
    """Of how many images and seeds the figure is, and what its intervals are."""
    return (
        f"n = {results['evaluation']['num_images']} images, {len(results['seeds'])} seed"
        f"{'s' * (len(results['seeds']) > 1)}; intervals of {100 * results['confidence']:.0f} % by bootstrap over seeds "
        "and images; the zero line is plain finetuning"
    )


def cost_table(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Steps and seconds of the rows.

    Args:
        costs (`Mapping[str, Mapping]`): For each row `steps`, `step_seconds` (`None` if it is not trained), `seconds`,
            `synthesis_seconds` (part of `seconds`), `relative_cost` (to plain finetuning) and `norm_growth` (`None`
            without noise).
    """
    lines = []
    for name, cost in costs.items():
        growth = cost["norm_growth"]
        lines.append(
            {
                "row": name,
                "steps": f"{cost['steps']:.0f}",
                "seconds of a step": "" if cost["step_seconds"] is None else f"{cost['step_seconds']:.4f}",
                "seconds": f"{cost['seconds']:.1f}",
                "of it synthesis": f"{cost['synthesis_seconds']:.1f}",
                "time / plain": f"{cost['relative_cost']:.2f}",
                "noise norm, last / second round": "" if growth is None else f"{growth:.2f}",
            }
        )
    return table(lines)


def comparison_markdown(results: Mapping[str, Any]) -> str:
    """
    All tables of a comparison.

    Args:
        results (`Mapping`): `methods` from [`summarize_rows`]; `winners` from [`find_winners`]; `training`, the costs of
            [`cost_table`]; `plain_steps`, those of plain finetuning; `seeds`;
            `confidence`, that of the intervals; `evaluation` with `num_images`, `split`, `profile`, `profile_hash` and
            `not_measured`; and `rows`, for each row its `kind`, `method`, `start` and `arguments`.
    """
    rows = results["rows"]
    summary = results["methods"]
    evaluation = results["evaluation"]
    names, variants, averages, same_steps = (
        [name for name, row in rows.items() if row["kind"] == kind] for kind in (WAY, VARIANT, AVERAGE, SAME_STEPS)
    )
    parts = [
        "# Ways of finetuning, compared",
        f"{evaluation['num_images']} images of the split `{evaluation['split']}`, profile `{evaluation['profile']}` "
        f"({evaluation['profile_hash'][:12]}), seeds {results['seeds']}. `{BASE}` is the model that all start from.",
        "## Which won",
        winners_in_words(results["winners"], len(results["seeds"])),
        "## Accuracy (%) after as much time",
        f"Each row takes the time that plain finetuning takes for {results['plain_steps']} steps, by what a step of each cost "
        "where all were timed in turn in one process. The time of a row counts that of the row it started from. Differences "
        f"are in points, with the {100 * results['confidence']:.0f} % interval of a bootstrap over seeds and images, and in "
        "parentheses the lowest and the highest of the seeds.",
    ]
    shown = [*names, *averages]
    pairs = [(name, PLAIN.name) for name in [BASE, *names] if name != PLAIN.name]
    pairs += [(NULLSPACE.name, PERMUTED.name)] if {NULLSPACE.name, PERMUTED.name} <= set(names) else []
    pairs += [(name, other) for name in averages for other in summary[name]["minus"]]
    parts += _section(results, [BASE, *shown], pairs)
    if variants:
        known = [name for name in (PLAIN.name, NULLSPACE.name) if name in names] + variants
        pairs = [(name, other) for name in variants for other in summary[name]["minus"]]
        parts += ["## Variants", *_section(results, known, pairs)]
        parts.append("\n".join(f"- {name}: {_describe(rows[name])}" for name in variants))
    if same_steps:
        pairs = [(name, other) for name in same_steps for other in summary[name]["minus"]]
        parts += ["## Accuracy (%) after as many steps", *_section(results, [PLAIN.name, *same_steps], pairs)]
    if evaluation["not_measured"]:
        parts.append("\n".join(f"- {name} not measured: {why}" for name, why in evaluation["not_measured"].items()))
    return "\n\n".join(parts)


def _section(results: Mapping[str, Any], names: list[str], pairs: list[tuple[str, str]]) -> list[str]:
    """Accuracies, differences and costs of some rows."""
    summary = results["methods"]
    costs = results["training"]
    tables = [accuracy_table({name: summary[name] for name in names})]
    if pairs:
        tables.append(difference_table(summary, pairs))
    return [*tables, cost_table({name: costs[name] for name in names if name in costs})]


def _describe(row: Mapping[str, Any]) -> str:
    changes = ", ".join(f"`{name}` {value}" for name, value in row["arguments"].items())
    return f"{row['method']} from {row['start']}" + (f" with {changes}" if changes else "")


def _as_json(difference: PairedDifference) -> dict[str, Any]:
    return {**asdict(difference), "per_seed": list(difference.per_seed)}


def _accuracy(runs: Sequence[Mapping[str, Outcomes]], columns: Sequence[str]) -> dict[str, Any]:
    per_seed = mean_accuracies(runs, columns)
    return {"mean": sum(per_seed) / len(per_seed), "per_seed": per_seed}
