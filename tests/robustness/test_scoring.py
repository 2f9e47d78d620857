"""Numbers of a report from outcomes counted by hand."""

import math

import pytest
import torch
from made_outcomes import made_outcomes

from hf_nullspace.data.imagenet import IMAGENET_C_CORRUPTIONS as CORRUPTIONS
from hf_nullspace.robustness.profiles import PROFILES, Column
from hf_nullspace.robustness.scoring import aggregate_columns, score_columns, summarize_columns


def test_attack_success_counts_images_that_were_right():
    columns = (Column("clean"), Column("fgsm", attack="fgsm"))
    rows = score_columns(
        columns,
        {
            "clean": made_outcomes([1, 1, 0, 1, 1]),
            "fgsm": made_outcomes([0, 1, 0, 0], indices=[0, 1, 2, 4], l2=[1.0, 9.0, 9.0, 3.0], linf=[0.1, 0, 0, 0.3]),
        },
    )
    row = rows["fgsm"]
    assert (row["accuracy"], row["correct"], row["count"]) == (25.0, 1, 4)
    assert row["success_rate"] == pytest.approx(200 / 3)
    assert row["mean_l2"] == 2.0 and row["mean_linf"] == pytest.approx(0.2)
    assert "ece" not in row and "success_rate" not in rows["clean"]


def test_attack_success_needs_the_clean_images():
    columns = (Column("clean", max_images=1), Column("fgsm", attack="fgsm"))
    parts = {"clean": made_outcomes([1]), "fgsm": made_outcomes([1, 0])}
    assert "success_rate" not in score_columns(columns, parts)["fgsm"]
    unfooled = score_columns(columns, {"clean": made_outcomes([1, 1]), "fgsm": made_outcomes([1, 1])})["fgsm"]
    assert unfooled["success_rate"] == 0.0 and unfooled["mean_l2"] is None


def test_warnings_of_autoattack_become_a_field():
    column = Column("aa", attack="autoattack", settings={"tier": "fast"})
    row = score_columns(
        (column,), {"aa": made_outcomes([1, 0, 1], looks_randomized=[0, 1, 0], has_zero_gradients=[0, 0, 1])}
    )["aa"]
    assert (row["tier"], row["warnings"]) == ("fast", ["looks_randomized", "has_zero_gradients"])


def test_corruptions_share_a_bar_whose_interval_is_over_images():
    columns = tuple(Column(f"fog_{severity}", corruption="fog", severity=severity) for severity in (1, 3))
    parts = {"fog_1": made_outcomes([1, 1, 1, 0]), "fog_3": made_outcomes([1, 0, 0, 0])}
    rows = score_columns(columns, parts)
    bars = summarize_columns(columns, rows, parts)
    shares = torch.tensor([1.0, 0.5, 0.5, 0.0])
    half = 100 * 1.959964 * shares.std().item() / math.sqrt(4)
    assert list(bars) == ["corruptions"]
    assert bars["corruptions"] == pytest.approx({"accuracy": 50.0, "low": 50 - half, "high": 50 + half})
    assert aggregate_columns(columns, rows, bars) == {"mean_corruption_error": 50.0, "mean_accuracy": 50.0}
    del rows["fog_3"]
    bars = summarize_columns(columns, rows, parts)
    assert aggregate_columns(columns, rows, bars) == {"mean_accuracy": 75.0}


def test_the_papers_average_takes_imagenet_c_as_100_minus_mce():
    columns = PROFILES["paper"].columns
    parts = {column.name: made_outcomes([1, 0]) for column in columns}
    rows = score_columns(columns, parts)
    aggregates = aggregate_columns(columns, rows, summarize_columns(columns, rows, parts))
    alexnet = (88.6428, 89.4468, 92.264, 81.988, 82.6268, 78.5948, 79.836, 86.6816)
    alexnet += (82.6572, 81.9324, 56.4592, 85.3204, 64.6056, 71.784, 60.65)
    mce = sum(100 * 50 / error for error in alexnet) / len(CORRUPTIONS)
    assert aggregates["mce"] == pytest.approx(mce)
    assert aggregates["relative_mce"] == 0.0  # corruptions add nothing to the clean error here
    assert aggregates["average"] == pytest.approx((10 * 50 + 100 - mce) / 11)
    assert "mean_corruption_error" not in aggregates and aggregates["mean_accuracy"] == 50.0
    del rows["patchfool"]
    assert "average" not in aggregate_columns(columns, rows, summarize_columns(columns, rows, parts))
