"""Tries attacks and corruptions on two pictures, so that errors appear before anything is measured."""

from __future__ import annotations

import json
from typing import Any

import torch

from ..models.pixel_model import PixelModel
from .attacks import ATTACKS
from .profiles import Column, Profile
from .sources import ImageSource, corrupt_pixels


def rehearse(model: PixelModel, profile: Profile, sources: dict[str, ImageSource], pixels: torch.Tensor) -> None:
    """
    Generates each corruption once and runs each attack with its settings, in as few passes as possible.

    Args:
        model ([`PixelModel`]): The classifier, frozen.
        profile ([`Profile`]): The columns.
        sources (`dict[str, ImageSource]`): The images of each column that is measured.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): A few pictures in [0, 1].

    Raises:
        `ValueError`: If an attack refuses its settings or the model, or finds no way to a gradient; the column is named.
        `ImportError`: If a package is missing.
    """
    seen = set()
    try:
        for column in profile.columns:
            if column.name not in sources:
                continue
            model.class_indices = sources[column.name].class_indices
            corruption = column.corruption if column.is_generated else None
            attack = column.attack and json.dumps([column.attack, column.settings, model.class_indices])
            try:
                if corruption is not None and corruption not in seen:
                    corrupt_pixels(pixels[0].cpu(), corruption, column.severity, profile.seed, 0)
                if attack is not None and attack not in seen:
                    _rehearse_attack(column, model, pixels, profile.seed)
            except ImportError as error:
                raise ImportError(f"Column {column.name!r} cannot be measured: {error}") from error
            except (TypeError, ValueError) as error:
                raise ValueError(f"Column {column.name!r} cannot be measured: {error}") from error
            seen |= {corruption, attack}
    finally:
        model.class_indices = None


def _rehearse_attack(column: Column, model: PixelModel, pixels: torch.Tensor, seed: int) -> None:
    with torch.no_grad():
        logits = model(pixels)
    settings: dict[str, Any] = {**column.settings, "seed": seed, "indices": range(len(pixels))}
    try:
        ATTACKS[column.attack].rehearse(model, pixels, logits, settings)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ValueError(
            f"{type(model.model).__name__} gives no gradient with respect to its pixels, which the attack "
            f"{column.attack!r} follows ({error}). Leave the column out, or remove what cuts the gradient, such as "
            "`torch.no_grad()` or `detach()` in its forward pass."
        ) from error
