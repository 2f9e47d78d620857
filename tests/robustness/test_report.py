"""The report: JSON and files round trip, Markdown with the numbers, equality without timing."""

import copy
import json

import pytest
import torch
from made_outcomes import made_outcomes
from PIL import Image

from hf_nullspace import RobustnessReport
from hf_nullspace.robustness.profiles import Column, Profile


@pytest.fixture
def report():
    profile = Profile(
        "mine",
        (
            Column("clean", calibration=True),
            Column("fog_1", corruption="fog", severity=1),
            Column("fog_3", corruption="fog", severity=3),
            Column("fgsm", attack="fgsm"),
            Column("r", dataset="imagenet-r"),
        ),
        note="For a test.",
    )
    row = {"accuracy": 75.0, "low": 53.13, "high": 88.81, "correct": 15, "count": 20}
    columns = {
        "clean": {**row, "ece": 12.5},
        "fog_1": {**row, "accuracy": 60.0},
        "fog_3": {**row, "accuracy": 40.0},
        "fgsm": {**row, "accuracy": 5.0, "success_rate": 93.75, "mean_l2": 0.5, "mean_linf": None},
    }
    bar = {"accuracy": 50.0, "low": None, "high": None}
    summary = {"clean": row, "corruptions": bar, "fgsm": columns["fgsm"]}
    summary = {name: {key: value[key] for key in ("accuracy", "low", "high")} for name, value in summary.items()}
    return RobustnessReport(
        "some/model",
        profile,
        columns,
        summary,
        {"r": "no location"},
        {"mean_corruption_error": 50.0, "mean_accuracy": 43.33},
        {
            "preprocessing": {"resizing": {"none": ["evaluation"]}, "size": {"height": 16}},
            "versions": {"torch": "2.6"},
            "batch_size": 3,
        },
        {"clean": 1.5},
        {"clean": made_outcomes([True] * 15 + [False] * 5, l2=torch.rand(20))},
    )


def test_json_round_trip(report):
    values = json.loads(json.dumps(report.to_dict()))
    again = RobustnessReport.from_dict(values)
    assert again == report and again.seconds == report.seconds and again.profile == report.profile
    assert values["profile_hash"] == report.profile.hash and values["seed"] == 42


def test_an_edited_profile_is_refused(report):
    values = report.to_dict()
    values["profile"]["columns"][0]["name"] = "cleaner"
    with pytest.raises(ValueError, match="was edited"):
        RobustnessReport.from_dict(values)


def test_equality_leaves_timing_out(report):
    slower, other = copy.copy(report), copy.copy(report)
    slower.seconds = {"clean": 99.0}
    other.columns = {**report.columns, "clean": {**report.columns["clean"], "correct": 14}}
    assert slower == report and slower.to_markdown() == report.to_markdown()
    assert other != report


def test_markdown_holds_the_numbers(report):
    text = report.to_markdown()
    for line in (
        "| clean | 75.00 [53.13, 88.81] | 15 of 20 | 12.50 |  |  |",
        "| fgsm | 5.00 [53.13, 88.81] | 15 of 20 |  | 93.75 | 0.5000 |",
        "| corruption | 1 | 3 |",
        "| fog | 60.00 | 40.00 |",
        "| mean error under corruptions generated here | 50.00 | 1 of the 15 corruptions (fog) at severity 1, 3 |",
        "- r: no location",
        "- evaluation: none",
        "- size: {'height': 16}",
        "- torch 2.6",
    ):
        assert line in text.splitlines()
    assert f"Profile `mine` ({report.profile.hash[:12]}), seed 42. For a test." in text
    assert "## ImageNet-C" not in text and "mCE" not in text


def test_saved_and_loaded(report, tmp_path):
    report.save(tmp_path / "new" / "folder")
    again = RobustnessReport.load(tmp_path / "new" / "folder")
    assert again == report
    assert torch.equal(again.outcomes["clean"].l2, report.outcomes["clean"].l2)
    assert (tmp_path / "new" / "folder" / "robustness.md").read_text() == report.to_markdown() + "\n"
    with Image.open(tmp_path / "new" / "folder" / "robustness.png") as figure:
        assert figure.width == 1350
    with pytest.raises(FileNotFoundError, match="no finished evaluation"):
        RobustnessReport.load(tmp_path)


def test_missing_matplotlib_costs_the_figure_only(report, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    report.save(tmp_path)
    assert "robustness.png is not drawn" in caplog.text and RobustnessReport.load(tmp_path) == report
    assert not (tmp_path / "robustness.png").exists()
