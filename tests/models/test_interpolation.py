"""Weights between two models: the ends bit for bit, the middle their mean, and what has no weights in between."""

import copy

import pytest
import torch

from hf_nullspace.models.interpolation import interpolate


@pytest.fixture
def ends(make_vit):
    return make_vit(seed=0), make_vit(seed=1, classifier_scale=3)


def test_ends_are_the_models_and_the_middle_is_their_mean(ends):
    start, finetuned = (model.state_dict() for model in ends)
    before = copy.deepcopy(start), copy.deepcopy(finetuned)
    for weight, expected in ((0, start), (0.0, start), (1.0, finetuned)):
        merged = interpolate(*ends, weight).state_dict()
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in expected)
    for weight in (0.5, 0.3):
        merged = interpolate(start, finetuned, weight)
        for name, value in merged.items():
            expected = (1 - weight) * start[name].double() + weight * finetuned[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-7)
    for found, expected in zip((start, finetuned), before, strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_predicts_as_its_state_dict_says(ends, examples):
    merged = interpolate(*ends, 0.25)
    other = copy.deepcopy(ends[0])
    other.load_state_dict(interpolate(ends[0].state_dict(), ends[1].state_dict(), 0.25))
    images = torch.stack([each["pixel_values"] for each in examples[:4]])
    with torch.no_grad():
        assert torch.equal(merged(images).logits, other(images).logits)
        assert not torch.equal(merged(images).logits, ends[1](images).logits)
    assert merged.config.id2label == ends[1].config.id2label


def test_half_precision_rounds_once_and_integers_are_of_the_nearer_end():
    start = {"weight": torch.tensor([1.0, 3.0], dtype=torch.bfloat16), "count": torch.tensor(3)}
    end = {"weight": torch.tensor([2.0, 3.015625], dtype=torch.bfloat16), "count": torch.tensor(9)}
    merged = interpolate(start, end, 0.5)
    assert torch.equal(merged["weight"], torch.tensor([1.5, 3.0078125]).bfloat16())
    assert (merged["count"], interpolate(start, end, 0.4)["count"]) == (9, 3)


@pytest.mark.parametrize("weight", [-0.1, 1.5, "half", True, float("nan")])
def test_a_weight_outside_is_refused(ends, weight):
    with pytest.raises(ValueError, match="`weight` must lie between 0 .the start. and 1"):
        interpolate(*ends, weight)


def test_what_has_no_weights_in_between_is_refused(ends, make_vit, overlapping_model):
    start, finetuned = ends
    with pytest.raises(ValueError, match="start is a `Segformer.*, the finetuned model a `ViT"):
        interpolate(overlapping_model, finetuned, 0.5)
    with pytest.raises(
        ValueError, match=r"head of the start is of 3 classes .LABEL_0, .*of 5 classes .*trained alone"
    ):
        interpolate(make_vit(num_labels=3), finetuned, 0.5)
    renamed = copy.deepcopy(start)
    renamed.config.id2label = {**renamed.config.id2label, 0: "cat"}
    with pytest.raises(ValueError, match=r"5 classes \(cat, LABEL_1"):
        interpolate(renamed, finetuned, 0.5)
    with pytest.raises(
        ValueError,
        match=r"position_embeddings.* \(1, 17, 32\) in the start.* \(1, 5, 32\) in the.* no weights of one model",
    ):
        interpolate(make_vit(image_size=32), finetuned, 0.5)
    with pytest.raises(ValueError, match=r"the start lacks \['vit.layers.1"):
        interpolate(make_vit(num_hidden_layers=1), finetuned, 0.5)
    with pytest.raises(ValueError, match="bfloat16 of shape .* Load both in one dtype"):
        interpolate(copy.deepcopy(start).bfloat16(), finetuned, 0.5)
    with pytest.raises(TypeError, match="two models or two state dicts.*ViTForImageClassification.*OrderedDict"):
        interpolate(start, finetuned.state_dict(), 0.5)
