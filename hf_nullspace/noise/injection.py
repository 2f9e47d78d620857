"""Adds noise to a model's patch embeddings inside a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..models.injection import NoiseInjector, check_noise_tensor
from ..utils.random import keyed_generator
from .nullspace_noise import NullspaceNoise


@contextmanager
def inject_noise(
    model: nn.Module,
    noise: torch.Tensor | NullspaceNoise,
    patch_projection: str | None = None,
    resize: bool = False,
    grid: tuple[int, int] | None = None,
) -> Iterator[nn.Module]:
    """
    Adds `noise` to the patch embeddings of `model` in every forward pass inside the `with` block.

    Args:
        model (`nn.Module`): Any classifier with a patch projection.
        noise ([`NullspaceNoise`] or `torch.Tensor` of shape `(1 or batch_size, num_patches, hidden_size)`): The noise, in
            units of the patch embeddings. With a [`NullspaceNoise`] images get the same kind of noise as in training:
            the shared one, or a draw per image. Each `with` block repeats the same draws.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        resize (`bool`, *optional*, defaults to `False`): Whether noise is interpolated to the patch grid of images of
            another size or shape ([`resize_noise`]), instead of refused.
        grid (`tuple[int, int]`, *optional*): `(rows, columns)` of the noise's patches, for `resize`. A [`NullspaceNoise`]
            knows its own; a tensor's is a square by default, or refused where that may be wrong.

    Raises:
        `TypeError`: If `model` is no module, or `noise` neither of the two.
        `ValueError`: If the model has no patch projection, or the noise does not fit it.

    Example:

    ```python
    >>> with inject_noise(model, noise):
    ...     logits = model(pixel_values).logits
    ```
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an `nn.Module`, but got a `{type(model).__name__}`.")
    if isinstance(noise, NullspaceNoise):
        grid = noise.grid if grid is None else grid
        noise = _draws_of(noise)
    else:
        noise = check_noise_tensor(noise)
    with NoiseInjector.attached(model, patch_projection) as injector, injector.inject(noise, resize=resize, grid=grid):
        yield model


def _draws_of(noise: NullspaceNoise) -> torch.Tensor | Callable[[int], torch.Tensor]:
    if not noise.noise.is_drawn:
        return noise.tensor
    generator = keyed_generator("injected", noise.config.seed, noise.round_index)
    return lambda batch_size: noise.draw(batch_size, generator)
