"""Adversarial attacks in pixel space: images in [0, 1], epsilon in pixel units."""

from __future__ import annotations

import torch
from torch import nn

from .pixel_model import PixelModel


def fgsm(model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float = 8 / 255) -> torch.Tensor:
    """
    Fast gradient sign method (Goodfellow et al., 2015): one step of size `epsilon` up the loss, inside the pixel box.

    Args:
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        epsilon (`float`, *optional*, defaults to 8/255): Radius of the Linf ball, in pixel units.

    Returns:
        `torch.Tensor`: Pictures in [0, 1], no further than `epsilon` from the clean ones.
    """
    pixels = pixels.detach().requires_grad_()
    loss = nn.functional.cross_entropy(model(pixels), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    return (pixels.detach() + epsilon * gradient.sign()).clamp(0, 1)
