"""One process and two: the same noise, the same weights, the same evaluation."""

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from hf_nullspace import RobustnessReport


SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    runs = {}
    for processes in (1, 2):
        (folder / str(processes)).mkdir()
        launch(SCRIPT, [str(folder / str(processes)), str(processes)], processes)
        results = json.loads((folder / str(processes) / "run.json").read_text())
        runs[processes] = load_file(folder / str(processes) / "run.safetensors"), results, folder / str(processes)
    return runs


def test_two_processes_really_ran(runs):
    assert [runs[processes][1]["num_processes"] for processes in (1, 2)] == [1, 2]


def test_noise_is_that_of_one_process(runs):
    one, two = runs[1][0]["noise"], runs[2][0]["noise"]
    assert runs[1][1]["history"][0]["steps"] == 8
    assert (one - two).norm() / one.norm() <= 1e-5
    assert runs[2][1]["ranks_agree"]


def test_certificates_are_those_of_one_process(runs):
    for one, two in zip(runs[1][1]["history"], runs[2][1]["history"], strict=True):
        assert one["num_images"] == two["num_images"] == 16
        for name in ("norm", "probability_mse", "permuted_probability_mse", "agreement"):
            assert one[name] == pytest.approx(two[name], rel=1e-4)


def test_weights_are_those_of_one_process(runs):
    (one, *_), (two, *_) = runs[1], runs[2]
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5, msg=name)


def test_evaluation_is_that_of_one_process(runs):
    one, two = (torch.tensor(runs[processes][1]["predictions"]) for processes in (1, 2))
    assert one.shape == two.shape == (13, 5)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_robustness_is_exactly_that_of_one_process(runs):
    one, two = (RobustnessReport.load(runs[processes][2] / "report") for processes in (1, 2))
    assert one == two and one.columns["clean"]["count"] == 13 and one.columns["pgd"]["count"] == 7
    for column, outcomes in one.outcomes.items():
        assert torch.equal(outcomes.values, two.outcomes[column].values)
    (alone,), (first, second) = runs[1][1]["accuracies"], runs[2][1]["accuracies"]
    assert alone == first == second
