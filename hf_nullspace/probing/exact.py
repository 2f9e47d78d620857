"""Measures that noise from the exact nullspace leaves a whole model unchanged, and uses it for watermarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..exact_nullspace.patch_nullspace import PatchNullspace
from ..models.frozen import frozen
from ..models.injection import tokens_shape
from ..models.objectives import agreement, is_multi_label
from ..models.patch_projection import find_patch_projection
from ..models.pixel_box import PIXEL_MARGIN, normalization
from ..noise.controls import permute_elements
from ..noise.injection import inject_noise
from ..utils.random import keyed_generator


def relative_logit_change(clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
    """
    Largest change of a logit as a share of the norm of all logits, of shape `(batch_size,)`.

    Args:
        clean_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Logits of the clean images.
        noisy_logits (`torch.Tensor` of the same shape): Logits under the noise.
    """
    return (noisy_logits - clean_logits).abs().amax(-1) / torch.linalg.vector_norm(clean_logits, dim=-1)


@torch.no_grad()
def predict(
    model: nn.Module, pixel_values: torch.Tensor, batch_size: int = 32, **inputs: torch.Tensor
) -> torch.Tensor:
    """
    Logits of shape `(num_images, num_labels)` in float32 on the CPU, computed in eval mode, batch by batch.

    Args:
        model (`nn.Module`): The classifier.
        pixel_values (`torch.Tensor`): Normalised pictures.
        batch_size (`int`, *optional*, defaults to 32): Pictures at a time.
        inputs (`torch.Tensor`, *optional*): Further model inputs, with a leading axis over the pictures.
    """
    parameter = next(model.parameters())
    logits = []
    with frozen(model):
        for start in range(0, len(pixel_values), batch_size):
            rows = slice(start, start + batch_size)
            others = {name: value[rows].to(parameter.device) for name, value in inputs.items()}
            logits.append(model(pixel_values=pixel_values[rows].to(parameter), **others).logits.float().cpu())
    return torch.cat(logits)


def measure_exact_noise(
    model: nn.Module,
    pixel_values: torch.Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    nullspace: PatchNullspace | None = None,
    generator: torch.Generator | None = None,
    slides: int | None = None,
    clean_logits: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> tuple[dict[str, Any], torch.Tensor]:
    """
    Measures the exact nullspace of a model: its size, and the effect of the largest noise inside the pixel box.

    Args:
        model (`nn.Module`): The classifier.
        pixel_values (`torch.Tensor` of shape `(num_images, channels, height, width)`): Normalised pictures.
        image_mean, image_std (`Sequence[float]`): The image processor's.
        nullspace ([`PatchNullspace`], *optional*): The model's, if there is one already.
        generator (`torch.Generator`, *optional*): A CPU generator; one with a fixed seed by default.
        slides (`int`, *optional*): See [`PatchNullspace.sample_within`].
        clean_logits (`torch.Tensor` of shape `(num_images, num_labels)`, *optional*): The pictures' logits, where they
            are known already.
        inputs (`torch.Tensor`, *optional*): What else the model takes, as in [`predict`].

    Returns:
        `tuple[dict, torch.Tensor]`: One row and the noise. Norms are means over the pictures, in normalised pixels. No
        noise inside the box exceeds `noise_norm_bound`. `noise_rms` and `noise_max` (the largest change of a pixel) are
        in units of the pixel range [0, 1]; `pixels_at_bound` is a share. Changes of the logits are the largest over the
        pictures for the noise, and the smallest for the control, which is the same noise with its elements permuted. If
        the nullspace has dimension 0, the row ends with its size and the noise is zero.
    """
    nullspace = nullspace or PatchNullspace.from_model(model)
    row = {
        "projection": nullspace.projection_name,
        "hidden_size": nullspace.matrix.shape[0],
        "patch_features": nullspace.matrix.shape[1],
        "rank": nullspace.rank,
        "dimension": nullspace.dimension,
        "tolerance": nullspace.tolerance,
    }
    if nullspace.obstacle is not None:
        return row, torch.zeros_like(pixel_values, dtype=torch.float32)
    generator = generator if generator is not None else keyed_generator("exact noise", 42)
    noise = nullspace.sample_within(pixel_values, image_mean, image_std, generator, slides=slides)
    permuted = permute_elements(noise, generator)
    mean, std = normalization(image_mean, image_std, pixel_values)
    pixels = (pixel_values + noise).double() * std + mean
    at_bound = (pixels < 2 * PIXEL_MARGIN) | (pixels > 1 - 2 * PIXEL_MARGIN)
    clean = predict(model, pixel_values, **inputs) if clean_logits is None else clean_logits
    noisy, control = (predict(model, pixel_values + change, **inputs) for change in (noise, permuted))
    row |= {
        "num_images": len(pixel_values),
        "noise_norm": noise.flatten(1).norm(dim=1).mean().item(),
        "noise_norm_bound": nullspace.norm_bound(pixel_values, image_mean, image_std).mean().item(),
        "noise_rms": (noise * std).square().mean().sqrt().item(),
        "noise_max": (noise * std).abs().max().item(),
        "pixels_at_bound": at_bound.double().mean().item(),
        "relative_logit_change": relative_logit_change(clean, noisy).max().item(),
        "agreement": agreement(clean, noisy, is_multi_label(model)).mean().item(),
        "permuted_relative_logit_change": relative_logit_change(clean, control).min().item(),
        "permuted_agreement": agreement(clean, control, is_multi_label(model)).mean().item(),
    }
    return row, noise


def measure_layer_norm_invariance(
    model: nn.Module,
    pixel_values: torch.Tensor,
    generator: torch.Generator | None = None,
    patch_projection: str | None = None,
    clean_logits: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> dict[str, float]:
    """
    Checks the second exact invariance: a constant over the hidden axis, added to patch embeddings.

    Every LayerNorm removes the mean over the hidden axis. In a pre-norm encoder such noise therefore changes no logit,
    however large it is, and the norms in this package exclude it. Models with other normalisation layers do react to it.

    Args:
        model (`nn.Module`): The classifier.
        pixel_values (`torch.Tensor` of shape `(num_images, channels, height, width)`): Normalised pictures.
        generator (`torch.Generator`, *optional*): Draws the constant of each token and the control.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        clean_logits (`torch.Tensor` of shape `(num_images, num_labels)`, *optional*): As in [`measure_exact_noise`].
        inputs (`torch.Tensor`, *optional*): What else the model takes, as in [`predict`].

    Returns:
        `dict[str, float]`: `relative_logit_change`, the largest over the pictures, and
        `control_relative_logit_change`, the smallest, under random noise of the same norm.
    """
    generator = generator if generator is not None else keyed_generator("layer norm", 42)
    one = {name: value[:1] for name, value in inputs.items()}
    shape = _tokens_shape(model, pixel_values[:1], patch_projection, one)
    random = torch.randn(1, *shape, generator=generator)
    constant = torch.randn(1, shape[0], 1, generator=generator).expand_as(random)
    clean = predict(model, pixel_values, **inputs) if clean_logits is None else clean_logits
    changes = []
    for noise in (constant, random * (constant.norm() / random.norm())):
        with inject_noise(model, noise, patch_projection):
            changes.append(relative_logit_change(clean, predict(model, pixel_values, **inputs)))
    return {
        "relative_logit_change": changes[0].max().item(),
        "control_relative_logit_change": changes[1].min().item(),
    }


def _tokens_shape(
    model: nn.Module, pixel_values: torch.Tensor, patch_projection: str | None, inputs: dict[str, torch.Tensor]
) -> tuple[int, int]:
    """`(num_patches, hidden_size)` of the patch embeddings of these pictures."""
    shapes = []
    projection = find_patch_projection(model, patch_projection).module
    handle = projection.register_forward_hook(lambda module, args, output: shapes.append(tokens_shape(output)))
    try:
        predict(model, pixel_values, **inputs)
    finally:
        handle.remove()
    return shapes[0]


def prediction_stability(
    model: nn.Module,
    pixel_values: torch.Tensor,
    norms: Sequence[float],
    nullspace: PatchNullspace | None = None,
    generator: torch.Generator | None = None,
    clean_logits: torch.Tensor | None = None,
    **inputs: torch.Tensor,
) -> list[dict[str, float]]:
    """
    How stable predictions are under exact noise of growing norm, which may leave the pixel box.

    Only rounding limits the norm: the change of the logits grows with it as float32 cancellation does.

    Args:
        model (`nn.Module`): The classifier.
        pixel_values (`torch.Tensor` of shape `(num_images, channels, height, width)`): Normalised pictures.
        norms (`Sequence[float]`): Norms of the noise of one picture, in normalised pixels.
        nullspace ([`PatchNullspace`], *optional*): The model's, if there is one already.
        generator (`torch.Generator`, *optional*): A CPU generator; one with a fixed seed by default.
        clean_logits (`torch.Tensor` of shape `(num_images, num_labels)`, *optional*): As in [`measure_exact_noise`].
        inputs (`torch.Tensor`, *optional*): What else the model takes, as in [`predict`].

    Returns:
        `list[dict]`: For each norm the `agreement` and largest `relative_logit_change`, and those of the permuted
        control (its smallest change).
    """
    nullspace = nullspace or PatchNullspace.from_model(model)
    generator = generator if generator is not None else keyed_generator("stability", 42)
    # The number of patches follows from the size of the pictures, or from inputs that are patches already.
    size: dict[str, Any] = {"image_size": tuple(pixel_values.shape[2:])}
    if pixel_values.dim() == 3:
        size = {"num_patches": pixel_values.shape[1]}
    direction = nullspace.sample(len(pixel_values), 1.0, generator, **size).to(pixel_values)
    permuted = permute_elements(direction, generator)
    clean = predict(model, pixel_values, **inputs) if clean_logits is None else clean_logits
    rows = []
    for norm in norms:
        noisy, control = (predict(model, pixel_values + norm * change, **inputs) for change in (direction, permuted))
        rows.append(
            {
                "norm": norm,
                "agreement": agreement(clean, noisy, is_multi_label(model)).mean().item(),
                "relative_logit_change": relative_logit_change(clean, noisy).max().item(),
                "permuted_agreement": agreement(clean, control, is_multi_label(model)).mean().item(),
                "permuted_relative_logit_change": relative_logit_change(clean, control).min().item(),
            }
        )
    return rows


def watermark(
    nullspace: PatchNullspace,
    pixel_values: torch.Tensor,
    mark_values: torch.Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    strength: float = 1.0,
    slides: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Lays a picture over others without changing the model's logits: a watermark that the model cannot see.

    The change `strength * (mark - picture)` is replaced by a nearby one that lies in the nullspace and keeps every pixel
    in [0, 1]. Limits: people see only the part of the mark that lies in the nullspace, which the returned likeness
    measures. Trained filters pass smooth pictures, so only fine grain is left of a photograph (likeness 0.1 on a ViT-S/14
    with 204 of 588 dimensions). The watermark is specific to this model's patch projection and patch grid. JPEG, resizing
    or a shift by a pixel destroys it, and rounding to 8 bits per channel changes logits by about 1e-3 of their norm.
    Black and white regions take little of the mark.

    Args:
        nullspace ([`PatchNullspace`]): The model's.
        pixel_values (`torch.Tensor` of shape `(num_images, channels, height, width)`): Normalised pictures.
        mark_values (`torch.Tensor` of the same shape, or of one picture): The normalised mark.
        image_mean, image_std (`Sequence[float]`): The image processor's.
        strength (`float`, *optional*, defaults to 1.0): Share of the mark in the wanted picture, in (0, 1].
        slides (`int`, *optional*): See [`PatchNullspace.sample_within`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The marked pictures, normalised, and for each of them the likeness: cosine
        between the change and the wanted change, of shape `(num_images,)`.

    Raises:
        `ValueError`: If `strength` lies outside (0, 1], shapes differ, or pictures lie outside [0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must lie in (0, 1], but got {strength!r}.")
    if mark_values.shape not in (pixel_values.shape, (1, *pixel_values.shape[1:])):
        raise ValueError(
            f"The mark has shape {tuple(mark_values.shape)}, the pictures {tuple(pixel_values.shape)}; expected one "
            "mark of the same size, or one for each picture."
        )
    wanted = strength * (mark_values - pixel_values)
    change = nullspace.project_within(wanted, pixel_values, image_mean, image_std, slides)
    likeness = nn.functional.cosine_similarity(change.flatten(1), wanted.flatten(1).float(), dim=1)
    return pixel_values + change, likeness
