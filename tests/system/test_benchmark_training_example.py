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
    quick = ["--num_steps", "2", "--num_repeats", "2", "--batch_size", "8", "--num_synthesis_images", "200"]
    command = [sys.executable, str(EXAMPLE), *quick, "--output_dir", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads((tmp_path / "benchmark_training.json").read_text())["rows"]
    assert list(rows) == ["plain", "share 1", "share 1/4", "share 1, own gradient", "N-FGSM"]
    for row in rows.values():
        ratios = [ours / plain for ours, plain in zip(row["seconds"], rows["plain"]["seconds"], strict=True)]
        assert row["step_ratio"] == pytest.approx(statistics.median(ratios)) and len(ratios) == 2
        assert f"| {row['step_ratio']:.2f} | {row['passes_ratio']:.2f} |" in printed
        assert row["memory_ratio"] == row["peak_bytes"] / rows["plain"]["peak_bytes"] > 0.9
    passes = [row["passes_ratio"] for row in rows.values()]
    assert passes == pytest.approx([1.0, 2.0, 1.25, 8 / 3, 5 / 3])
    assert f"{rows['share 1']['synthesis_share']:.1%} (share 1)" in printed
