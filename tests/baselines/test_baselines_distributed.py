"""One process and two: controls have the same noise, the rivals the same random numbers for each image."""

import json

import baselines_run
import pytest
from launching import finish, start
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp("processes")
        finish(start(baselines_run.main, processes, str(folder), processes))
        agree = json.loads((folder / "ranks_agree.json").read_text())
        runs[processes] = load_file(folder / "weights.safetensors"), agree
    return runs


@pytest.mark.parametrize("name", baselines_run.RUNS)
def test_all_processes_have_the_same_weights(runs, name):
    assert runs[2][1][name]


@pytest.mark.parametrize("run", baselines_run.RUNS)
def test_two_processes_train_as_one(runs, run):
    one, two = (
        {name: value for name, value in weights.items() if name.startswith(f"{run}: ")} for weights, _ in runs.values()
    )
    assert one.keys() == two.keys() and (f"{run}: noise" in one) == (run == "permuted")
    for name, value in one.items():
        difference = 1e-4 if name.endswith(": noise") else 1e-5  # a search enlarges what rounding makes of its sums
        assert (value - two[name]).abs().max() <= difference * max(1.0, value.norm().item()), name


@pytest.mark.parametrize("name", [name for name in baselines_run.RUNS if name != "permuted"])
def test_each_trains_other_weights(runs, name):
    weights, _ = runs[1]
    for other in baselines_run.RUNS:
        change = weights[f"{name}: classifier.weight"] - weights[f"{other}: classifier.weight"]
        assert other == name or change.abs().max() > 1e-3, other
