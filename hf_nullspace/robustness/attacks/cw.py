"""The attack of Carlini and Wagner in the L2 norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.pixel_model import PixelModel
from .base import Attack, register_attack
from .search import attack_correct, usable_gradient


# Keeps the inverse tanh of black and white finite.
BOX = 1 - 1e-6


def cw_l2(
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    c: float = 1.0,
    kappa: float = 0.0,
    steps: int = 50,
    learning_rate: float = 0.01,
    seed: int = 42,
    indices: Sequence[int] | None = None,
) -> torch.Tensor:
    """
    The L2 attack of [Carlini and Wagner, 2017](https://arxiv.org/abs/1608.04644), for one constant `c`: Adam minimises
    `||x' - x||^2 + c * max(logit of the label - largest other logit, -kappa)` over pictures written as a tanh, which
    keeps them in the pixel box.

    No ball bounds it, so an accuracy under it says something only beside the mean L2 norm of the changes. The
    misclassified copy nearest to the picture comes back, and where there is none, the one nearest to being misclassified.
    Black and white pixels stay almost as they are, since a tanh is flat there.

    Args:
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        c (`float`, *optional*, defaults to 1.0): Weight of the logits against the squared distance.
        kappa (`float`, *optional*, defaults to 0.0): How far another logit must lie above that of the label.
        steps (`int`, *optional*, defaults to 50): Steps of Adam.
        learning_rate (`float`, *optional*, defaults to 0.01): Its learning rate.
        seed, indices: Not used, since nothing is random; taken because every attack takes them.

    Returns:
        `torch.Tensor`: Pictures in [0, 1].

    Raises:
        `ValueError`: If a setting is negative, or `c`, `steps` or `learning_rate` is 0.
    """
    for name, value, allowed in (
        ("c", c, c > 0),
        ("kappa", kappa, kappa >= 0),
        ("steps", steps, steps >= 1),
        ("learning_rate", learning_rate, learning_rate > 0),
    ):
        if not allowed:
            raise ValueError(f"`{name}` of the CW attack is too small: {value!r}.")

    def search(clean: torch.Tensor, labels: torch.Tensor, indices: list[int]) -> torch.Tensor:
        variable = torch.atanh((2 * clean - 1) * BOX).requires_grad_()
        optimizer = torch.optim.Adam([variable], lr=learning_rate)
        best = clean.clone()
        nearest = torch.full((len(clean),), torch.inf, device=clean.device)
        highest = torch.full_like(nearest, -torch.inf)
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                candidates = (torch.tanh(variable) + 1) / 2
                logits = model(candidates)
                margin = _margin(logits, labels)
                distance = (candidates - clean).flatten(1).square().sum(1)
            fooled = (logits.argmax(-1) != labels) & (margin >= kappa)
            better = torch.where(fooled, distance < nearest, nearest.isinf() & (margin > highest)).detach()
            best[better] = candidates.detach()[better]
            nearest = torch.where(better & fooled, distance.detach(), nearest)
            highest = torch.maximum(highest, margin.detach())
            if step < steps:
                loss = (distance - c * margin.clamp(max=kappa)).sum()
                if step == 0:  # the distance has a gradient whatever the model has
                    usable_gradient(torch.autograd.grad(margin.sum(), variable, retain_graph=True)[0])
                (gradient,) = torch.autograd.grad(loss, variable)
                variable.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
                optimizer.step()
        return best

    return attack_correct(search, model, pixels, labels, indices)


def _margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Largest other logit less that of the label, of shape `(batch_size,)`."""
    label = labels.unsqueeze(1)
    return logits.scatter(1, label, -torch.inf).amax(1) - logits.gather(1, label).squeeze(1)


register_attack(
    Attack(
        "cw_l2",
        cw_l2,
        "A near picture that is misclassified (Carlini and Wagner, 2017), for one constant.",
    )
)
