"""How far along the clean gradient is as hard as along the noise's own: closed forms."""

import pytest
import torch

from hf_nullspace.noise.kinds import DrawnNoise, all_directions
from hf_nullspace.training.noise_ascent import MULTIPLES, loss_gradient, losses_of_ascents, matching_ascent


@pytest.fixture
def noise():
    return DrawnNoise(torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)), all_directions(8))


def test_a_linear_loss_has_one_gradient(noise):
    """Where the gradient is the same everywhere, the clean one is as good, at the same distance."""
    weight = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    draws = noise.draw(3, torch.Generator().manual_seed(2))
    losses = losses_of_ascents(lambda given: (weight * given).sum() / 3, noise, draws, 2.0)
    assert len(losses) == 2 + len(MULTIPLES) and losses[1] == losses[2]
    expected = (weight * noise.ascend(draws, weight, 4.0)).sum() / 3
    assert losses[3].item() == pytest.approx(expected.item(), rel=1e-6)
    assert matching_ascent(losses.tolist(), 2.0) == (2.0, 1.0)


def test_a_gradient_that_points_nowhere_reaches_no_share_of_the_rise(noise):
    """A loss even in the noise is flat at the clean images."""
    draws = noise.draw(3, torch.Generator().manual_seed(2))
    weight = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    losses = losses_of_ascents(lambda given: (weight * given).sum((1, 2)).square().sum(), noise, draws, 2.0)
    assert losses[2:].tolist() == [losses[0].item()] * len(MULTIPLES)
    ascent, rise = matching_ascent(losses.tolist(), 2.0)
    assert rise == 0.0 and ascent == 2.0


@pytest.mark.parametrize(
    "losses, expected",
    [
        ([1.0, 2.0, 2.0, 3.0, 4.0, 5.0], (3.0, 1.0)),
        ([1.0, 2.0, 1.4, 1.8, 2.2, 2.6], (7.5, 1.0)),
        ([1.0, 2.0, 1.5, 1.6, 1.75, 1.7], (9.0, 0.75)),  # the best of what was measured
        ([1.0, 2.0, 3.0, 4.0, 4.0, 4.0], (1.5, 1.0)),
        ([1.0, 0.9, 3.0, 4.0, 4.0, 4.0], (3.0, 1.0)),  # no rise to match
        ([1.0, 2.0, float("nan"), 4.0, 4.0, 4.0], (3.0, 1.0)),
    ],
)
def test_the_loss_is_interpolated(losses, expected):
    assert matching_ascent(losses, 3.0) == pytest.approx(expected)


def test_the_scale_of_a_loss_scales_its_gradient_alone():
    noise = torch.ones(2, 1, 3)
    loss, gradient = loss_gradient(lambda given: given.square().sum(), noise, lambda loss: 8 * loss)
    assert loss == 6 and torch.equal(gradient, torch.full((2, 1, 3), 16.0)) and not noise.requires_grad
