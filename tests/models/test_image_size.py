"""Another input size: the interpolation of transformers itself, kept by plain `from_pretrained`."""

import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTForImageClassification

from hf_nullspace.models.image_size import change_image_size
from hf_nullspace.models.loading import ModelArguments, load_model


class SizedHead(ViTForImageClassification):
    def __init__(self, config):
        super().__init__(config)
        self.pool = nn.Linear(config.image_size, 1)


@torch.no_grad()
def logits_of(model, size, **options):
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return model(pixels, **options).logits


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20.0, initializer_range=0.2)


def test_same_size_is_the_identity(model):
    resized = change_image_size(model, 16)
    assert resized is not model
    for name, weight in model.state_dict().items():
        assert torch.equal(resized.state_dict()[name], weight), name


@pytest.mark.parametrize("size", [8, 24, 32])
def test_logits_are_those_of_transformers_interpolation(model, size):
    resized = change_image_size(model, size)
    expected = logits_of(model, size, interpolate_pos_encoding=True)
    torch.testing.assert_close(logits_of(resized, size), expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("size", [8, 24])
def test_only_positions_change(model, size):
    resized = change_image_size(model, size)
    changed = [
        name for name, weight in resized.state_dict().items() if not torch.equal(weight, model.state_dict()[name])
    ]
    assert changed == ["vit.embeddings.position_embeddings"]
    positions, before = (one.vit.embeddings.position_embeddings for one in (resized, model))
    assert positions.shape == (1, (size // 8) ** 2 + 1, 32)
    assert torch.equal(positions[:, 0], before[:, 0])
    assert (resized.config.image_size, model.config.image_size) == (size, 16)


def test_saved_model_loads_plainly(model, tmp_path):
    resized = change_image_size(model, 24)
    resized.save_pretrained(tmp_path)
    loaded = ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.image_size == 24
    assert torch.equal(logits_of(loaded, 24), logits_of(resized, 24))


@pytest.mark.parametrize("is_training", [False, True])
def test_mode_and_dtype_are_kept(model, is_training):
    resized = change_image_size(model.to(torch.bfloat16).train(is_training), 24)
    assert {weight.dtype for weight in resized.parameters()} == {torch.bfloat16}
    assert resized.training is is_training


@pytest.mark.parametrize("size", [0, -16])
def test_bad_size_is_refused(model, size):
    with pytest.raises(ValueError, match=f"`image_size` .*{size}"):
        change_image_size(model, size)


@pytest.mark.parametrize(("size", "near"), [(20, "16 or 24"), (4, "8 or 16"), (31, "24 or 32")])
def test_sizes_that_patches_do_not_fill_are_refused(model, size, near):
    with pytest.raises(ValueError, match=f"must be a multiple of 8 pixels.*got {size}. Give {near}"):
        change_image_size(model, size)


def test_model_without_image_size_is_refused():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2)
    with torch.random.fork_rng():
        model = ResNetForImageClassification(config)
    with pytest.raises(ValueError, match="ResNetForImageClassification has no `image_size`"):
        change_image_size(model, 64)


def test_other_weight_of_another_shape_is_refused(model):
    with torch.random.fork_rng():
        sized = SizedHead(model.config)
    with pytest.raises(ValueError, match=r"pool.weight has shape \(1, 16\) at 16 .*\(1, 24\) at 24"):
        change_image_size(sized, 24)


def test_positions_off_a_square_grid_are_refused(model):
    model.vit.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match="position_embeddings has 3 positions, which are no square grid"):
        change_image_size(model, 24)


SIZES = {"clip": transformers.CLIPImageProcessorPil, "convnext": transformers.ConvNextImageProcessorPil}


@pytest.mark.parametrize("processor_class", [*SIZES.values(), transformers.ViTImageProcessorPil], ids=[*SIZES, "vit"])
def test_the_image_processor_follows(make_vit, tmp_path, processor_class):
    make_vit().save_pretrained(tmp_path)
    processor_class().save_pretrained(tmp_path)
    model, processor = load_model(ModelArguments(str(tmp_path), image_size=24))
    assert model.config.image_size == 24
    picture = Image.new("RGB", (60, 45))
    assert processor([picture], return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 24)


def test_image_processors_of_a_fixed_size_are_refused(make_vit, tmp_path):
    make_vit().save_pretrained(tmp_path)
    transformers.ViTImageProcessorPil(do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTImageProcessorPil cannot be set to pictures of 24x24.*none of one size"):
        load_model(ModelArguments(str(tmp_path), image_size=24))
