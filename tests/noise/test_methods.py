"""The searches for noise: those at the boundary of epsilon against closed forms, the paper's against a written-out loop."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_nullspace import NullspaceConfig, inject_noise
from hf_nullspace.models.frozen import FrozenClassifier, frozen
from hf_nullspace.noise.images import read_images
from hf_nullspace.noise.methods import NOISE_METHODS
from hf_nullspace.noise.methods.base import SearchInputs
from hf_nullspace.noise.methods.scaling import boundary_scale
from hf_nullspace.noise.methods.steps import distance_gradient, token_limits


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=2.0, initializer_range=0.2)


@pytest.fixture
def pixels(make_batches):
    return make_batches(32, 32)[0]["pixel_values"]


def search(method, model, pixels, batch_size=32, **changes):
    """The noise, its steps, and how often it reported one."""
    reported = []
    with frozen(model):
        classifier = FrozenClassifier(model)
        images = read_images(classifier, [{"pixel_values": chunk} for chunk in pixels.split(batch_size)], len(pixels))
        inputs = SearchInputs(
            classifier,
            images,
            NullspaceConfig(method=method, **changes),
            torch.Generator().manual_seed(0),
            lambda: reported.append(1),
        )
        found, steps = NOISE_METHODS[method].search(inputs)
    noise = found.tensor
    assert noise.shape == (1, 4, 32)
    assert noise.isfinite().all()
    return noise.detach(), steps, len(reported)


def start_of_paper(limit):
    start = torch.empty(1, 4, 32).uniform_(-limit, limit, generator=torch.Generator().manual_seed(0))
    return start - start.mean(-1, keepdim=True)


def logits_under(model, pixels, noise):
    with inject_noise(model, noise):
        return model(pixels).logits


@torch.no_grad()
def mse_by_hand(model, pixels, noise):
    change = logits_under(model, pixels, noise).softmax(-1) - model(pixels).logits.softmax(-1)
    return (change**2).sum(-1).mean().item()


def test_gradient_is_that_of_the_distance(model, pixels):
    noise = start_of_paper(1.0)
    with frozen(model):
        classifier = FrozenClassifier(model)
        (batch,) = read_images(classifier, [{"pixel_values": pixels}], 32).batches()
        step = distance_gradient(classifier, batch, noise)
    variable = noise.clone().requires_grad_()
    change = logits_under(model, pixels, variable) - model(pixels).logits
    expected = (change**2).sum(-1).sqrt().mean()
    (expected_gradient,) = torch.autograd.grad(expected, variable)
    torch.testing.assert_close(step.gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert step.distance.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.mse.item() == pytest.approx(mse_by_hand(model, pixels, noise), rel=1e-4)


@pytest.mark.parametrize("norm_weight", [0.0, 0.05])
def test_paper_search_equals_the_written_out_loop(model, pixels, norm_weight):
    settings = {"noise_limit": 1.0, "max_steps": 60, "epsilon": 0.003, "norm_weight": norm_weight}
    noise, steps, reported = search("paper", model, pixels, **settings)

    clean = model(pixels).logits.detach()
    expected, expected_steps = start_of_paper(1.0).requires_grad_(), 0
    optimizer = torch.optim.AdamW([expected], lr=0.1, weight_decay=0.0)
    while expected_steps < 60 and mse_by_hand(model, pixels, expected.detach()) > 0.003:
        distance = (logits_under(model, pixels, expected) - clean).norm(dim=-1).mean()
        objective = distance - norm_weight * expected.norm().log()
        (expected.grad,) = torch.autograd.grad(objective, expected)
        optimizer.step()
        expected.data -= expected.data.mean(-1, keepdim=True)
        expected_steps += 1
    assert expected_steps >= 2
    assert steps == reported == expected_steps
    torch.testing.assert_close(noise, expected.detach(), rtol=0, atol=1e-3)


def test_paper_search_stops_before_its_first_step_within_epsilon(model, pixels):
    noise, steps, reported = search("paper", model, pixels, epsilon=2.0)
    assert steps == reported == 0
    torch.testing.assert_close(noise, start_of_paper(3.0), rtol=0, atol=1e-6)


def test_paper_norm_weight_makes_the_noise_larger(model, pixels):
    changes = {"noise_limit": 1.0, "max_steps": 40, "epsilon": 1e-6}
    plain, large = (search("paper", model, pixels, norm_weight=weight, **changes) for weight in (0.0, 3.0))
    assert plain[1] == large[1] == 40
    assert large[0].norm() > 1.2 * plain[0].norm()


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("epsilon", [0.003, 0.03])
def test_boundary_search_ends_near_epsilon(model, pixels, batch_size, epsilon):
    noise, steps, reported = search("boundary", model, pixels, batch_size, max_steps=40, epsilon=epsilon)
    assert steps == reported == 40
    assert epsilon / 3 <= mse_by_hand(model, pixels, noise) <= 3 * epsilon
    assert noise.mean(-1).abs().max() <= 1e-5 * noise.abs().max()


def test_boundary_search_finds_larger_noise_than_it_starts_from(model, pixels):
    norms = [search("boundary", model, pixels, max_steps=steps)[0].norm() for steps in (1, 60)]
    assert norms[1] > 2 * norms[0]


class HalfBlind(nn.Module):
    """A classifier that reads half of the hidden axis of its patch embeddings."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_channels=3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.projection, self.head = nn.Conv2d(3, 32, 8, 8), nn.Linear(16, 5)
        self.head.weight.data *= 20

    def forward(self, pixel_values):
        hidden = self.projection(pixel_values).flatten(2).mean(2)
        return SimpleNamespace(logits=self.head(hidden[:, :16]))


@pytest.mark.parametrize(("method", "share"), [("boundary", 0.001), ("sample", 0.01)])
def test_noise_avoids_the_directions_that_are_read(pixels, method, share):
    model = HalfBlind().eval()
    noise, _, _ = search(method, model, pixels)
    read = torch.linalg.qr(model.head.weight.detach().T)[0]
    seen = len(noise[0]) * (noise[..., :16].mean(1) @ read).square().sum()
    # The mean over 4 tokens, in 5 directions of 32: of a random noise, 4 % of its square.
    assert seen < share * noise.square().sum()


@pytest.mark.parametrize("ratio", [1.0, 1.5, 4.0])
def test_boundary_search_limits_tokens(model, pixels, ratio):
    tokens = search("boundary", model, pixels, max_steps=30, max_token_ratio=ratio)[0].norm(dim=-1)
    assert tokens.max() <= ratio * tokens.median() * (1 + 1e-5)


@pytest.mark.parametrize("head_scale", [0.0, 0.01])
def test_noise_for_a_model_that_ignores_its_input_stays_in_proportion(model, pixels, head_scale):
    model.classifier.weight.data.mul_(head_scale)
    noise, _, _ = search("boundary", model, pixels, max_steps=5)
    embeddings = model.vit.embeddings.patch_embeddings(pixels)
    assert noise.norm() == pytest.approx(10 * embeddings.square().sum((1, 2)).mean().sqrt().item(), rel=1e-4)


def test_an_epsilon_below_precision_gives_vanishing_noise(model, pixels):
    noise, _, _ = search("boundary", model, pixels, epsilon=1e-30, max_steps=5)
    assert torch.isfinite(noise).all()
    assert noise.norm() < 1e-3


def test_token_limits_by_hand():
    noise = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [6.0, 8.0], [2.0, 0.0]]])
    limited = noise * token_limits(noise, 1.5)
    expected = torch.tensor([[[1.8, 2.4], [0.0, 1.0], [0.0, 0.0], [1.8, 2.4], [2.0, 0.0]]])
    torch.testing.assert_close(limited, expected)


@pytest.mark.parametrize(
    "epsilon, max_scale, boundary",
    [
        (1e-8, 1.0, 1e-4),
        (0.0025, 1.0, 0.05),
        (0.9, 1.0, 0.9**0.5),
        (0.0025, 1e9, 0.05),
        (1e6, 1e9, 1e3),
        (9.0, 2.5, 2.5),
    ],
)
@pytest.mark.parametrize("tolerance", [0.02, 0.25])
def test_boundary_scale_of_a_square(epsilon, max_scale, boundary, tolerance):
    scale = boundary_scale(lambda scale: scale**2, epsilon, max_scale, tolerance)
    assert boundary / (1 + tolerance) * (1 - 1e-9) <= scale <= boundary * (1 + 1e-9)


def test_boundary_scale_within_the_bound_is_one():
    calls = []
    assert boundary_scale(lambda scale: calls.append(scale) or 0.03, 0.03) == 1.0
    assert calls == [1.0]


@pytest.mark.parametrize("max_scale, expected", [(0.3, [0.3]), (5.0, [1.0, 4.0, 5.0]), (4.0, [1.0, 4.0])])
def test_boundary_scale_goes_up_to_the_largest(max_scale, expected):
    tried = []
    assert boundary_scale(lambda scale: tried.append(scale) or 0.001 * scale**0.1, 0.03, max_scale) == max_scale
    assert tried == expected


@pytest.mark.parametrize("max_scale", [1.0, 10.0])
@pytest.mark.parametrize("error", [1.0, math.nan])
def test_boundary_scale_is_zero_where_nothing_fits(max_scale, error):
    assert boundary_scale(lambda scale: error, 0.5, max_scale) == 0.0


def test_boundary_search_backs_off_from_non_finite_logits(model, pixels, caplog):
    """A model that overflows above some noise still gets finite noise, and its user a warning."""

    limit = 1.5 * model.vit.embeddings.patch_embeddings(pixels).abs().max().item()

    def overflow(module, args, output):
        return output.masked_fill(output.abs() > limit, float("inf"))

    model.vit.embeddings.patch_embeddings.register_forward_hook(overflow)
    noise, _, _ = search("boundary", model, pixels, max_steps=30, epsilon=1.9)
    assert torch.isfinite(noise).all()
    assert "NaN or infinite logits in" in caplog.text
