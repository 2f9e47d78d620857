"""What all attacks share: which pictures they work on, what they keep, and where their random numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ...models.frozen import frozen
from ...models.full_precision import full_precision, gradients_on
from ...models.pixel_model import PixelModel
from ...utils.random import keyed_generator


# Problem types of Transformers whose answers no attack of this package is made for.
OTHER_TASKS = ("multi_label_classification", "regression")
# While an attack is watched: the pictures it works on, and those of them that had no gradient.
_WATCHED: ContextVar[dict[str, Any] | None] = ContextVar("watched_attack", default=None)


def attack_correct(
    search: Callable[[torch.Tensor, torch.Tensor, list[int]], torch.Tensor],
    model: PixelModel,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    indices: Sequence[int] | None,
) -> torch.Tensor:
    """
    Runs a search on the pictures that the model classifies correctly; the others are returned unchanged, at no cost.

    During the search the model is in eval mode, in float32 and without weight gradients, and gradients are enabled even
    inside a caller's `torch.no_grad()`.

    Args:
        search (`Callable`): Called with the chosen pictures, their labels and their indices; gives their attacked
            copies.
        model ([`PixelModel`]): The classifier under attack.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size,)`): Their true classes.
        indices (`Sequence[int]`, *optional*): Place of each picture in its dataset. By default 0 to `batch_size - 1`.

    Raises:
        `ValueError`: If the shapes do not fit together, a label is no class of the model, or the model is no classifier
            of one class for each picture.
    """
    refuse_other_tasks(getattr(model, "model", model))
    indices = list(range(len(pixels))) if indices is None else [int(index) for index in indices]
    if labels.shape != pixels.shape[:1] or labels.is_floating_point() or len(indices) != len(pixels):
        raise ValueError(
            f"{len(pixels)} pictures need {len(pixels)} whole-number labels and indices, but got labels of shape "
            f"{tuple(labels.shape)} and dtype {labels.dtype}, and {len(indices)} indices."
        )
    with gradients_on(model), frozen(model), full_precision(model):
        attacked = pixels.detach().clone()
        labels = labels.to(pixels.device, copy=True)
        if len(pixels) == 0:
            return attacked
        with torch.no_grad():
            logits = model(attacked)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ValueError(
                f"Labels must be 0 to {logits.shape[1] - 1}, the classes of the model, but range from "
                f"{labels.min().item()} to {labels.max().item()}."
            )
        chosen = is_right(logits, labels).nonzero().flatten()
        if len(chosen):
            places = [indices[place] for place in chosen.tolist()]
            if (watched := _WATCHED.get()) is not None:
                watched["chosen"] = chosen.tolist()
            attacked[chosen] = search(attacked[chosen], labels[chosen], places).detach()
    return attacked


def is_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each picture is classified correctly; logits with NaN or infinity are no answer."""
    return (logits.argmax(-1) == labels) & logits.isfinite().all(-1)


def refuse_other_tasks(model: nn.Module) -> None:
    """
    Raises a `ValueError` for a model whose config says that it has several labels for a picture, or numbers.

    Which class is the largest, and the loss of that class, say nothing about such a model.
    """
    problem_type = getattr(getattr(model, "config", None), "problem_type", None)
    if problem_type in OTHER_TASKS:
        raise ValueError(
            f"{type(model).__name__} has `config.problem_type={problem_type!r}`: its answer to a picture is not one class, "
            "so neither its accuracy nor an attack on that class is defined. Robustness is measured of classifiers with "
            '`problem_type` None or "single_label_classification".'
        )


@contextmanager
def watched_gradients() -> Iterator[set[int]]:
    """Collects the places, in the batch, of the pictures that an attack inside found no gradient for."""
    without: set[int] = set()
    token = _WATCHED.set({"chosen": [], "without": without})
    try:
        yield without
    finally:
        _WATCHED.reset(token)


def usable_gradient(gradient: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """
    A gradient with 0 in place of NaN and infinity, noted where a picture has nothing else.

    Args:
        gradient (`torch.Tensor` of shape `(num_rows, ...)`): With respect to pictures.
        rows (`torch.Tensor` of shape `(num_rows,)`, *optional*): Which of the pictures of the search each is of. By
            default all of them, in their order.
    """
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    if (watched := _WATCHED.get()) is not None:
        nothing = (gradient.flatten(1) == 0).all(1)
        found = nothing.nonzero().flatten() if rows is None else rows[nothing]
        watched["without"].update(watched["chosen"][row] for row in found.tolist())
    return gradient


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
        fooled = ~is_right(logits, labels)
        better = fooled | (loss > self.loss[self.active])
        rows = self.active[better]
        self.pixels[rows] = candidates.detach()[better]
        self.loss[rows] = loss[better]
        self.active = self.active[~fooled]
        return ~fooled
