"""Which row won: only one that is ahead of all others by more than chance."""

import numpy as np
import pytest
from made_outcomes import made_outcomes

from hf_nullspace.comparison.statistics import paired_difference
from hf_nullspace.comparison.verdict import NUM_RESAMPLES, find_winners, winners_in_words
from hf_nullspace.robustness.profiles import Column


COLUMNS = [Column("clean"), Column("fog_3", corruption="fog", severity=3)]


def runs(accuracy, seed=0, num_images=400, num_seeds=2):
    rng = np.random.default_rng(seed)
    return [
        {column.name: made_outcomes(rng.random(num_images) < accuracy) for column in COLUMNS} for _ in range(num_seeds)
    ]


def test_a_row_that_is_far_ahead_won():
    outcomes = {"plain": runs(0.5), "sam": runs(0.6, 1), "nullspace": runs(0.9, 2)}
    found = find_winners(COLUMNS, outcomes)
    assert list(found) == ["mean", "clean", "corruptions"]
    mean = found["mean"]
    assert (mean["best"], mean["won"], mean["next"], mean["not_told_apart"]) == ("nullspace", True, "sam", [])
    assert mean["confidence"] == pytest.approx(0.975)
    expected = paired_difference(
        outcomes["nullspace"], outcomes["sam"], ["clean", "fog_3"], confidence=0.975, num_resamples=NUM_RESAMPLES
    )
    assert mean["differences"]["sam"] == {
        "difference": expected.difference,
        "low": pytest.approx(expected.low, abs=1e-9),
        "high": pytest.approx(expected.high, abs=1e-9),
    }
    text = winners_in_words(found, 2)
    over, behind = (mean["differences"][name] for name in ("plain", "sam"))
    assert f"- mean: nullspace won, {over['difference']:+.2f} [{over['low']:+.2f}, {over['high']:+.2f}] points" in text
    assert f"over plain; next is sam, {behind['difference']:+.2f} [" in text
    assert "one seed" not in text


def test_of_rows_of_one_accuracy_none_won():
    same = runs(0.7)
    outcomes = {"plain": same, **{name: runs(0.7, seed + 1) for seed, name in enumerate("abcd")}}
    found = find_winners(COLUMNS, outcomes)["clean"]
    assert not found["won"] and len(found["not_told_apart"]) >= 3
    assert found["differences"][found["next"]]["low"] <= 0
    text = winners_in_words({"clean": found}, 1)
    assert text.startswith(f"- clean: None won: the highest is {found['best']}")
    assert "which is not told apart from" in text and "and 1 more" in text
    assert "With one seed they are over images alone" in text


def test_rows_that_are_equal_are_not_told_apart():
    same = runs(0.7)
    found = find_winners(COLUMNS, {"plain": same, "other": same})["mean"]
    assert not found["won"] and found["differences"][found["next"]] == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_chance_makes_a_winner_in_few_cases():
    """Among six rows of the same accuracy; without the correction for the choice it would be about one in five."""
    won = 0
    for trial in range(20):
        outcomes = {
            name: [{"clean": run["clean"]} for run in runs(0.7, 10 * trial + place, 200, 1)]
            for place, name in enumerate(["plain", *"abcde"])
        }
        won += find_winners(COLUMNS[:1], outcomes)["clean"]["won"]
    assert won <= 2


def test_one_row_has_nobody_to_win_against():
    found = find_winners(COLUMNS, {"plain": runs(0.5)})["mean"]
    assert not found["won"] and winners_in_words({"mean": found}, 2).startswith("- mean: There is only plain.")
