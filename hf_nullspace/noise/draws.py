"""A noise of its own for every image: drawn at random in given axes, and moved up the loss within them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.random import keyed_generator


def draw_in_axes(
    axes: torch.Tensor, count: int, num_patches: int, norm: float, generator: torch.Generator
) -> torch.Tensor:
    """
    Random noises along `axes`, all of one norm and with nothing else in common.

    Args:
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): See [`~sensitivity.harmless_axes`]; of any scale.
        count (`int`): How many.
        num_patches (`int`): Tokens of each, drawn independently.
        norm (`float`): Norm of each.
        generator (`torch.Generator`): A CPU generator.

    Returns:
        `torch.Tensor` of shape `(count, num_patches, hidden_size)` on the device of `axes`.
    """
    coordinates = torch.randn(count, num_patches, len(axes), generator=generator)
    noise = coordinates.to(axes) @ axes
    return noise * (norm / noise.flatten(1).norm(dim=1).clamp_min(torch.finfo(noise.dtype).tiny)).view(-1, 1, 1)


@dataclass(frozen=True)
class ImageNoise:
    """
    A noise of its own for each of some images, the same at every call and on every process.

    Args:
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): As in [`draw_in_axes`].
        num_patches (`int`): Tokens of each noise.
        norm (`float`): Norm of each noise.
        key (`tuple`): What the draws depend on, beside the image's place.
    """

    axes: torch.Tensor
    num_patches: int
    norm: float
    key: tuple[Any, ...]

    def __rmul__(self, scale: float) -> ImageNoise:
        return dataclasses.replace(self, norm=scale * self.norm)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """The noises of the images at these places, of shape `(len(positions), num_patches, hidden_size)`."""
        generators = [keyed_generator("image noise", *self.key, place) for place in positions.tolist()]
        draws = [draw_in_axes(self.axes, 1, self.num_patches, self.norm, own) for own in generators]
        return torch.cat([self.axes.new_zeros(0, self.num_patches, len(self.axes)), *draws])


def ascend_in_axes(noise: torch.Tensor, gradient: torch.Tensor, axes: torch.Tensor, deviations: float) -> torch.Tensor:
    """
    Each image's noise, moved up its loss inside the distribution it was drawn from, at the norm it had.

    To first order a draw changes the loss by a normal variable, whatever the number of dimensions. So a step is counted
    in standard deviations of the draws: 3 makes a noise as hard as the worst of about 700 draws, for one gradient.

    Args:
        noise (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): Draws of [`draw_in_axes`].
        gradient (`torch.Tensor` of the same shape): Gradient of each image's loss; its scale does not matter. An image
            whose gradient is zero or not finite keeps its noise.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): The axes of the draws.
        deviations (`float`): Size of the step.

    Returns:
        `torch.Tensor` of the shape of `noise`.
    """
    axes = axes * (math.sqrt(len(axes)) / axes.norm())
    coordinates = torch.nan_to_num(gradient @ axes.T, nan=0.0, posinf=0.0, neginf=0.0)
    direction = torch.nn.functional.normalize(coordinates.flatten(1), dim=1).view_as(coordinates) @ axes
    norms = noise.flatten(1).norm(dim=1).view(-1, 1, 1)
    moved = noise + deviations / math.sqrt(noise[0].numel()) * norms * direction
    return moved * (norms / moved.flatten(1).norm(dim=1).clamp_min(torch.finfo(noise.dtype).tiny).view(-1, 1, 1))
