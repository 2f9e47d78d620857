"""How far noise has to move along the gradient of the clean images to be as hard as along its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..noise.kinds import Noise


# Distances along the clean gradient at which the loss is measured, as multiples of that along a noise's own. Beyond the
# last, noise that is held at its norm turns more than it climbs.
MULTIPLES = (1.0, 2.0, 3.0, 4.0)

# From noise of each image, or `None` for none, to the loss.
LossUnderNoise = Callable[[torch.Tensor | None], torch.Tensor]


def loss_gradient(
    loss_of: LossUnderNoise, noise: torch.Tensor, scale: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The loss under a noise and its gradient.

    Args:
        loss_of (`Callable`): The loss of some images as a function of their noise.
        noise (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): The noise; zero for the clean images.
        scale (`Callable`, *optional*): Scales the loss before the pass back; in fp16 the gradient of a small loss is lost
            without.

    Returns:
        Tuple of a `torch.Tensor` without dimensions and one of the shape of `noise`. The latter is scaled.
    """
    variable = noise.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_of(variable)
        (gradient,) = torch.autograd.grad(loss if scale is None else scale(loss), variable)
    return loss.detach(), gradient


def losses_of_ascents(
    loss_of: LossUnderNoise,
    noise: Noise,
    draws: torch.Tensor,
    deviations: float,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """
    The loss of some images under draws of a noise: as they are, moved along their own gradient, and along the clean one.

    Args:
        loss_of, scale (`Callable`): As in [`loss_gradient`].
        noise ([`Noise`]): What was drawn from.
        draws (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): The draws.
        deviations (`float`): Distance along their own gradient, in standard deviations of the draws.

    Returns:
        `torch.Tensor` of shape `(2 + len(MULTIPLES),)` in float64.
    """
    clean_gradient = loss_gradient(loss_of, torch.zeros_like(draws), scale)[1]
    drawn, own_gradient = loss_gradient(loss_of, draws, scale)
    with torch.no_grad():
        moved = [loss_of(noise.ascend(draws, own_gradient, deviations))]
        moved += [loss_of(noise.ascend(draws, clean_gradient, multiple * deviations)) for multiple in MULTIPLES]
    return torch.stack([drawn, *moved]).double()


def matching_ascent(losses: Sequence[float], deviations: float) -> tuple[float, float]:
    """
    The distance along the clean gradient that raises the loss as much as `deviations` do along the noise's own gradient.

    Between the distances that were measured the loss is interpolated linearly.

    Args:
        losses (sequence of `float`): As [`losses_of_ascents`] gives them.
        deviations (`float`): Distance along the noise's own gradient.

    Returns:
        Tuple of the distance, in standard deviations, to one decimal, and of the share of the rise that is reached there:
        1, or less where no distance that was measured is enough. Without a rise to match, `(deviations, 1.0)`.
    """
    drawn, own, *along_clean = losses
    rise = own - drawn
    if not (math.isfinite(rise) and rise > 0 and all(map(math.isfinite, along_clean))):
        return deviations, 1.0
    before, loss_before = 0.0, drawn
    for multiple, loss in zip(MULTIPLES, along_clean, strict=True):
        if loss >= own:
            share = (own - loss_before) / (loss - loss_before)
            return round(deviations * (before + share * (multiple - before)), 1), 1.0
        before, loss_before = multiple, loss
    best = max(range(len(MULTIPLES)), key=lambda index: along_clean[index])
    return round(deviations * MULTIPLES[best], 1), (along_clean[best] - drawn) / rise
