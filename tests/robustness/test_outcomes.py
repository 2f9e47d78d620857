"""Files of outcomes: names in place of columns, and the tables of version 0.1.0."""

import pytest
import torch
from made_outcomes import made_outcomes
from safetensors.torch import load_file, save_file

from hf_nullspace.robustness.outcomes import ShardStore, load_outcomes, save_outcomes
from hf_nullspace.utils.strict_json import DamagedFileError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "outcomes.safetensors"


def test_what_is_saved_is_loaded(path):
    outcomes = made_outcomes([1, 0], [4, 9], prediction=[3, -1], l2=[0.5, 0.0], num_queries=[7.0, 8.0])
    save_outcomes({"clean": outcomes, "of-2": made_outcomes([1])}, path)
    assert {name for name in load_file(path) if name.startswith("clean.")} == {
        f"clean.{name}" for name in ("indices", "prediction", "correct", "confidence", "l2", "linf", "num_queries")
    }
    loaded = load_outcomes(path)
    assert set(loaded) == {"clean", "of-2"} and len(loaded["of-2"]) == 1
    assert loaded["clean"].indices.tolist() == [4, 9] and loaded["clean"].prediction.tolist() == [3, -1]
    assert loaded["clean"].correct.tolist() == [True, False] and loaded["clean"].l2.tolist() == [0.5, 0.0]
    assert loaded["clean"].others["num_queries"].tolist() == [7.0, 8.0]


def test_a_table_of_version_0_1_0_is_read_by_name(path):
    table = torch.tensor([[3.0, 1.0, 0.75, 0.5, 0.25, 0.0], [4.0, 0.0, 0.5, 0.0, 0.0, 9.0]])
    save_file({"aa.values": table, "aa.indices": torch.tensor([2, 5])}, path)
    (outcomes,) = load_outcomes(path).values()
    assert outcomes.prediction.tolist() == [3, 4] and outcomes.correct.tolist() == [True, False]
    assert outcomes.confidence.tolist() == [0.75, 0.5] and outcomes.linf.tolist() == [0.25, 0.0]
    assert {name: flags.tolist() for name, flags in outcomes.others.items()} == {
        "looks_randomized": [False, True],
        "has_zero_gradients": [False, True],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.l2": torch.zeros(3)}, "no l2 of 2 images"),
        ({"a.correct": torch.zeros(2)}, "no correct of 2 images"),
        ({"a.indices": torch.zeros(2)}, "no list of images"),
        ({"b.indices": torch.arange(2)}, "column b holds no prediction"),
        ({"a.values": torch.zeros(2, 5)}, r"table of shape \(2, 5\)"),
        ({"a.values": torch.full((2, 6), 0.5)}, "no outcomes"),
        ({"a.values": torch.full((2, 6), torch.nan)}, "no outcomes"),
    ],
)
def test_damaged_files_are_refused(path, change, message):
    save_outcomes({"a": made_outcomes([1, 0])}, path)
    save_file({**load_file(path), **change}, path)
    with pytest.raises(DamagedFileError, match=message):
        load_outcomes(path)


def test_parts_of_another_version_are_measured_again(tmp_path, caplog):
    store = ShardStore(tmp_path / "parts")
    store.open({"profile": "one"})
    store.save("clean.00000", made_outcomes([1, 0]).named, 1.5)
    store.save("clean.00001", {"values": torch.zeros(2, 6)}, 1.5)
    assert store.open({"profile": "one"}) == ["clean.00000"]
    assert "another version of the package wrote it" in caplog.text
    named, seconds = store.load("clean.00000")
    assert seconds == 1.5 and named["correct"].tolist() == [True, False]
