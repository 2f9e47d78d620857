"""The attack of the paper's released code as it is, so that its numbers can be reproduced beside sound ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...models.full_precision import full_precision, gradients_on
from ...models.pixel_model import PixelModel
from .base import Attack, register_attack
from .epsilon import parse_epsilon
from .search import refuse_other_tasks


def released_fgsm(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float | str = "8/225",
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    FGSM as the code released with arXiv 2403.10476 computes it: on *normalised* tensors, clamped to [0, 1] afterwards.

    Normalised tensors are mostly outside [0, 1], so the clamp moves pixels much further than `epsilon`: this is **no
    eps-ball**. Use it for comparison with published numbers only.

    Args:
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        epsilon (`float` or `str`, *optional*, defaults to `"8/225"`): Step in units of the normalised tensor.
        seed, indices: Not used, since nothing is random; taken because every attack takes them.

    Returns:
        `torch.Tensor`: The attacked pictures in pixels, which lie in [0, 1] wherever `mean + std <= 1`.
    """
    step = parse_epsilon(epsilon)
    refuse_other_tasks(getattr(model, "model", model))
    with gradients_on(model), full_precision(model):
        pixels = pixels.detach().clone().requires_grad_()
        labels = labels.clone()
        loss = nn.functional.cross_entropy(model(pixels), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)  # of the sign that normalised tensors have
        attacked = (pixels.detach() - model.mean) / model.std + step * gradient.nan_to_num(0.0, 0.0, 0.0).sign()
        return (attacked.clamp(0, 1) * model.std + model.mean).clamp(0, 1)


register_attack(
    Attack(
        "released_fgsm",
        released_fgsm,
        "FGSM as the paper's released code computes it, on normalised tensors: no ball bounds it.",
    )
)
