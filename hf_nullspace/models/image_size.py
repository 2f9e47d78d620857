"""Changes the input size of a pretrained classifier by interpolating its position embeddings."""

from __future__ import annotations

import copy
import math

import torch
from transformers import PreTrainedModel

from ..utils.random import preserved_random_state
from .injection import resize_noise


def change_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """
    A copy of `model` for square images of another size. Once saved, plain `transformers` can load it.

    Position embeddings are interpolated bicubically over the patch grid; other tokens (CLS, registers) keep
    theirs. All other weights are unchanged.

    Args:
        model ([`~transformers.PreTrainedModel`]): Its config must have `image_size`, and a square patch grid.
        image_size (`int`): Height and width of the new images, in pixels, a multiple of the patches' side.

    Raises:
        `ValueError`: If the model has no image size, its patches do not fill the new one, or another weight than a position embedding depends on it.
    """
    config = copy.deepcopy(model.config)
    if getattr(config, "image_size", None) is None:
        raise ValueError(f"{type(model).__name__} has no `image_size` in its config, so it cannot be changed.")
    if image_size < 1:
        raise ValueError(f"`image_size` must be a positive number of pixels, but got {image_size}.")
    patch = getattr(config, "patch_size", None)
    if (
        isinstance(patch, int) and image_size % patch
    ):  # the last pixels of each side would reach no patch, or half a patch
        near = max(image_size // patch, 1) * patch
        raise ValueError(
            f"`image_size` must be a multiple of {patch} pixels, the side of the patches of {type(model).__name__}, but "
            f"got {image_size}. Give {near} or {near + patch}."
        )
    config.image_size = image_size
    with preserved_random_state():  # every weight drawn here is replaced below
        resized = type(model)(config).to(model.device, model.dtype)
    old = model.state_dict()
    new = resized.state_dict()
    for name, weight in new.items():
        if old[name].shape == weight.shape:
            weight.copy_(old[name])
        elif "position" in name:
            weight.copy_(_interpolate_positions(old[name], weight.shape, name))
        else:
            raise ValueError(
                f"{name} has shape {tuple(old[name].shape)} at {model.config.image_size} pixels and "
                f"{tuple(weight.shape)} at {image_size}; only position embeddings can be interpolated. Keep the "
                "model's own image size."
            )
    for old_weight, new_weight in zip(model.parameters(), resized.parameters(), strict=True):
        new_weight.requires_grad_(old_weight.requires_grad)
    return resized.train(model.training)


def _interpolate_positions(positions: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    """Position embeddings of shape `(..., extra + old_grid**2, hidden)` for a grid of another size."""
    old_count = positions.shape[-2]
    new_count = shape[-2]
    for extra in range(min(old_count, new_count, 64)):
        old_grid = math.isqrt(old_count - extra)
        new_grid = math.isqrt(new_count - extra)
        if old_grid**2 + extra == old_count and new_grid**2 + extra == new_count:
            break
    else:
        raise ValueError(f"{name} has {old_count} positions, which are no square grid and cannot be interpolated.")
    flat = positions.reshape(old_count, -1).float()
    resized = resize_noise(flat[None, extra:], (new_grid, new_grid))[0]
    return torch.cat([flat[:extra], resized]).reshape(shape).to(positions.dtype)
