"""`examples/benchmark_training.py`, in a few steps: what it prints is what it saves."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLE = Path(__file__).parents[2] / "examples" / "benchmark_training.py"


@pytest.mark.slow
def test_printed_ratios_are_those_of_the_saved_numbers(tmp_path):
    quick = ["--num_steps", "2", "--num_repeats", "2", "--num_run_steps", "2", "--batch_size", "8"]
    command = [sys.executable, str(EXAMPLE), *quick, "--output_dir", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results = json.loads((tmp_path / "benchmark_training.json").read_text())
    seconds = results["seconds_per_step"]
    kinds = ["sequential", "concatenated", "concatenated, ascent"]
    assert {kind: len(times) for kind, times in seconds.items()} == dict.fromkeys(["plain", *kinds], 2)
    for kind in kinds:
        ratios = [ours / plain for ours, plain in zip(seconds[kind], seconds["plain"], strict=True)]
        assert results["step_ratio"][kind] == pytest.approx(statistics.median(ratios))
        assert f"| {results['step_ratio'][kind]:.2f} |" in printed
    assert f"{results['run_ratio']:.2f} times as long" in printed
