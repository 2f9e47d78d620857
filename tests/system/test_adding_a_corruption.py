"""A sixteenth corruption, from one module outside the package, in profiles, reports and the command line."""

import json

import pytest
from added import Evaluations, added, help_text

from hf_nullspace.data.imagenet import IMAGENET_C_CORRUPTIONS
from hf_nullspace.robustness import CORRUPTIONS, Column, Profile, corruption
from hf_nullspace.robustness.report_markdown import aggregates_over


COLUMNS = [
    {"name": "dark", "corruption": "darkness", "severity": 5},
    {"name": "contrast", "corruption": "contrast", "severity": 5},
    {"name": "clean"},
]


@pytest.fixture
def darkness():
    with added("added_corruption", CORRUPTIONS) as module:
        yield module.darkness


def test_it_is_evaluated_reported_and_resumed(darkness, photos, tmp_path):
    evaluations = Evaluations(photos, tmp_path, COLUMNS)
    report = evaluations.run()
    assert report.columns["dark"]["correct"] == 16, "black pictures are all taken for one of two classes"
    assert list(report.summary) == ["corruptions", "clean"]
    values = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert values["columns"]["dark"]["accuracy"] == 50.0
    over = "1 of the 15 corruptions (contrast) and 1 other (darkness) at severity 5"
    assert values["aggregates_over"] == {"mean_corruption_error": over}
    assert "| darkness | 50.00 |" in report.to_markdown().splitlines() and over in report.to_markdown()
    again, measured = evaluations.run_interrupted()
    assert again == report and measured == {"clean"}


def test_the_mean_of_imagenet_c_is_of_its_fifteen(darkness):
    published = [
        {"name": f"{name}_{severity}", "dataset": "imagenet-c", "corruption": name, "severity": severity}
        for name in IMAGENET_C_CORRUPTIONS
        for severity in range(1, 6)
    ]
    profile = Profile.from_dict({"name": "mine", "columns": [*published, COLUMNS[0]]})
    assert aggregates_over(profile, {"mce": 50.0})["mce"].endswith("at severity 1, 2, 3, 4, 5, not darkness")
    with pytest.raises(ValueError, match="is of 'imagenet-c', which needs .* but got 'darkness' and 1"):
        Column("dark", dataset="imagenet-c", corruption="darkness", severity=1)


def test_its_help_and_its_errors(darkness, photos, tmp_path, capsys):
    assert "darkness: Dims the picture to black." in help_text(capsys)
    error = Evaluations(photos, tmp_path, [{"name": "dark", "corruption": "darkness", "severity": 6}]).error(capsys)
    assert "Column 'dark' must have a severity from 1 to 5, but got 6" in error
    with pytest.raises(ValueError, match="There is already a corruption 'darkness'"):
        corruption()(darkness)
    with pytest.raises(ValueError, match="'bare' needs a docstring"):
        corruption()(lambda_named("bare"))


def test_without_its_module_it_is_unknown(photos, tmp_path, capsys):
    error = Evaluations(photos, tmp_path, COLUMNS).error(capsys)
    assert "Column 'dark' has the unknown corruption 'darkness'" in error and "import the module that adds it" in error


def lambda_named(name):
    def function(pixels, severity, rng):
        return pixels

    function.__name__ = name
    return function
