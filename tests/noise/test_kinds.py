"""One noise for all images, and one of its own for each: what both kinds answer, and closed forms of a step up the loss."""

import math

import pytest
import torch

from hf_nullspace.noise.controls import permuted_control
from hf_nullspace.noise.kinds import DrawnNoise, SharedNoise, ascend_in_axes, draw_in_axes
from hf_nullspace.noise.methods.axes import harmless_axes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def axes():
    """Large in a few directions, as measured ones are, and without hidden-axis mean."""
    gradients = torch.randn(40, 32, generator=generator(9)) * torch.logspace(-2, 1, 32)
    return harmless_axes(gradients.T @ gradients)


def test_draws_share_their_norm_and_nothing_else(axes):
    noise = draw_in_axes(axes, 50, 4, 2.5, generator())
    assert noise.shape == (50, 4, 32)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((50,), 2.5))
    assert noise.mean(-1).abs().max() < 1e-6
    cosines = torch.nn.functional.normalize(noise.flatten(1), dim=1)
    cosines = (cosines @ cosines.T)[~torch.eye(50, dtype=bool)]
    assert cosines.mean().abs() < 0.01
    assert torch.equal(noise, draw_in_axes(axes, 50, 4, 2.5, generator()))
    torch.testing.assert_close(noise, draw_in_axes(7 * axes, 50, 4, 2.5, generator()))


def test_draws_spread_as_the_axes_do(axes):
    """The second moment over the hidden axis is that of the axes, of whatever scale."""
    noise = draw_in_axes(axes, 4000, 16, 1.0, generator()).flatten(0, 1)
    found, expected = noise.T @ noise, axes.T @ axes
    found, expected = found / found.trace(), expected / expected.trace()
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_an_image_keeps_its_noise(axes):
    draws = DrawnNoise(draw_in_axes(axes, 1, 4, 1.5, generator(3)), axes).keyed(42, 3)
    noise = draws.at(torch.arange(6))
    assert torch.equal(noise[[5, 2]], draws.at(torch.tensor([5, 2])))
    torch.testing.assert_close(draws.scaled(2.0).at(torch.arange(6)), 2 * noise)
    assert not torch.isclose(noise[0], draws.keyed(42, 4).at(torch.arange(1))[0]).any()
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((6,), 1.5))
    assert draws.at(torch.arange(0)).shape == (0, 4, 32)


def test_a_shared_noise_is_itself_wherever_it_is_asked_for():
    tensor = torch.randn(1, 4, 32, generator=generator(1))
    noise = SharedNoise(tensor)
    for found in (noise.draw(8, generator()), noise.at(torch.arange(8)), noise.keyed(42, 3).tensor):
        assert torch.equal(found, tensor)
    assert torch.equal(noise.scaled(0.5).tensor, 0.5 * tensor)
    assert torch.equal(noise.control(permuted_control, generator()).tensor, permuted_control(tensor, generator()))
    with pytest.raises(TypeError, match="cannot move up the loss of each"):
        noise.ascend(tensor, tensor, 3.0)


@pytest.mark.parametrize("is_drawn", [False, True])
def test_its_tensors_make_it_again(axes, is_drawn):
    tensor = draw_in_axes(axes, 1, 4, 1.5, generator(3))
    noise = DrawnNoise(tensor, axes) if is_drawn else SharedNoise(tensor)
    again = type(noise).from_tensors(noise.tensors())
    assert noise.is_drawn is is_drawn
    assert torch.equal(again.draw(5, generator()), noise.draw(5, generator()))
    with pytest.raises(ValueError, match=r"is made of the tensors \['axes', 'noise'\], but got|\['noise'\], but got"):
        type(noise).from_tensors({"other": tensor})


def test_axes_of_another_hidden_size_are_refused(axes):
    with pytest.raises(ValueError, match=r"`axes` must have shape \(16, 16\).*\(32, 32\)"):
        DrawnNoise.from_tensors({"noise": torch.ones(1, 4, 16), "axes": axes})


def test_the_control_of_draws_prefers_no_direction(axes):
    draws = DrawnNoise(draw_in_axes(axes, 1, 4, 1.5, generator(3)), axes)
    control = draws.control(permuted_control, generator(4))
    noise = control.draw(4000, generator(5))
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((4000,), 1.5))
    values = torch.linalg.eigvalsh(noise.flatten(0, 1).T @ noise.flatten(0, 1))
    assert values[0].abs() < 1e-3 * values[1] and values[1] > 0.8 * values[-1]  # the mean, and 31 alike


def test_a_step_in_equal_axes_goes_along_the_gradient():
    noise, gradient = torch.randn(2, 3, 4, 32, generator=generator()).unbind(0)
    moved = ascend_in_axes(noise, gradient, 5 * torch.eye(32), 3.0)
    for before, after, slope in zip(noise, moved, gradient, strict=True):
        expected = before + 3 / math.sqrt(4 * 32) * before.norm() * slope / slope.norm()
        torch.testing.assert_close(after, expected * before.norm() / expected.norm())


def test_a_step_is_counted_in_standard_deviations_of_the_draws(axes):
    """One step changes a linear loss by what a draw of one standard deviation does."""
    gradient = torch.randn(1, 64, 32, generator=generator(1))
    noise = draw_in_axes(axes, 2000, 64, 3.0, generator(2))
    losses = (noise * gradient).sum((1, 2))
    for deviations in (0.5, 2.0):
        moved = ascend_in_axes(noise, gradient.expand_as(noise), axes, deviations)
        torch.testing.assert_close(moved.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1))
        change = ((moved * gradient).sum((1, 2)) - losses).mean()
        assert change.item() == pytest.approx(deviations * losses.std().item(), rel=0.05)


def test_a_step_stays_in_the_axes():
    """What the axes do not reach, no gradient moves the noise to."""
    axes = torch.diag(torch.cat([torch.ones(8), torch.zeros(24)]))
    noise = draw_in_axes(axes, 3, 4, 1.0, generator())
    moved = ascend_in_axes(noise, torch.randn(3, 4, 32, generator=generator(1)), axes, 5.0)
    assert (moved[..., 8:] == 0).all() and not torch.isclose(moved[..., :8], noise[..., :8]).all()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_image_without_a_gradient_keeps_its_noise(axes, value):
    noise = draw_in_axes(axes, 2, 4, 1.0, generator())
    gradient = torch.randn(2, 4, 32, generator=generator(1))
    gradient[0] = value
    moved = ascend_in_axes(noise, gradient, axes, 3.0)
    torch.testing.assert_close(moved[0], noise[0])
    assert (moved[1] - noise[1]).norm() > 0.1
