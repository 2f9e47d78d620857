"""Sensitivity of the hidden axis against closed forms."""

import pytest
import torch

from hf_nullspace.noise.methods.axes import FLOOR, harmless_axes, hidden_moment


def test_moment_is_the_sum_over_images_and_tokens():
    gradients = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = sum(torch.outer(row, row) for image in gradients for row in image)
    torch.testing.assert_close(hidden_moment(gradients), expected)


def test_moment_of_no_images_is_zero():
    assert torch.equal(hidden_moment(torch.zeros(0, 4, 5)), torch.zeros(5, 5))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_each_eigendirection_is_divided_by_its_sensitivity(scale):
    values = torch.tensor([0.0, 0.5, 1.0, 2.5])  # of mean 1
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    axes = harmless_axes(scale * rotation @ values.diag() @ rotation.T)
    expected = rotation @ (1 / (values + FLOOR)).diag() @ rotation.T
    torch.testing.assert_close(axes, expected - expected.mean(-1, keepdim=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gradients", [torch.zeros(2, 3, 5), torch.eye(5)[None]])
def test_without_preferred_direction_only_the_mean_goes(gradients):
    coordinates = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    noise = coordinates @ harmless_axes(hidden_moment(gradients))
    torch.testing.assert_close(noise.mean(-1), torch.zeros(1, 4), rtol=0, atol=1e-6)
    centred = coordinates - coordinates.mean(-1, keepdim=True)
    torch.testing.assert_close(noise / noise.norm(), centred / centred.norm(), rtol=0, atol=1e-6)
