"""`report.html` of a comparison: from results alone, those of earlier versions too."""

import html
import json
from pathlib import Path

import pytest
import torch
from made_outcomes import made_outcomes
from made_reports import made_report

from hf_nullspace.comparison.report import SAME_STEPS, summarize_rows
from hf_nullspace.comparison.report_page import class_results, comparison_page, pictured_rows
from hf_nullspace.robustness.examples import Examples
from hf_nullspace.robustness.profiles import Column


EARLIER = Path(__file__).parents[2] / "model_cards" / "compare-digits" / "results.json"
COLUMNS = [Column("clean"), Column("fog_3", corruption="fog", severity=3), Column("fgsm", attack="fgsm")]
LABEL = torch.arange(10) // 5


def run(*correct: int) -> dict:
    """So many of ten pictures right in each column, the first five of them cats."""
    return {
        column.name: made_outcomes([place < count for place in range(10)], confidence=[0.5] * 10, label=LABEL)
        for column, count in zip(COLUMNS, correct, strict=True)
    }


@pytest.fixture
def results():
    outcomes = {
        "base": [run(7, 5, 2)] * 2,
        "plain": [run(8, 5, 2), run(6, 5, 2)],
        "nullspace": [run(8, 8, 2), run(8, 8, 5)],
    }
    cost = {"steps": 10, "seconds": 2.0, "synthesis_seconds": 0.5, "relative_cost": 1.5, "norm_growth": None}
    rows = {
        name: {"name": name, "method": name, "start": "base", "arguments": {}, "kind": "method"}
        for name in ("plain", "nullspace")
    }
    rows["nullspace"]["arguments"] = {"noise_weight": "<script>"}
    return {
        "rows": rows,
        "seeds": [42, 43],
        "confidence": 0.95,
        "evaluation": {"num_images": 10, "split": "test", "profile_hash": "c" * 64, "not_measured": {"r": "no place"}},
        "methods": summarize_rows(COLUMNS, outcomes, {"nullspace": ["plain"], "base": ["plain"]}),
        "training": dict.fromkeys(rows, cost),
        "classes": class_results(outcomes, "clean", Examples(classes=["cat", "<b>dog</b>"])),
        "run": {"versions": {"torch": "2"}, "preprocessing": {"size": 8}, "competes": ["all"], "command": "run it"},
    }


def test_classes_and_calibration_are_means_over_seeds(results):
    classes = results["classes"]
    assert classes["names"] == ["cat", "<b>dog</b>"] and classes["counts"] == [5, 5]
    assert classes["accuracy"]["plain"] == pytest.approx([100, 40])  # of the dogs 3 and 1 of 5
    assert classes["ece"]["plain"] == pytest.approx((30 + 10) / 2)  # 80 and 60 % right at 50 %
    assert classes["ece"]["nullspace"] == pytest.approx(30)


def test_page_holds_the_results(results):
    page = comparison_page(results)
    text = html.unescape(page)
    for words in ("nullspace, +", "against plain finetuning (mean)", "n = 10 images, 2 seeds", "run it", "c" * 64):
        assert words in text, words
    assert "noise_weight <script>" in text and page.count("<script") == 1 and "<b>dog" not in page
    assert "r</th><td>no place" in page and "the 2 worst classes of plain" in text
    assert page == comparison_page(json.loads(json.dumps(results)))


def test_page_shows_pictures_of_plain_finetuning_and_of_the_best_row(results):
    assert pictured_rows(results) == ["plain", "nullspace"]
    equal = {"nullspace-equal-steps": {"kind": SAME_STEPS, "groups": {"mean": {"mean": 99.0}}}}  # has more time
    with_equal = {name: {**results[name], **equal} for name in ("rows", "methods")}
    assert pictured_rows(with_equal) == ["plain", "nullspace"]
    reports = {name: made_report(COLUMNS, ["cat", "dog"], LABEL) for name in pictured_rows(results)}
    page = comparison_page(results, reports)
    assert page.count("data:image/") == 3 * len(COLUMNS) * 2 and "nullspace, fog_3: fog, severity 3" in page
    without = comparison_page(results)
    assert "data:image/" not in without and "The results hold no pictures" in without
    assert all("runs/ROW-SEED/robustness-.../report.html" in each for each in (page, without))


def test_results_of_an_earlier_version_have_a_page():
    page = comparison_page(json.loads(EARLIER.read_text()))
    assert "Most gained pgd, +8.2 points [+6.2, +10.3] against plain finetuning (mean)." in page
    assert "These results do not say it: an earlier version wrote them." in page
    assert "do not say which command" in page and len(page.encode()) < 2_000_000
