"""`examples/benchmark_training.py`, in a few steps: what it prints is what it saves."""

import json
import statistics
import subprocess
import sys
import time

import pytest
from example_scripts import EXAMPLES, load_example


EXAMPLE = EXAMPLES / "benchmark_training.py"


def test_the_first_step_is_timed_without_what_comes_before_it(monkeypatch):
    """Else the time of a synthesis, which is that of a first step less a step, would count building the model."""
    script = load_example("benchmark_training")
    build_model, built = script.build_model, []
    monkeypatch.setattr(script, "build_model", lambda name: (build_model(name), built.append(time.perf_counter()))[0])
    images = script.RandomImages(8, 32, 10)
    measured, passes = script.train("plain", script.BenchmarkArguments(batch_size=4), images, 1)
    begin, end = measured.ends
    assert built[0] < begin < end and measured.seconds_of_first_step() == end - begin
    assert passes == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_repeats": 0}, "`--num_repeats` must be at least 1"),
        ({"num_steps": 0}, "`--num_steps` must be at least 1"),
        ({"batch_size": 64, "num_synthesis_images": 100}, "`--num_synthesis_images` must be at least 128"),
    ],
)
def test_settings_that_give_no_number_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        load_example("benchmark_training").BenchmarkArguments(**setting)


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
