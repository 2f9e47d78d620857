"""Models side by side: paired intervals, and reports that cannot be compared."""

import copy

import pytest
import torch
from made_outcomes import made_outcomes

from hf_nullspace.robustness.comparison import compare_reports
from hf_nullspace.robustness.profiles import Column, Profile
from hf_nullspace.robustness.report import RobustnessReport


COUNT = 200
PROFILE = Profile("mine", (Column("clean"),))


def make_report(name, correct):
    accuracy = 100 * correct.mean().item()
    row = {"accuracy": accuracy, "low": accuracy - 7, "high": accuracy + 7, "correct": 0, "count": COUNT}
    run = {"datasets": {"evaluation": "abc"}}
    outcomes = {"clean": made_outcomes(correct)}
    return RobustnessReport(name, PROFILE, {"clean": row}, {}, {}, {"mean_accuracy": accuracy}, run, {}, outcomes)


@pytest.fixture
def reports():
    """The second model is right where the first is, and on ten images more."""
    first = (torch.arange(COUNT) % 2).float()
    second = first.clone()
    second[0:20:2] = 1
    return make_report("one", first), make_report("two", second)


def test_paired_interval_is_narrower_than_the_two(reports):
    text = compare_reports(reports)
    cells = [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]]
    assert cells[:3] == ["clean", "50.00 [43.00, 57.00]", "55.00 [48.00, 62.00]"]
    difference, low, high = (float(value.strip("[],")) for value in cells[3].split())
    # Ten of 200 images differ: 5 points, with a standard error of sqrt(0.05 * 0.95 / 200) = 1.54.
    assert difference == 5.0 and low == pytest.approx(5 - 3.02, abs=0.6) and high == pytest.approx(5 + 3.02, abs=0.6)
    assert "| mean_accuracy | 50.00 | 55.00 |" in text
    assert compare_reports(reports) == text


def test_what_cannot_be_compared_is_refused(reports):
    first, second = reports
    with pytest.raises(ValueError, match="two reports or more, but got 1"):
        compare_reports([first])
    with pytest.raises(ValueError, match="different names"):
        compare_reports([first, first])
    other = copy.copy(second)
    other.profile = Profile("other", (Column("clean"),), seed=1)
    with pytest.raises(ValueError, match="'two' was measured with the profile 'other'"):
        compare_reports([first, other])
    other = copy.copy(second)
    other.run = {"datasets": {"evaluation": "xyz"}}
    with pytest.raises(ValueError, match="different images"):
        compare_reports([first, other])
    other = copy.copy(second)
    other.outcomes = None
    with pytest.raises(ValueError, match="no outcomes.*`RobustnessReport.load`"):
        compare_reports([first, other])
