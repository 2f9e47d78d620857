"""What all attacks share: which pictures they work on, what they keep, and where their random numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ...frozen import frozen
from ...randomness import keyed_generator
from ..pixel_model import PixelModel


def attack_correct(
    search: Callable[[torch.Tensor, torch.Tensor, list[int]], torch.Tensor],
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    indices: Sequence[int] | None,
) -> torch.Tensor:
    """
    Runs a search on the pictures that the model classifies correctly; the others come back as they are, at no cost.

    The model is in evaluation mode and without weight gradients meanwhile.

    Args:
        search (`Callable`): Called with the chosen pictures, their labels and their indices; gives their attacked
            copies.
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        indices (`Sequence[int]`, *optional*): Place of each picture in its dataset. By default 0 to `batch_size - 1`.

    Raises:
        `ValueError`: If the shapes do not fit together, or a label is no class of the model.
    """
    indices = list(range(len(pixels))) if indices is None else [int(index) for index in indices]
    if labels.shape != pixels.shape[:1] or labels.is_floating_point() or len(indices) != len(pixels):
        raise ValueError(
            f"{len(pixels)} pictures need {len(pixels)} whole-number labels and indices, but got labels of shape "
            f"{tuple(labels.shape)} and dtype {labels.dtype}, and {len(indices)} indices."
        )
    attacked = pixels.detach().clone()
    labels = labels.to(pixels.device)
    if len(pixels) == 0:
        return attacked
    with frozen(model):
        with torch.no_grad():
            logits = model(attacked)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ValueError(
                f"Labels must be 0 to {logits.shape[1] - 1}, the classes of the model, but range from "
                f"{labels.min().item()} to {labels.max().item()}."
            )
        chosen = (logits.argmax(-1) == labels).nonzero().flatten()
        if len(chosen):
            places = [indices[place] for place in chosen.tolist()]
            attacked[chosen] = search(attacked[chosen], labels[chosen], places)
    return attacked


def keyed_draws(
    name: str,
    seed: int,
    indices: Sequence[int],
    pixels: torch.Tensor,
    draw: Callable[..., torch.Tensor] = torch.rand,
) -> torch.Tensor:
    """
    Random numbers of the shape of `pixels`, those of a picture drawn from its own index alone.

    Args:
        name (`str`): What they are for.
        seed (`int`): The seed.
        indices (`Sequence[int]`): Place of each picture in its dataset.
        pixels (`torch.Tensor` of shape `(batch_size, ...)`): Gives shape, dtype and device.
        draw (`Callable`, *optional*, defaults to `torch.rand`): `torch.rand` or `torch.randn`.
    """
    draws = [draw(pixels.shape[1:], generator=keyed_generator(name, seed, index)) for index in indices]
    return torch.stack(draws).to(pixels)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each picture, of shape `(batch_size,)`."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


class BestSoFar:
    """
    The strongest attacked copy of each picture: its first misclassified one, else the one of the highest loss.

    Args:
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures.

    Attributes:
        pixels (`torch.Tensor`): The copies.
        active (`torch.Tensor`): Rows that no copy has fooled the model on yet; what follows works on these alone.
    """

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels.clone()
        self.loss = torch.full((len(pixels),), -torch.inf, device=pixels.device)
        self.active = torch.arange(len(pixels), device=pixels.device)

    def update(self, candidates: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Takes in new copies of the active rows.

        Returns:
            `torch.Tensor` of shape `(num_active,)`: Which of them stay active.
        """
        loss = cross_entropy(logits.detach(), labels)
        fooled = logits.argmax(-1) != labels
        better = fooled | (loss > self.loss[self.active])
        rows = self.active[better]
        self.pixels[rows], self.loss[rows] = candidates.detach()[better], loss[better]
        self.active = self.active[~fooled]
        return ~fooled
