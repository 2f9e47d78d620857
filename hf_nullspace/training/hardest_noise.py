"""For each image the hardest of several noises: an inner maximisation that costs forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..models.injection import NoiseInjector
from .noise_forward import NotSeparableError, PartLosses, part_of


logger = logging.get_logger(__name__)


# From a classifier, or a stand-in for it, and the inputs of a batch to the loss of that batch.
Loss = Callable[[nn.Module, dict[str, Any]], torch.Tensor]


def hardest(candidates: Iterable[torch.Tensor], losses_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """
    For each image the noise with the largest loss; the earlier one where two are equal.

    Args:
        candidates (iterable of `torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): At least one.
        losses_of (`Callable`): From noises of that shape to losses of shape `(batch_size,)`. One that is not finite is
            never chosen, unless all are.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`.
    """
    candidates = iter(candidates)
    chosen = next(candidates)
    largest = _finite(losses_of(chosen))
    for noise in candidates:
        losses = _finite(losses_of(noise))
        chosen = torch.where((losses > largest).view(-1, 1, 1), noise, chosen)
        largest = torch.maximum(losses, largest)
    return chosen


class ImageLosses:
    """
    The loss of each image of a batch, whatever makes the loss of the batch out of them.

    One pass over the batch is enough where the batch's loss is the mean or the sum of the images' own; the first call
    finds out. Elsewhere every image takes a pass of its own.
    """

    def __init__(self, shares_pass: bool | None = None):
        self.shares_pass = shares_pass

    def __call__(
        self,
        loss_of: Loss,
        model: nn.Module,
        inputs: dict[str, Any],
        injector: NoiseInjector,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """
        Losses under noise, of shape `(batch_size,)`.

        Args:
            loss_of (`Callable`): From a model and inputs to the loss; runs the model it is given once.
            model (`nn.Module`): The classifier, unwrapped, in evaluation mode.
            inputs (`dict`): The batch, with `pixel_values` of shape `(batch_size, ...)`.
            injector ([`NoiseInjector`]): The injector of the classifier.
            noise (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): The noise of each image.
        """
        inputs = dict(inputs)
        if self.shares_pass is None:
            try:
                with injector.inject(noise):
                    losses, whole = _in_one_pass(loss_of, model, inputs)
                self.shares_pass = any(
                    torch.allclose(loss.float(), whole.float(), rtol=1e-3, atol=1e-6, equal_nan=True)
                    for loss in (losses.mean(), losses.sum())
                )
            except NotSeparableError:
                self.shares_pass = False
            if not self.shares_pass:
                logger.warning(
                    "Each image's loss under each candidate noise takes a forward pass of its own: the loss of "
                    f"{type(model).__name__} is not made of its `loss_function` of each image."
                )
        if self.shares_pass:
            with injector.inject(noise):
                return _in_one_pass(loss_of, model, inputs)[0]
        losses = []
        for index in range(len(noise)):
            with injector.inject(noise[index : index + 1]):
                losses.append(loss_of(model, part_of(inputs, index, 1, len(noise))))
        return torch.stack(losses)


class _Recorder(nn.Module):
    """Runs a classifier and keeps what it gave, and the loss of each image."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.outputs, self.losses = model, None, []

    def forward(self, **inputs: Any) -> Any:
        batch_size = len(inputs["pixel_values"])
        losses = PartLosses(self.model, [(index, 1) for index in range(batch_size)], batch_size)
        with losses.standing_in():
            self.outputs = self.model(**inputs)
        losses.check(self.outputs)
        self.losses = losses.losses
        if self.outputs.get("loss") is not None and inputs.get("num_items_in_batch") is None:
            self.outputs["loss"] = self.outputs["loss"] / batch_size
        return self.outputs


class _OneImage(nn.Module):
    """Stands in for a classifier that ran on a batch: gives what it gave for one of the images."""

    def __init__(self, ran: _Recorder, index: int, batch_size: int):
        super().__init__()
        self.ran, self.index, self.batch_size = ran, index, batch_size

    def forward(self, **inputs: Any) -> Any:
        outputs = part_of(self.ran.outputs, self.index, 1, self.batch_size)
        if self.ran.losses:
            outputs["loss"] = self.ran.losses[self.index]
        return outputs


def _in_one_pass(loss_of: Loss, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the images, and that of the batch."""
    batch_size, ran = len(inputs["pixel_values"]), _Recorder(model)
    whole = loss_of(ran, inputs)
    losses = [
        loss_of(_OneImage(ran, index, batch_size), part_of(inputs, index, 1, batch_size))
        for index in range(batch_size)
    ]
    return torch.stack(losses), whole


def _finite(losses: torch.Tensor) -> torch.Tensor:
    return torch.where(losses.isfinite(), losses.float(), -torch.inf)
