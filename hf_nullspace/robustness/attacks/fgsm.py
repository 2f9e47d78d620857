"""The fast gradient sign method."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.pixel_model import PixelModel
from .base import Attack, register_attack
from .epsilon import parse_epsilon
from .search import attack_correct, cross_entropy, usable_gradient


def fgsm(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float | str = 8 / 255,
    *,
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    Fast gradient sign method ([Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572)): one step of size `epsilon`
    up the loss, inside the pixel box.

    Pictures that are misclassified already come back unchanged.

    Args:
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        epsilon (`float` or `str`, *optional*, defaults to 8/255): Radius of the Linf ball, in pixel units.
        seed, indices: Not used, since nothing is random; taken because every attack takes them.

    Returns:
        `torch.Tensor`: Pictures in [0, 1], no further than `epsilon` from the clean ones.
    """
    epsilon = parse_epsilon(epsilon)

    def search(pixels: torch.Tensor, labels: torch.Tensor, indices: list[int]) -> torch.Tensor:
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(pixels), labels).sum(), pixels)
        return (pixels.detach() + epsilon * usable_gradient(gradient).sign()).clamp(0, 1)

    return attack_correct(search, model, pixels, labels, indices)


register_attack(
    Attack(
        "fgsm",
        fgsm,
        "One step along the sign of the gradient (Goodfellow et al., 2015).",
        radii={"Linf": 8 / 255},
    )
)
