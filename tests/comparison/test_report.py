"""The tables of a comparison, from outcomes whose means are known."""

import pytest
from made_outcomes import made_outcomes

from hf_nullspace.comparison.report import accuracy_table, cost_table, difference_table, norm_growth, summarize_rows
from hf_nullspace.robustness.outcomes import Outcomes
from hf_nullspace.robustness.profiles import Column


COLUMNS = [
    Column("clean"),
    Column("fog_3", corruption="fog", severity=3),
    Column("fgsm", attack="fgsm", settings={"epsilon": "8/255"}),
]


def run(*correct: int) -> dict[str, Outcomes]:
    """So many of ten images right in each column."""
    outcomes = {}
    for column, count in zip(COLUMNS, correct, strict=True):
        outcomes[column.name] = made_outcomes([place < count for place in range(10)])
    return outcomes


@pytest.fixture(scope="module")
def summary():
    outcomes = {"plain": [run(8, 5, 2), run(8, 5, 2)], "nullspace": [run(8, 8, 2), run(8, 8, 5)]}
    return summarize_rows(COLUMNS, outcomes, {"nullspace": ["plain"]})


def test_summary(summary):
    nullspace = summary["nullspace"]
    assert nullspace["columns"]["fgsm"] == {"mean": pytest.approx(35.0), "per_seed": pytest.approx([20.0, 50.0])}
    assert nullspace["groups"]["mean"]["per_seed"] == pytest.approx([60.0, 70.0])
    minus = nullspace["minus"]["plain"]
    assert list(minus) == ["mean", "clean", "corruptions", "attacks"]
    assert [minus[group]["difference"] for group in minus] == pytest.approx([15.0, 0.0, 30.0, 15.0])
    assert minus["mean"]["per_seed"] == pytest.approx([10.0, 20.0])
    assert summary["plain"]["minus"] == {}


def test_tables(summary):
    lines = accuracy_table(summary).splitlines()
    assert lines[0] == "| row | clean | fog_3 | fgsm | **mean** |"
    assert lines[-1] == "| nullspace | 80.00 | 80.00 | 35.00 | **65.00** |"
    line = difference_table(summary, [("nullspace", "plain")]).splitlines()[-1]
    assert line.startswith("| nullspace - plain | +15.00 [")
    assert "(+10.00 to +20.00) | +0.00 [+0.00, +0.00] (+0.00 to +0.00) |" in line
    cost = {"steps": 400, "seconds": 33.35, "synthesis_seconds": 2.0, "relative_cost": 2.5, "norm_growth": 1.25}
    plain = {"steps": 400, "seconds": 13.34, "synthesis_seconds": 0.0, "relative_cost": 1.0, "norm_growth": None}
    cost["step_seconds"], plain["step_seconds"] = 0.078375, None
    lines = cost_table({"nullspace": cost, "plain": plain}).splitlines()
    assert lines[-2].startswith("| nullspace | 400 | 0.0784 | 33.4 | 2.0 | 2.50 | 1.25 |")
    assert lines[-1].startswith("| plain | 400 |  | 13.3 | 0.0 | 1.00 |")


def test_growth_is_of_the_last_round_by_the_second():
    history = [{"norm": norm} for norm in (1.0, 4.0, 5.0, 6.0)]
    assert norm_growth(history) == 1.5
    assert norm_growth(history[:2]) is None and norm_growth([]) is None
