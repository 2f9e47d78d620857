"""FGSM against its formula, inside its ball and inside the pixel box."""

import pytest
import torch
from transformers import ViTImageProcessorPil

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import fgsm


@pytest.fixture
def model(make_vit):
    model = make_vit(classifier_scale=20.0)
    return PixelModel(model, ViTImageProcessorPil(size={"height": 16, "width": 16}))


@pytest.fixture
def pixels():
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels[0], pixels[1] = 0.0, 1.0
    return pixels


@pytest.fixture
def labels(model, pixels):
    with torch.no_grad():
        return model(pixels).argmax(-1)


@pytest.mark.parametrize("epsilon", [0.0, 2 / 255, 8 / 255, 0.6])
def test_stays_in_the_ball_and_the_box(model, pixels, labels, epsilon):
    attacked = fgsm(model, pixels, labels, epsilon)
    assert (attacked - pixels).abs().max() <= epsilon + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert not attacked.requires_grad


def test_equals_the_formula(model, pixels, labels):
    clean = pixels.clone().requires_grad_()
    normalised = (clean - 0.5) / 0.5
    log_probabilities = model.model(normalised).logits.log_softmax(-1)
    (-log_probabilities[range(6), labels].sum()).backward()
    expected = (pixels + 8 / 255 * clean.grad.sign()).clamp(0, 1)
    is_clear = clean.grad.abs() > 1e-6
    assert is_clear.float().mean() > 0.9
    attacked = fgsm(model, pixels, labels)
    torch.testing.assert_close(attacked[is_clear], expected[is_clear], rtol=0, atol=1e-6)


def test_raises_the_loss_of_every_picture(model, pixels, labels):
    attacked = fgsm(model, pixels, labels, 2 / 255)
    with torch.no_grad():
        before, after = (
            torch.nn.functional.cross_entropy(model(images), labels, reduction="none") for images in (pixels, attacked)
        )
    assert (after > before).all()


def test_leaves_no_gradient(model, pixels, labels):
    fgsm(model, pixels, labels)
    assert pixels.grad is None
    assert not pixels.requires_grad
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == []
