"""A folder with an adapter alone: it loads as the model that was trained, with its base's processor, or says why not."""

import json

import pytest
import torch
from transformers import ViTImageProcessorPil

from hf_nullspace.models.adapters import base_of_adapter
from hf_nullspace.models.loading import ModelArguments, load_model


peft = pytest.importorskip("peft")
HUB = {"cache_dir": None, "revision": "main", "token": None}


@pytest.fixture
def adapter(make_vit, tmp_path):
    """The folder of an adapter with a trained head, and the model that it was saved from."""
    model = make_vit()
    model.save_pretrained(tmp_path / "base")
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1] * 3).save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    model.base_model.model.classifier.modules_to_save["default"].weight.data.add_(1.0)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()


def test_an_adapter_loads_as_it_was_trained(adapter, make_batches):
    folder, trained = adapter
    model, processor = load_model(ModelArguments(str(folder)))
    images = make_batches(4, 4)[0]["pixel_values"]
    assert torch.equal(model.eval()(images).logits, trained(images).logits)
    assert list(processor.image_mean) == [0.1] * 3
    assert base_of_adapter(str(folder), HUB) == str(folder.parent / "base")


def test_the_adapters_own_processor_comes_first(adapter):
    folder, _ = adapter
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.2] * 3).save_pretrained(folder)
    assert list(load_model(ModelArguments(str(folder)))[1].image_mean) == [0.2] * 3


def test_what_is_no_adapter_is_none(tmp_path):
    assert base_of_adapter(str(tmp_path), HUB) is None
    with pytest.raises((OSError, ValueError)):
        load_model(ModelArguments(str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), (json.dumps({"base_model_name_or_path": None}), "which model")]
)
def test_a_damaged_adapter_is_named(adapter, text, message):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{folder}.*{message}"):
        load_model(ModelArguments(str(folder)))
