"""Attention maps of a classifier, which only the eager implementation gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from ...models.patch_projection import find_patch_projection
from ...models.pixel_model import PixelModel


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Switches every transformer inside `model` to eager attention, and each back to what it had."""
    transformers = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [(module, module.config._attn_implementation) for module in transformers]
    try:
        for module in transformers:
            if module.config._attn_implementation != "eager":
                module.set_attn_implementation("eager")
        yield
    finally:
        for module, implementation in before:
            # The setter hands the value down to nested configs, which come later in this list and get their own.
            if module.config._attn_implementation != implementation:
                module.config._attn_implementation = implementation


def attentions_of(model: PixelModel, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    Logits, and the attention of each block to the patches; use it inside [`eager_attention`].

    Args:
        model ([`PixelModel`]): A vision transformer.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures in [0, 1].

    Returns:
        The logits of shape `(batch_size, num_labels)`, and for each block the attention averaged over its heads, of
        shape `(batch_size, num_tokens, num_patches)`: from every token, CLS, distillation and register tokens
        included, to the patches alone. Those extra tokens come before the patches in every model of `transformers`.

    Raises:
        `ValueError`: If the model gives no attention over all of its patches.
    """
    output = model.output(pixels, output_attentions=True)
    rows, columns = patch_grid(model, pixels)
    attentions = getattr(output, "attentions", None) or ()
    name = type(model.model).__name__
    if len(attentions) == 0 or any(attention is None for attention in attentions):
        raise ValueError(
            f"{name} gives no attention maps, so PatchFool cannot attack it. If it is a vision transformer, load it "
            'with `attn_implementation="eager"`; otherwise leave this attack out.'
        )
    for attention in attentions:
        num_tokens = attention.shape[-1]
        if attention.dim() != 4 or attention.shape[0] != len(pixels) or num_tokens < rows * columns:
            raise ValueError(
                f"{name} gives attention of shape {tuple(attention.shape)} for {len(pixels)} pictures of {rows} x "
                f"{columns} patches; PatchFool needs (batch_size, heads, tokens, tokens) with all patches among the "
                "tokens, so windowed and pooled attention (Swin, PVT) is not supported. Leave this attack out."
            )
    return model.logits_of(output), [attention.float().mean(1)[..., -rows * columns :] for attention in attentions]


def patch_size(model: PixelModel) -> tuple[int, int]:
    """
    `(height, width)` of a patch in pixels.

    Raises:
        `ValueError`: If the model does not cut pictures into patches that touch and do not overlap.
    """
    projection = find_patch_projection(model.model)
    if projection.patch_size is None or not projection.is_exact:
        raise ValueError(
            f"{type(model.model).__name__} does not cut its pictures into patches side by side (its first layer is "
            f"{projection.module}), so PatchFool cannot attack one. Leave this attack out."
        )
    return projection.patch_size


def patch_grid(model: PixelModel, pixels: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches that `model` cuts `pixels` into."""
    height, width = patch_size(model)
    return pixels.shape[2] // height, pixels.shape[3] // width
