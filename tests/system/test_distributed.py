"""One process and two: the same noise, the same weights, the same evaluation."""

import json

import distributed_run
import pytest
import sharded_run
import torch
from launching import finish, start
from safetensors.torch import load_file

from hf_nullspace import RobustnessReport


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    runs = {}
    for processes in (1, 2):
        (folder / str(processes)).mkdir()
        finish(start(distributed_run.main, processes, str(folder / str(processes)), processes))
        results = json.loads((folder / str(processes) / "run.json").read_text())
        runs[processes] = load_file(folder / str(processes) / "run.safetensors"), results, folder / str(processes)
    return runs


def test_two_processes_really_ran(runs):
    assert [runs[processes][1]["num_processes"] for processes in (1, 2)] == [1, 2]


# The last noise belongs to weights that differ by rounding, which a search along insensitive directions enlarges;
# by how much, depends on the processor.
@pytest.mark.parametrize("name, difference", [("first_noise", 1e-4), ("last_noise", 1e-3), ("draws", 1e-4)])
def test_noise_is_that_of_one_process(runs, name, difference):
    one, two = runs[1][0][name], runs[2][0][name]
    assert runs[1][1]["history"][0]["steps"] == 8
    assert (one - two).norm() / one.norm() <= difference
    assert runs[2][1]["ranks_agree"]


def test_certificates_are_those_of_one_process(runs):
    for one, two in zip(runs[1][1]["history"], runs[2][1]["history"], strict=True):
        assert one["num_images"] == two["num_images"] == 16
        for name in ("norm", "probability_mse", "permuted_probability_mse", "agreement"):
            assert one[name] == pytest.approx(two[name], rel=1e-3)


def test_weights_are_those_of_one_process(runs):
    (one, *_), (two, *_) = runs[1], runs[2]
    for name in one.keys() - {"first_noise", "last_noise", "draws"}:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5, msg=name)


def test_draws_are_measured_as_in_one_process(runs):
    """Each image has the draw of its place, whichever process holds it."""
    one, two = (runs[processes][1]["draws"] for processes in (1, 2))
    for name in ("norm", "probability_mse", "probability_mse_upper", "permuted_probability_mse", "agreement"):
        assert one[name] == pytest.approx(two[name], rel=1e-3), name


def test_processes_that_move_their_own_draws_keep_the_same_weights(runs):
    assert runs[1][1]["ascending_ranks_agree"] and runs[2][1]["ascending_ranks_agree"]


def test_evaluation_is_that_of_one_process(runs):
    one, two = (torch.tensor(runs[processes][1]["predictions"]) for processes in (1, 2))
    assert one.shape == two.shape == (13, 5)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_robustness_is_exactly_that_of_one_process(runs):
    one, two = (RobustnessReport.load(runs[processes][2] / "report") for processes in (1, 2))
    assert one == two and one.columns["clean"]["count"] == 13 and one.columns["pgd"]["count"] == 7
    for column, outcomes in one.outcomes.items():
        for name, values in two.outcomes[column].named.items():
            assert torch.equal(outcomes.named[name], values)
    pages = [(runs[processes][2] / "report" / "report.html").read_text() for processes in (1, 2)]
    assert pages[0] == pages[1] and pages[0].count("data:image/jpeg") == 3 * len(one.columns)
    (alone,), (first, second) = runs[1][1]["accuracies"], runs[2][1]["accuracies"]
    assert alone == first == second


def test_evaluation_is_exact_on_any_number_of_images(runs):
    one, two = (runs[processes][1]["evaluations"] for processes in (1, 2))
    assert len(one) == len(two) == 10
    for name, metrics in one.items():
        assert metrics["loss"] == pytest.approx(metrics["by_hand"], abs=1e-6), name
        assert two[name]["loss"] == pytest.approx(two[name]["by_hand"], abs=1e-6), name
        assert two[name]["loss"] == pytest.approx(metrics["loss"], abs=1e-4), name  # the weights differ by 1e-5
        assert two[name]["accuracy"] == metrics["accuracy"], name


def test_processes_with_different_noise_are_told_apart(runs):
    assert runs[1][1]["disagreement"] == ""
    assert "The processes [1] found another noise in round 1 than process 0" in runs[2][1]["disagreement"]


def test_a_sharded_model_finds_the_noise_of_a_whole_one(tmp_path):
    """`fully_shard` itself, since Accelerate ignores FSDP on a CPU."""
    finish(start(sharded_run.main, 2, str(tmp_path)))
    results = json.loads((tmp_path / "sharded.json").read_text())
    assert results["shards"] == 2
    assert results["noise_difference"] <= 1e-4  # of its norm, after eight steps of other rounding
    assert results["norm"] > 0.1
    assert results["ranks_agree"]
    assert results["losses"] == pytest.approx(results["whole_losses"], abs=1e-5)
    assert results["weight_difference"] <= 1e-5
    assert results["moved"] > 1e-4
    assert "whole batches" in results["prepared_loader"]
