"""The inner maximisation: in the ball, in the box, up the loss."""

import pytest
import torch
from torch.nn import functional

from hf_nullspace.baselines.adversarial import LinfAscent, divergence_loss, gaussian_start, scaled_rows, uniform_start
from hf_nullspace.models.objectives import kl_divergence


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
EPSILON = 8 / 255


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture
def pictures():
    """Pixels in [0, 1], some of them on its bounds."""
    return (1.2 * torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.1).clamp(0, 1)


def normalise(pictures):
    return (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def pixels_of(images):
    return images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def maximized(name, ascent, logits_of, images, labels):
    """The examples that the trainer of that name makes."""
    generator = torch.Generator().manual_seed(1)
    if name == "trades":
        return ascent.maximize(divergence_loss(logits_of, images), images, gaussian_start(images, generator))

    def loss_of(images):
        return functional.cross_entropy(scaled_rows(logits_of(images)), labels, reduction="sum")

    return ascent.maximize(loss_of, images, uniform_start(ascent.epsilon, images, generator))


def examples_of(name, model, images, epsilon=EPSILON, steps=3, step_size=None):
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    ascent = LinfAscent(MEAN, STD, epsilon, steps, step_size)
    return maximized(name, ascent, lambda images: model(images).logits, images, torch.arange(8) % 5)


NAMES = pytest.mark.parametrize("name", ["pgd", "trades"])


@NAMES
@pytest.mark.parametrize("step_size", [None, 1.0])
def test_examples_are_pictures_within_the_radius(model, pictures, name, step_size):
    found = pixels_of(examples_of(name, model, normalise(pictures), step_size=step_size))
    change = (found - pictures).abs()
    assert change.max() <= EPSILON + 1e-6
    assert change.max() > EPSILON - 1e-5
    assert -1e-6 <= found.min() and found.max() <= 1 + 1e-6


@NAMES
def test_steps_raise_the_loss(model, pictures, name):
    images, labels = normalise(pictures), torch.arange(8) % 5
    clean = model(images).logits

    @torch.no_grad()
    def loss_after(steps):
        with torch.enable_grad():
            examples = examples_of(name, model, images, steps=steps)
        logits = model(examples).logits
        return (
            functional.cross_entropy(logits, labels) if name == "pgd" else kl_divergence(clean, logits).mean()
        ).item()

    before = functional.cross_entropy(clean, labels).item() if name == "pgd" else 0.0
    losses = [before, *(loss_after(steps) for steps in (3, 20))]
    assert losses[0] + 0.05 < losses[1] < losses[2], losses


@NAMES
def test_one_step_from_the_start_is_the_sign_of_the_gradient(model, pictures, name):
    """In the middle of the box, with a step that reaches no bound."""
    images, labels, epsilon, step = normalise(0.4 + 0.2 * pictures), torch.arange(8) % 5, 0.1, 0.01
    start = examples_of(name, model, images, epsilon, steps=1, step_size=0.0).requires_grad_()
    logits = model(start).logits
    loss = (
        functional.cross_entropy(logits, labels)
        if name == "pgd"
        else kl_divergence(model(images).logits, logits).sum()
    )
    (gradient,) = torch.autograd.grad(loss, start)
    inside = (pixels_of(start.detach()) - pixels_of(images)).abs() < epsilon - step
    found = pixels_of(examples_of(name, model, images, epsilon, steps=1, step_size=step)) - pixels_of(start.detach())
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(found[inside], (step * gradient.sign())[inside], rtol=0, atol=1e-6)


def test_starts_are_spread_as_they_should_be(model, pictures):
    images = normalise(0.4 + 0.2 * pictures)
    pgd, trades = (
        pixels_of(examples_of(name, model, images, 0.1, steps=1, step_size=0.0)) - pixels_of(images)
        for name in ("pgd", "trades")
    )
    assert pgd.abs().max() == pytest.approx(0.1, rel=0.01)
    assert pgd.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert trades.std().item() == pytest.approx(0.001, rel=0.03)


@NAMES
def test_radius_zero_gives_the_images_themselves(model, pictures, name):
    assert torch.equal(examples_of(name, model, normalise(pictures), epsilon=0.0), normalise(pictures))


def test_images_normalised_otherwise_are_refused(model, pictures):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        examples_of("pgd", model, 3 * normalise(pictures))


@NAMES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_examples_as_hard(make_vit, name, dtype):
    """
    A classifier so sure of itself that its gradients underflow in float16; scaled, they are as good as rounding leaves
    them: within 4 of 64 images. (The trainers leave float16 for the attack.)
    """
    model, generator = make_vit(classifier_scale=40, initializer_range=0.2), torch.Generator().manual_seed(0)
    images = normalise(torch.rand(64, 3, 16, 16, generator=generator))
    ascent = LinfAscent(MEAN, STD, EPSILON, 10, EPSILON / 4)
    with torch.no_grad():
        labels = model(images).logits.argmax(-1)

    def accuracy(enabled):
        def logits_of(images):
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                return model(images).logits

        found = maximized(name, ascent, logits_of, images, labels)
        with torch.no_grad():
            return 100 * (model(found).logits.argmax(-1) == labels).float().mean().item()

    assert abs(accuracy(True) - accuracy(False)) <= 100 * 4 / 64


def test_a_row_of_a_gradient_is_scaled_by_a_power_of_two_alone():
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    weights = torch.tensor([[3e-9, -1e-9], [0.0, 0.0], [700.0, 5.0]])
    (gradient,) = torch.autograd.grad((scaled_rows(logits) * weights).sum(), logits)
    assert gradient[1].tolist() == [0.0, 0.0] and (gradient[[0, 2]].abs().amax(1) - 0.75).abs().max() <= 0.25
    factor = (gradient / weights)[[0, 2]].log2()
    assert torch.equal(factor, factor.round()) and torch.equal(factor[:, 0], factor[:, 1])
