"""The two kinds of noise: one that all images share, and per-image noise that is drawn for each image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from ..utils.random import keyed_generator
from .certificate import remove_hidden_mean


# From noises of shape `(noises, num_patches, hidden_size)` and a CPU generator to others of the same shape and norms.
Control = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class Noise(Protocol):
    """
    The interface of a noise for patch embeddings, as certificates, training and controls use it.

    Attributes:
        is_drawn (`bool`): Whether the noise is per-image.
        tensor (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise, in units of the patch embeddings, or
            one of the noises that are drawn.
    """

    is_drawn: ClassVar[bool]
    tensor: torch.Tensor

    def draw(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        Noise for each image of a batch. Per-image noise differs with every call.

        Returns:
            `torch.Tensor` of shape `(1, num_patches, hidden_size)` if all images share it, else
            `(batch_size, num_patches, hidden_size)`.
        """
        ...

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """
        Noise for images by their places in a set, of the shape that `draw` gives: the same at every call and on every
        process, so that a certificate can be measured again.
        """
        ...

    def scaled(self, scale: float) -> Noise:
        """The noise times a number."""
        ...

    def control(self, control: Control, generator: torch.Generator) -> Noise:
        """A noise of the same kind and norm, in no direction that was searched for."""
        ...

    def ascend(self, noise: torch.Tensor, gradient: torch.Tensor, deviations: float) -> torch.Tensor:
        """
        Noise from `draw`, moved up the loss of each image by this many standard deviations of the draws.

        Raises:
            `TypeError`: If all images share the noise.
        """
        ...

    def keyed(self, *key: Any) -> Noise:
        """The noise whose `at` depends on these values too: on the seed and the round."""
        ...

    def to(self, device: torch.device | str) -> Noise:
        """The noise on another device."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is saved of it, with `tensor` as `noise`."""
        ...

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Noise:
        """
        Inverse of `tensors`.

        Raises:
            `ValueError`: If one is missing or of another shape.
        """
        ...


@dataclass(frozen=True)
class SharedNoise(Noise):
    """
    One noise for all images.

    Args:
        tensor (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise.
    """

    is_drawn: ClassVar[bool] = False

    tensor: torch.Tensor

    def draw(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        return self.tensor

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        return self.tensor

    def scaled(self, scale: float) -> SharedNoise:
        return SharedNoise(scale * self.tensor)

    def control(self, control: Control, generator: torch.Generator) -> SharedNoise:
        return SharedNoise(control(self.tensor, generator))

    def ascend(self, noise: torch.Tensor, gradient: torch.Tensor, deviations: float) -> torch.Tensor:
        raise TypeError("One noise for all images cannot move up the loss of each; only noise that is drawn can.")

    def keyed(self, *key: Any) -> SharedNoise:
        return self

    def to(self, device: torch.device | str) -> SharedNoise:
        return SharedNoise(self.tensor.to(device))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"noise": self.tensor}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> SharedNoise:
        _check_names(cls, tensors, {"noise"})
        return cls(tensors["noise"])


@dataclass(frozen=True)
class DrawnNoise(Noise):
    """
    Per-image noise: independent random draws along given axes, all of the same norm.

    Args:
        tensor (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): One of the draws.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): What is drawn along; see [`~axes.harmless_axes`].
            Their scale does not matter.
        norm (`float`, *optional*): Norm of each draw. Defaults to that of `tensor`.
        key (`tuple`, *optional*): What `at` depends on beside the place of an image.
    """

    is_drawn: ClassVar[bool] = True

    tensor: torch.Tensor
    axes: torch.Tensor
    norm: float | None = None
    key: tuple[Any, ...] = ()

    def __post_init__(self):
        if self.norm is None:
            object.__setattr__(self, "norm", self.tensor.norm().item())

    def draw(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        return draw_in_axes(self.axes, batch_size, self.tensor.shape[1], self.norm, generator)

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        generators = [keyed_generator("image noise", *self.key, place) for place in positions.tolist()]
        draws = [self.draw(1, generator) for generator in generators]
        return torch.cat([self.tensor.new_zeros(0, *self.tensor.shape[1:]), *draws])

    def scaled(self, scale: float) -> DrawnNoise:
        return dataclasses.replace(self, tensor=scale * self.tensor, norm=scale * self.norm)

    def control(self, control: Control, generator: torch.Generator) -> DrawnNoise:
        """
        Draws of the same norm in random directions, whichever `control` is given. Permuting the elements of a draw and
        replacing it by Gaussian noise both destroy the axes, so the controls have the same distribution.
        """
        axes = all_directions(self.axes.shape[0]).to(self.axes)
        drawn = draw_in_axes(axes, 1, self.tensor.shape[1], self.norm, generator)
        return dataclasses.replace(self, tensor=drawn, axes=axes)

    def ascend(self, noise: torch.Tensor, gradient: torch.Tensor, deviations: float) -> torch.Tensor:
        return ascend_in_axes(noise, gradient, self.axes.to(noise), deviations)

    def keyed(self, *key: Any) -> DrawnNoise:
        return dataclasses.replace(self, key=key)

    def to(self, device: torch.device | str) -> DrawnNoise:
        return dataclasses.replace(self, tensor=self.tensor.to(device), axes=self.axes.to(device))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"noise": self.tensor, "axes": self.axes}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> DrawnNoise:
        _check_names(cls, tensors, {"noise", "axes"})
        hidden_size = tensors["noise"].shape[-1]
        if tensors["axes"].shape != (hidden_size, hidden_size):
            raise ValueError(
                f"`axes` must have shape ({hidden_size}, {hidden_size}) beside noise of hidden size {hidden_size}, but got "
                f"{tuple(tensors['axes'].shape)}."
            )
        return cls(tensors["noise"], tensors["axes"])


def all_directions(hidden_size: int) -> torch.Tensor:
    """Axes that treat all directions of the hidden axis equally, its mean removed: `(hidden_size, hidden_size)`."""
    return remove_hidden_mean(torch.eye(hidden_size))


def draw_in_axes(
    axes: torch.Tensor, count: int, num_patches: int, norm: float, generator: torch.Generator
) -> torch.Tensor:
    """
    Independent random noises along `axes`, all of the same norm.

    Args:
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): See [`~axes.harmless_axes`]; of any scale.
        count (`int`): How many.
        num_patches (`int`): Tokens of each, drawn independently.
        norm (`float`): Norm of each.
        generator (`torch.Generator`): Of the CPU, or of the device of `axes`; the numbers are drawn where it is.

    Returns:
        `torch.Tensor` of shape `(count, num_patches, hidden_size)` on the device of `axes`.
    """
    coordinates = torch.randn(count, num_patches, len(axes), generator=generator, device=generator.device)
    noise = coordinates.to(axes) @ axes
    return noise * (norm / noise.flatten(1).norm(dim=1).clamp_min(torch.finfo(noise.dtype).tiny)).view(-1, 1, 1)


def ascend_in_axes(noise: torch.Tensor, gradient: torch.Tensor, axes: torch.Tensor, deviations: float) -> torch.Tensor:
    """
    Moves the noise of each image up its loss, along the axes it was drawn in and at constant norm.

    To first order the change of the loss over random draws is normally distributed, in any number of dimensions. The step
    is therefore given in standard deviations: 3 makes a noise as hard as the worst of about 700 draws, for one gradient.

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


def _check_names(kind: type[Noise], tensors: dict[str, torch.Tensor], expected: set[str]) -> None:
    if set(tensors) != expected:
        raise ValueError(f"A `{kind.__name__}` is made of the tensors {sorted(expected)}, but got {sorted(tensors)}.")
