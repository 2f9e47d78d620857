"""`examples/noise_hardness.py`, in a few steps: its rises are those of the losses that it saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLE = Path(__file__).parents[2] / "examples" / "noise_hardness.py"


@pytest.mark.slow
def test_rises_are_shares_of_the_rise_along_the_own_gradient(tmp_path):
    quick = ["--num_seeds", "2", "--num_images", "64", "--digits_max_steps", "60", "--epsilon", "0.1"]
    command = [sys.executable, str(EXAMPLE), *quick, "--output_dir", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results = json.loads((tmp_path / "noise_hardness.json").read_text())
    rows, runs = results["rows"], results["runs"]
    for name, row in rows.items():
        assert row["loss"] == pytest.approx(sum(run["rows"][name]["loss"] for run in runs) / 2)
    drawn, own = rows["draws"]["loss"], rows["own gradient, 3 sd"]["loss"]
    assert own > drawn and rows["own gradient, 3 sd"]["rise"] == 1
    share = (rows["clean gradient, measured"]["loss"] - drawn) / (own - drawn)
    assert rows["clean gradient, measured"]["rise"] == pytest.approx(share)
    assert f"| clean gradient, measured | {rows['clean gradient, measured']['loss']:.3f} |" in printed
