"""The patch projection: found, overridden, refused, told exact or not, and written as a matrix."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_nullspace.models.patch_projection import PatchProjection, find_patch_projection


VIT_PROJECTION = "vit.embeddings.patch_embeddings.projection"


class LinearStem(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.stem = nn.Linear(12, 8)

    def get_input_embeddings(self):
        return self.stem


class ConvStem(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask = nn.Conv2d(1, 1, 1)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.second = nn.Conv2d(3, 8, 2, 2)


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_finds_the_projection_of_vit(make_vit, num_channels):
    model = make_vit(num_channels=num_channels)
    projection = find_patch_projection(model)
    assert projection.name == VIT_PROJECTION
    assert projection.module is model.get_submodule(VIT_PROJECTION)
    assert (projection.hidden_size, projection.patch_size, projection.is_exact) == (32, (8, 8), True)
    assert projection.matrix().shape == (32, num_channels * 64)
    assert not projection.matrix().requires_grad


@pytest.mark.parametrize(
    "model_class, name, patch_size, hidden_size", [(LinearStem, "stem", None, 8), (ConvStem, "stem", (4, 4), 8)]
)
def test_rule_on_other_stems(model_class, name, patch_size, hidden_size):
    projection = find_patch_projection(model_class())
    assert (projection.name, projection.patch_size, projection.hidden_size) == (name, patch_size, hidden_size)
    assert projection.is_exact


def test_number_of_channels_of_a_timm_config():
    model = ConvStem()
    model.config = SimpleNamespace(model_args={"in_chans": 1})
    assert find_patch_projection(model).name == "mask"


@pytest.mark.parametrize("model_class, name", [(ConvStem, "second"), (LinearStem, "head")])
def test_override_by_name(model_class, name):
    model = model_class()
    projection = find_patch_projection(model, name)
    assert projection.name == name
    assert projection.module is model.get_submodule(name)


@pytest.mark.parametrize(
    "name, found", [("vit.nowhere", "there is no such module"), ("vit.embeddings", "it is a ViTEmbeddings")]
)
def test_wrong_override_is_refused(make_vit, name, found):
    with pytest.raises(ValueError) as error:
        find_patch_projection(make_vit(), name)
    assert repr(name) in str(error.value)
    assert found in str(error.value)
    assert "ViTForImageClassification" in str(error.value)


def test_text_model_is_refused():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    with torch.random.fork_rng():
        model = BertForSequenceClassification(config)
    with pytest.raises(ValueError, match="BertForSequenceClassification has no patch projection.*patch_projection="):
        find_patch_projection(model)


@pytest.mark.parametrize(
    "options, is_exact",
    [
        ({"stride": 4}, True),
        ({"stride": 4, "padding": "valid"}, True),
        ({"stride": 2}, False),
        ({"stride": 5}, False),
        ({"stride": 4, "padding": 1}, False),
        ({"stride": 4, "dilation": 2}, False),
        ({"stride": 4, "groups": 3}, False),
        ({"stride": (4, 2)}, False),
    ],
    ids=str,
)
def test_is_exact(options, is_exact):
    assert PatchProjection("stem", nn.Conv2d(3, 9, 4, **options)).is_exact is is_exact


def test_matrix_is_the_map_of_each_patch(make_vit, make_examples):
    projection = find_patch_projection(make_vit())
    image = make_examples(1)[0]["pixel_values"]
    with torch.no_grad():
        embeddings = projection.module(image[None])[0]
    for row in range(2):
        for column in range(2):
            patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = projection.matrix() @ patch.flatten() + projection.module.bias.detach()
            torch.testing.assert_close(embeddings[:, row, column], expected, rtol=1e-5, atol=1e-6)
