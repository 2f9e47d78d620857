"""`examples/benchmark.py`, in a few steps: what it prints is what it saves, and its ratios are those of its rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLE = Path(__file__).parents[2] / "examples" / "benchmark.py"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--torch_compile"]], ids=["", "compiled"])
def test_printed_ratios_are_those_of_the_saved_numbers(tmp_path, flags):
    quick = ["--num_steps", "4", "--num_images", "64", "--num_fresh_images", "64", "--num_seeds", "1"]
    quick += ["--num_certificates", "2", "--num_repeats", "1", "--digits_max_steps", "40"]
    command = [sys.executable, str(EXAMPLE), *quick, *flags, "--output_dir", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results = json.loads((tmp_path / "benchmark.json").read_text())
    cost, norms = results["cost"], results["norms"]
    assert cost["seconds_per_step_ratio"] == cost["seconds_per_step_ours"] / cost["seconds_per_step_released"]
    best = max(norms["released, limit 3"]["norm"], norms["released, limit 1"]["norm"])
    assert norms["ours"]["ratio"] == pytest.approx(norms["ours"]["norm"] / best)
    assert f"| ours | {norms['ours']['norm']:.2f} |" in printed
    assert norms["ours"]["token_norm_max"] <= 4.05 * norms["ours"]["token_norm_median"]
    if flags:
        ratio = cost["seconds_per_step_ours_compiled"] / cost["seconds_per_step_released"]
        row = next(line for line in printed.splitlines() if line.startswith("| seconds per step, ours compiled"))
        assert row.endswith(f"| {ratio:.4g} |") and cost["seconds_to_compile"] > 0
    assert results["certificates"]["ours"] in (0.0, 0.5, 1.0)
