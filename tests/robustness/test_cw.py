"""CW-L2 on a linear classifier, whose nearest misclassified picture is known in closed form."""

import pytest
import torch
from torch import nn

from hf_nullspace.robustness.attacks.cw import cw_l2


class Linear(nn.Module):
    """Two logits `(w.x + b, 0)` of grey 4x4 pictures."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(16, generator=torch.Generator().manual_seed(0)) / 2

    def forward(self, pixels):
        score = (pixels - 0.5).flatten(1) @ self.weight
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture
def setting():
    """Pictures at distance 0.1 to 0.4 from the boundary, at right angles to it."""
    model = Linear()
    distance = torch.linspace(0.1, 0.4, 6)
    direction = model.weight / model.weight.norm()
    pixels = 0.5 + (distance[:, None] * direction).view(6, 1, 4, 4)
    return model, pixels, torch.zeros(6, dtype=torch.long), distance


def test_distance_is_that_to_the_boundary(setting):
    model, pixels, labels, distance = setting
    attacked = cw_l2(model, pixels, labels, c=10, steps=300)
    assert (model(attacked).argmax(-1) == 1).all()
    found = (attacked - pixels).flatten(1).norm(dim=1)
    assert (found >= distance - 1e-5).all()
    torch.testing.assert_close(found, distance, rtol=0.03, atol=0.003)


def test_kappa_asks_for_a_margin(setting):
    model, pixels, labels, distance = setting
    attacked = cw_l2(model, pixels, labels, c=10, kappa=0.2, steps=300)
    assert (model(attacked)[:, 1] - model(attacked)[:, 0] >= 0.2 - 1e-5).all()
    expected = distance + 0.2 / model.weight.norm()
    torch.testing.assert_close((attacked - pixels).flatten(1).norm(dim=1), expected, rtol=0.03, atol=0.003)


def test_a_small_constant_fails_and_gives_the_nearest_try(setting):
    """`||d||^2 + c * (margin - |w| * ||d||)` has its minimum at `||d|| = c * |w| / 2`."""
    model, pixels, labels, distance = setting
    c = 0.1
    attacked = cw_l2(model, pixels, labels, c=c, steps=300)
    reach = c * model.weight.norm() / 2
    assert reach < distance[1]
    assert (model(attacked[1:]).argmax(-1) == 0).all()
    moved = (attacked - pixels).flatten(1).norm(dim=1)[1:]
    assert (moved >= 0.9 * reach).all()
    assert (model(attacked)[1:, 0] < model(pixels)[1:, 0]).all()


@pytest.mark.parametrize("options", [{"c": 0}, {"kappa": -1}, {"steps": 0}, {"learning_rate": 0}])
def test_settings_are_checked(setting, options):
    model, pixels, labels, _ = setting
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        cw_l2(model, pixels, labels, **options)
