"""The clean and the noisy half of a training batch in one forward pass, as if they were two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .batch_parts import is_batched, part_of, with_loss
from .injection import NoiseInjector
from .patch_embedding import PatchProjection
from .randomness import preserved_random_state


logger = logging.get_logger(__name__)


class NotConcatenableError(Exception):
    """Raised where the halves of one forward pass are not those of two; the caller then runs two."""


class TwofoldForward(nn.Module):
    """
    Stands in for a classifier whose clean and noisy outputs come from one pass over both.

    The first call runs the model on the batch and the same batch again, with noise on the second half, and returns the
    clean half with a loss of its own; the second call returns the noisy half. To whoever calls it twice, as `Trainer`'s
    `compute_loss` does, it looks like two passes.

    Args:
        model (`nn.Module`): The classifier as it is trained, wrapped and all.
        unwrapped (`nn.Module`): The same classifier without wrappers; its `loss_function` gives each half its loss.
        injector ([`NoiseInjector`]): The injector of the classifier.
        noise (`torch.Tensor` of shape `(1 or batch_size, num_patches, hidden_size)`): The noise.
        check (`bool`, *optional*, defaults to `False`): Whether to compare the losses of the halves with the loss that
            the model gives for both. It takes a device sync, so one pass before a training run will do.
    """

    def __init__(
        self, model: nn.Module, unwrapped: nn.Module, injector: NoiseInjector, noise: torch.Tensor, check: bool = False
    ):
        super().__init__()
        self.model, self.unwrapped = model, unwrapped
        self.injector, self.noise, self.check = injector, noise, check
        self.noisy_half: dict[str, Any] | None = None

    def forward(self, **inputs: Any) -> dict[str, Any]:
        if self.noisy_half is not None:
            return self.noisy_half
        batch_size = len(inputs["pixel_values"])
        twofold = {
            name: torch.cat([value, value]) if is_batched(value, batch_size) else value
            for name, value in inputs.items()
        }
        with self.injector.inject(self.noise, is_twofold=True):
            outputs = self.model(**twofold)
        if not isinstance(outputs, dict):
            raise NotConcatenableError(f"the model returns a {type(outputs).__name__} without names")
        clean_half, self.noisy_half = (
            with_loss(part_of(outputs, start, batch_size, 2 * batch_size), inputs, self.unwrapped)
            for start in (0, batch_size)
        )
        if self.check and "loss" in outputs:
            # Divided by `num_items_in_batch` the loss of both is the sum of theirs, otherwise it is their mean.
            both = clean_half["loss"] + self.noisy_half["loss"]
            both = both if inputs.get("num_items_in_batch") is not None else both / 2
            if not torch.allclose(both.float(), outputs["loss"].float(), rtol=1e-3, atol=1e-6, equal_nan=True):
                raise NotConcatenableError("the model's loss is not its `loss_function` of logits and labels")
        return clean_half


class ForwardPlan:
    """
    Whether the halves of a batch share one pass; once they do not, they never do again.

    Args:
        noise_forward (`str`): `"concatenated"` or `"sequential"`, what was asked for.
        model (`nn.Module`): The classifier, unwrapped.
    """

    def __init__(self, noise_forward: str, model: nn.Module):
        self.concatenates, self._is_checked = noise_forward == "concatenated", False
        reason = reason_against_concatenation(model)
        if self.concatenates and reason is not None:
            self._run_sequentially(reason)

    def losses(
        self,
        loss_of: Callable[[nn.Module], Any],
        model: nn.Module,
        unwrapped: nn.Module,
        injector: NoiseInjector,
        noise: torch.Tensor,
    ) -> tuple[Any, Any]:
        """
        The clean and the noisy result of `loss_of(model)`, which runs the model it is given once.

        Args:
            loss_of (`Callable`): Takes the model, or a stand-in for it.
            model, unwrapped, injector, noise: As in [`TwofoldForward`].
        """
        if self.concatenates and not self._is_checked:
            # What it draws is given back: a resumed run checks again, an uninterrupted one does not.
            with preserved_random_state():  # with gradients on, or torch.compile would make another graph
                try:
                    loss_of(TwofoldForward(model, unwrapped, injector, noise, check=True))
                except NotConcatenableError as reason:
                    self._run_sequentially(str(reason))
            self._is_checked = True
        if self.concatenates:
            halves = TwofoldForward(model, unwrapped, injector, noise)
            return loss_of(halves), loss_of(halves)
        clean = loss_of(model)
        with injector.inject(noise):
            return clean, loss_of(model)

    def _run_sequentially(self, reason: str) -> None:
        self.concatenates = False
        logger.warning(f"The clean and the noisy images run in two forward passes: {reason}.")


def reason_against_concatenation(model: nn.Module) -> str | None:
    """
    Why one pass over both halves would not be two passes; `None` if it would.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            return f"{name} ({type(module).__name__}) takes its statistics over the batch"
    if not hasattr(model, "loss_function"):
        return f"{type(model).__name__} has no `loss_function`"
    return None


def check_not_checkpointed(model: nn.Module, projection: PatchProjection) -> None:
    """
    Makes sure that the backward pass does not run the projection again, when its noise is gone.

    Raises:
        `ValueError`: If the patch projection lies inside a layer that activation checkpointing recomputes.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, GradientCheckpointingLayer) and projection.name.startswith(f"{name}."):
            raise ValueError(
                f"Activation checkpointing runs {name} again in the backward pass, and with it the patch projection "
                f"{projection.name}, without its noise: the gradients would be wrong. Train "
                f"{type(model).__name__} without `activation_checkpointing`."
            )
