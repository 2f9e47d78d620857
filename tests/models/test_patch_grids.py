"""Patch grids: not square, of several image sizes, with further tokens, and noise taken from one grid to another."""

import pytest
import torch
from model_types import DINO, MODEL_TYPES, NAFLEX, TEXT
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Siglip2Config,
    Siglip2ForImageClassification,
)
from whole_path import draw_model, make_trainer

from hf_nullspace import (
    NullspaceConfig,
    NullspaceDataCollator,
    PatchNullspace,
    inject_noise,
    measure_noise,
    resize_noise,
    synthesize_noise,
)


CONFIG = NullspaceConfig(max_steps=4, num_images=8, num_certificate_images=8)


def pixels_of(height, width, count=16):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def batches_of(height, width):
    return [{"pixel_values": chunk} for chunk in pixels_of(height, width).split(8)]


@torch.no_grad()
def logits_of(model, pixels, **options):
    return model(pixels, **options).logits


@pytest.fixture
def dinov2():
    return draw_model(Dinov2ForImageClassification, Dinov2Config(**DINO, num_labels=3))


@pytest.fixture
def noise():
    return torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))


# ---- Resizing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (5, 3), (1, 1)])
def test_resized_as_transformers_resizes_positions(make_vit, grid):
    """ViT's own interpolation, taken for the noise."""
    embeddings = make_vit(initializer_range=0.2).vit.embeddings
    positions = embeddings.position_embeddings.detach()
    height, width = 8 * grid[0], 8 * grid[1]
    tokens = torch.zeros(1, 1 + grid[0] * grid[1], 32)
    expected = embeddings.interpolate_pos_encoding(tokens, height, width)[:, 1:].detach()
    torch.testing.assert_close(resize_noise(positions[:, 1:], grid), expected, rtol=0, atol=1e-6)


def test_resizing_keeps_constants_the_hidden_mean_and_its_own_grid(noise):
    assert resize_noise(noise, (2, 2)) is noise
    torch.testing.assert_close(resize_noise(torch.full((1, 6, 5), 3.0), (7, 4), (2, 3)), torch.full((1, 28, 5), 3.0))
    centred = noise - noise.mean(-1, keepdim=True)
    assert resize_noise(centred, (5, 3)).mean(-1).abs().max() < 1e-6


def test_resizing_goes_row_by_row():
    """A ramp over the rows of a 4 x 2 grid stays one: equal along each row."""
    ramp = torch.arange(4.0).repeat_interleave(2).view(1, 8, 1)
    rows = resize_noise(ramp, (8, 3), (4, 2)).view(8, 3)
    torch.testing.assert_close(rows, rows[:, :1].expand(8, 3))
    assert (rows[:, 0].diff() > 0).all()


@pytest.mark.parametrize(("old_grid", "text"), [(None, "2 x 2"), ((2, 4), "2 x 4")])
def test_noise_of_another_grid_than_said_is_refused(old_grid, text):
    with pytest.raises(ValueError, match=rf"\(1, 6, 8\) is no grid of {text}.*`old_grid`"):
        resize_noise(torch.zeros(1, 6, 8), (3, 3), old_grid)


def test_noise_of_another_grid_is_refused_by_default_and_resized_by_choice(make_vit, noise):
    model, pixels, options = make_vit(classifier_scale=20.0), pixels_of(24, 32), {"interpolate_pos_encoding": True}
    with pytest.raises(ValueError, match=r"\(1, 4, 32\).*\(16, 32, 3, 4\).*`inject_noise\(..., resize=True\)`"):
        with inject_noise(model, noise[:1]):
            logits_of(model, pixels, **options)
    with inject_noise(model, resize_noise(noise[:1], (3, 4))):
        expected = logits_of(model, pixels, **options)
    with inject_noise(model, noise[:1], resize=True):
        assert torch.equal(logits_of(model, pixels, **options), expected)
        own_size = logits_of(model, pixels_of(16, 16))
    with inject_noise(model, noise[:1]):
        assert torch.equal(logits_of(model, pixels_of(16, 16)), own_size)
    assert (expected - logits_of(model, pixels, **options)).abs().max() > 0.1


def test_patches_in_a_row_are_not_resized():
    config = Siglip2Config(vision_config=NAFLEX, text_config=TEXT, num_labels=3)
    model = draw_model(Siglip2ForImageClassification, config)
    shapes = {"spatial_shapes": torch.tensor([[2, 2]]), "pixel_attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match="9 patches cannot be resized to 4.*without their grid.*`resize_noise`"):
        with inject_noise(model, torch.zeros(1, 9, 16), resize=True):
            logits_of(model, torch.zeros(1, 4, 192), **shapes)


# ---- Grids that are not square, and several image sizes ---------------------------------------------------------


def test_a_grid_that_is_not_square(make_vit):
    model, pixels = make_vit(classifier_scale=20.0, image_size=[16, 24]), pixels_of(16, 24)
    noise = synthesize_noise(model, batches_of(16, 24), CONFIG, disable_tqdm=True)
    assert noise.tensor.shape == (1, 6, 32)
    assert noise.certificate.is_within_epsilon
    exact = PatchNullspace.from_model(model).sample(1, norm=50.0)
    assert exact.shape == (1, 3, 16, 24)
    clean = logits_of(model, pixels)
    assert (logits_of(model, pixels + exact) - clean).abs().max() < 1e-4
    with inject_noise(model, torch.zeros(1, 4, 32)):
        with pytest.raises(ValueError, match=r"\(1, 4, 32\).*\(16, 32, 2, 3\)"):
            logits_of(model, pixels)


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (8, 24)])
def test_a_model_that_interpolates_takes_any_size(dinov2, size):
    noise = synthesize_noise(dinov2, batches_of(*size), CONFIG, disable_tqdm=True)
    assert noise.tensor.shape == (1, size[0] // 8 * (size[1] // 8), 16)
    assert noise.certificate.is_within_epsilon
    assert measure_noise(dinov2, noise, batches_of(*size)).probability_mse < 2 * CONFIG.epsilon


def test_noise_is_measured_at_another_size_after_resizing(dinov2):
    noise = synthesize_noise(dinov2, batches_of(16, 16), CONFIG, disable_tqdm=True)
    resized = resize_noise(noise.tensor, (3, 3))
    certificate = measure_noise(dinov2, resized, batches_of(24, 24))
    with inject_noise(dinov2, noise.tensor, resize=True):
        noisy = logits_of(dinov2, pixels_of(24, 24))
    change = noisy.softmax(-1) - logits_of(dinov2, pixels_of(24, 24)).softmax(-1)
    assert certificate.probability_mse == pytest.approx(change.square().sum(-1).mean().item(), rel=1e-3)


def test_images_of_two_sizes_at_once_are_refused(dinov2):
    mixed = batches_of(16, 16)[:1] + batches_of(24, 24)[:1]
    with pytest.raises(ValueError, match=r"\(3, 16, 16\), \(3, 24, 24\).*resize=True"):
        synthesize_noise(dinov2, mixed, CONFIG, disable_tqdm=True)


def test_training_at_another_size_than_the_config(dinov2, make_examples, tmp_path):
    examples = make_examples(16, size=24, num_labels=3)
    trainer = make_trainer(dinov2, examples, str(tmp_path))
    trainer.train()
    assert dinov2.config.image_size == 16
    assert trainer.noise.tensor.shape == (1, 9, 16)
    assert trainer.noise.is_usable


# ---- Tokens that are no patches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig(**DINO, num_labels=3)),
        (DeiTForImageClassificationWithTeacher, DeiTConfig(**MODEL_TYPES["deit"].config, num_labels=3)),
    ],
    ids=["cls and registers", "cls and distillation"],
)
def test_noise_lies_on_the_patches_alone(model_class, config):
    model = draw_model(model_class, config)
    tokens = []
    base = getattr(model, model.base_model_prefix)
    base.embeddings.register_forward_hook(lambda module, args, output: tokens.append(output))
    noise = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    clean = logits_of(model, pixels_of(16, 16))
    with inject_noise(model, noise):
        noisy = logits_of(model, pixels_of(16, 16))
    added = tokens[1] - tokens[0]
    assert added.shape[1] > 4
    torch.testing.assert_close(added[:, -4:], noise.expand(16, -1, -1), rtol=0, atol=1e-5)
    assert not added[:, :-4].any()
    assert (noisy - clean).abs().max() > 0.01


def test_collator_keeps_what_belongs_to_cut_patches(make_examples):
    shapes = {"pixel_attention_mask": torch.ones(4, dtype=torch.long), "spatial_shapes": torch.tensor([2, 2])}
    examples = [{"pixel_values": torch.zeros(4, 12), **shapes} for _ in range(3)]
    batch = NullspaceDataCollator()(examples)
    assert batch["pixel_attention_mask"].tolist() == [[1] * 4] * 3
    assert batch["spatial_shapes"].tolist() == [[2, 2]] * 3
    assert set(NullspaceDataCollator()(make_examples(3))) == {"pixel_values", "labels"}
