"""Projected gradient descent in the Linf and the L2 ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ...models.pixel_model import PixelModel
from .base import Attack, register_attack
from .epsilon import parse_epsilon
from .search import BestSoFar, attack_correct, cross_entropy, keyed_draws, usable_gradient


def pgd_linf(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float | str = 8 / 255,
    *,
    step_size: float | str | None = None,
    steps: int = 10,
    random_start: bool = True,
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    Projected gradient descent in the Linf ball ([Madry et al., 2018](https://arxiv.org/abs/1706.06083)): steps along
    the sign of the gradient from a uniform random start, each projected back into the ball and the pixel box.

    A picture is left alone once it is misclassified. Where none of the steps is, the one of the highest loss comes
    back.

    Args:
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        epsilon (`float` or `str`, *optional*, defaults to 8/255): Radius of the ball, in pixel units.
        step_size (`float` or `str`, *optional*): Length of a step, in pixel units. By default `epsilon / 4`.
        steps (`int`, *optional*, defaults to 10): Number of steps.
        random_start (`bool`, *optional*, defaults to `True`): Start at a random point of the ball, not at the picture.
        seed (`int`, *optional*, defaults to 42): Seed of the random start.
        indices (`Sequence[int]`, *optional*): Place of each picture in its dataset, which its random numbers are drawn
            from. By default 0 to `batch_size - 1`.

    Returns:
        `torch.Tensor`: Pictures in [0, 1], no further than `epsilon` from the clean ones.
    """
    epsilon = parse_epsilon(epsilon)
    step_size = epsilon / 4 if step_size is None else parse_epsilon(step_size)

    def start(clean: torch.Tensor, indices: list[int]) -> torch.Tensor:
        return clean + epsilon * (2 * keyed_draws("attack-pgd_linf", seed, indices, clean) - 1)

    def climb(current: torch.Tensor, gradient: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        return clean + (current + step_size * gradient.sign() - clean).clamp(-epsilon, epsilon)

    search = _search(model, start if random_start else None, climb, steps)
    return attack_correct(search, model, pixels, labels, indices)


def pgd_l2(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float | str = 0.5,
    *,
    step_size: float | str | None = None,
    steps: int = 10,
    random_start: bool = True,
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    Projected gradient descent in the L2 ball ([Madry et al., 2018](https://arxiv.org/abs/1706.06083)): steps along the
    normalised gradient from a random start, each projected back into the ball and the pixel box.

    The start has a uniform direction and a uniform length. A picture is left alone once it is misclassified. Where none
    of the steps is, the one of the highest loss comes back.

    Args:
        model, pixels, labels: As in [`pgd_linf`].
        epsilon (`float` or `str`, *optional*, defaults to 0.5): Radius of the ball: the length, in pixel units, of the
            change of a whole picture. It means more on small pictures: 0.5 is the custom for 32x32 pixels, 3.0 for
            224x224.
        step_size (`float` or `str`, *optional*): Length of a step. By default `epsilon / 5`.
        steps, random_start, seed, indices (*optional*): As in [`pgd_linf`].

    Returns:
        `torch.Tensor`: Pictures in [0, 1], no further than `epsilon` from the clean ones.
    """
    epsilon = parse_epsilon(epsilon, largest=math.inf)
    step_size = epsilon / 5 if step_size is None else parse_epsilon(step_size, largest=math.inf)

    def start(clean: torch.Tensor, indices: list[int]) -> torch.Tensor:
        direction = _unit(keyed_draws("attack-pgd_l2", seed, indices, clean, torch.randn))
        length = keyed_draws("attack-pgd_l2-length", seed, indices, clean[:, :1, :1, :1])
        return clean + epsilon * length * direction

    def climb(current: torch.Tensor, gradient: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        change = current + step_size * _unit(gradient) - clean
        return clean + change * (epsilon / _length(change)).clamp(max=1)

    search = _search(model, start if random_start else None, climb, steps)
    return attack_correct(search, model, pixels, labels, indices)


def _length(change: torch.Tensor) -> torch.Tensor:
    return change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _unit(change: torch.Tensor) -> torch.Tensor:
    return change / _length(change)


def _search(model: PixelModel, start: Callable | None, climb: Callable, steps: int) -> Callable:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a whole number from 1, but got {steps!r}.")

    def search(clean: torch.Tensor, labels: torch.Tensor, indices: list[int]) -> torch.Tensor:
        best = BestSoFar(clean)
        current = clean if start is None else start(clean, indices).clamp(0, 1)
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                current = current.detach().requires_grad_(step < steps)
                logits = model(current)
            keep = best.update(current, logits, labels)
            if step == steps or not keep.any():
                break
            (gradient,) = torch.autograd.grad(cross_entropy(logits, labels)[keep].sum(), current)
            gradient = usable_gradient(gradient[keep], best.active)
            current, clean, labels = current[keep], clean[keep], labels[keep]
            current = climb(current.detach(), gradient, clean).clamp(0, 1)
        return best.pixels

    return search


register_attack(
    Attack(
        "pgd_linf",
        pgd_linf,
        "Steps along the sign of the gradient from a random start (Madry et al., 2018).",
        radii={"Linf": 8 / 255},
    )
)


register_attack(
    Attack(
        "pgd_l2",
        pgd_l2,
        "Steps along the gradient from a random start (Madry et al., 2018).",
        radii={"L2": 0.5},
    )
)
