"""Checkpoints: every weight comes back bitwise, and what does not fit is refused with the checkpoint's name."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_nullspace.training.checkpoints import check_writable, load_model_weights


@pytest.fixture
def checkpoint(make_vit, tmp_path):
    make_vit(seed=1).save_pretrained(tmp_path / "checkpoint-7")
    return tmp_path / "checkpoint-7"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_comes_back(make_vit, tmp_path, dtype):
    saved, live = (make_vit(seed=seed, initializer_range=0.2).to(dtype) for seed in (1, 2))
    with torch.no_grad():
        for weight in saved.parameters():
            weight.add_(0.5)
    saved.save_pretrained(tmp_path)
    tensors = {name: tensor.data_ptr() for name, tensor in live.named_parameters()}
    assert load_model_weights(live, str(tmp_path)) is True
    assert any("encoder" in name or "layers" in name for name in live.state_dict())
    for name, weight in saved.state_dict().items():
        assert torch.equal(live.state_dict()[name], weight), name
    assert {name: tensor.data_ptr() for name, tensor in live.named_parameters()} == tensors


def assert_refused(model, checkpoint, *texts):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError) as error:
        load_model_weights(model, str(checkpoint))
    for text in (str(checkpoint), *texts):
        assert text in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("size", [0, 100, -4])
def test_truncated_weights_are_refused(make_vit, checkpoint, size):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert_refused(make_vit(), checkpoint, "cannot be read")


def test_weight_file_that_is_gone_is_refused(make_vit, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert_refused(make_vit(), checkpoint, "cannot be read")


def test_missing_weight_is_refused(make_vit, checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["vit.layernorm.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    assert_refused(make_vit(), checkpoint, "vit.layernorm.bias")


def test_checkpoint_of_another_head_is_refused(make_vit, checkpoint):
    assert_refused(make_vit(num_labels=3), checkpoint, "classifier.weight")


def test_weight_of_another_shape_than_the_config_says_is_refused(make_vit, checkpoint):
    path = checkpoint / "model.safetensors"
    save_file({**load_file(path), "classifier.bias": torch.zeros(7)}, path, metadata={"format": "pt"})
    assert_refused(make_vit(), checkpoint, "classifier.bias")


def test_other_checkpoints_are_left_to_trainer(make_vit, checkpoint, tmp_path):
    assert load_model_weights(nn.Linear(2, 2), str(checkpoint)) is False
    (tmp_path / "adapter_config.json").write_text("{}")
    assert load_model_weights(make_vit(), str(tmp_path)) is False


def test_weights_without_a_config_are_refused(make_vit, checkpoint):
    """`Trainer` would restore the head and leave the encoder."""
    (checkpoint / "config.json").unlink()
    assert_refused(make_vit(), checkpoint, "has no config.json")


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(str(tmp_path / "new" / "out"))
    assert list((tmp_path / "new" / "out").iterdir()) == []


@pytest.mark.parametrize("below", ["", "out", "out/deeper"])
def test_check_writable_refuses_a_path_below_a_file(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    folder = str(tmp_path / "file" / below) if below else str(tmp_path / "file")
    with pytest.raises(OSError, match="cannot be written") as error:
        check_writable(folder)
    assert repr(folder) in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"
