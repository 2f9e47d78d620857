"""Runs the clean and the noisy images of a training batch in one forward pass, with the results of two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from ..models.adapters import without_adapters
from ..models.injection import NoiseInjector, is_compiled
from ..models.patch_projection import PatchProjection
from ..utils.random import preserved_random_state


logger = logging.get_logger(__name__)


class NotSeparableError(Exception):
    """Raised when one forward pass over several parts does not give what a separate pass for each would."""


def is_batched(value: Any, batch_size: int) -> bool:
    """Whether `value` is a tensor with a row for each of `batch_size` images."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == batch_size


def part_of(values: Any, start: int, count: int, batch_size: int) -> Any:
    """
    The rows `start` to `start + count - 1` of every per-image tensor; other values are returned unchanged.

    Args:
        values (`Any`): Inputs or outputs of a model: a tensor, or a `dict`, `tuple` or `list` of such values.
        start, count (`int`): The rows.
        batch_size (`int`): Number of images that there are.
    """
    if isinstance(values, dict):
        parts = {name: part_of(value, start, count, batch_size) for name, value in values.items()}
        return type(values)(**parts)
    if isinstance(values, (tuple, list)):
        return type(values)(part_of(value, start, count, batch_size) for value in values)
    return values[start : start + count] if is_batched(values, batch_size) else values


@contextmanager
def loss_function_replaced(model: nn.Module, replacement: Callable[..., torch.Tensor]) -> Iterator[None]:
    """
    Inside the `with` block a model's forward pass calls `replacement` where it would have called its `loss_function`.

    Args:
        model (`nn.Module`): A Transformers model, or a PEFT model around one.
        replacement (`Callable`): Takes what the `loss_function` takes.
    """
    model = without_adapters(model)
    # The library's property reads `_loss_function`. A class with a `loss_function` method is shadowed by an attribute.
    name = "_loss_function" if isinstance(getattr(type(model), "loss_function", None), property) else "loss_function"
    own = vars(model).get(name)
    setattr(model, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(model, name)
        else:
            setattr(model, name, own)


class PartLosses:
    """
    Gives each part of a batch the loss that the model's own `loss_function` gives it.

    Run the forward pass over all parts inside `standing_in`. The object replaces the model's `loss_function` and calls
    it once per part, so it assumes nothing about that function. The losses are right only if the model returns the
    result unchanged, which `check` verifies.

    Args:
        model (`nn.Module`): The classifier without wrappers.
        parts (sequence of `tuple[int, int]`): First row and number of rows of each part.
        batch_size (`int`): Rows of all parts.
    """

    def __init__(self, model: nn.Module, parts: Sequence[tuple[int, int]], batch_size: int):
        self.model = model
        self.parts = parts
        self.batch_size = batch_size
        self.own = getattr(without_adapters(model), "loss_function", None)
        self.losses: list[torch.Tensor] = []
        self._handed_out: torch.Tensor | None = None

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        tensors = [value for value in (*args, *options.values()) if isinstance(value, torch.Tensor) and value.dim()]
        if len(tensors) != 2 or not all(is_batched(tensor, self.batch_size) for tensor in tensors):
            raise NotSeparableError("the model's `loss_function` takes more than labels and logits of each image")
        self.losses = [
            self.own(*part_of(args, *part, self.batch_size), **part_of(options, *part, self.batch_size))
            for part in self.parts
        ]
        self._handed_out = torch.stack(self.losses).float().sum()  # in float32 it passes through autocast as it is
        return self._handed_out

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Inside the `with` block the model calls this object instead of its `loss_function`."""
        if self.own is None:
            yield
            return
        if isinstance(self.own, nn.Module):
            raise NotSeparableError("the model's `loss_function` is a module of its own")
        with loss_function_replaced(self.model, self):
            yield

    def check(self, outputs: Any) -> None:
        """
        Raises:
            [`NotSeparableError`]: If the loss in `outputs` is not the unchanged result of the `loss_function`, or
                another output is not per-image.
        """
        if not isinstance(outputs, dict):
            raise NotSeparableError(f"the model returns a {type(outputs).__name__} without names")
        if outputs.get("loss") is not None and outputs["loss"] is not self._handed_out:
            raise NotSeparableError("the model's loss is not its `loss_function` of logits and labels")
        self.check_rows({name: value for name, value in outputs.items() if name != "loss"})

    def check_rows(self, values: Any) -> None:
        """
        Raises:
            [`NotSeparableError`]: If a tensor in `values` has no row for each image.
        """
        for name, value in values.items():
            for each in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(each, torch.Tensor) and not is_batched(each, self.batch_size):
                    raise NotSeparableError(
                        f"the model's {name}, of shape {tuple(each.shape)}, are of the whole batch"
                    )


def with_loss(outputs: dict[str, Any], inputs: dict[str, Any], unwrapped: nn.Module) -> dict[str, Any]:
    """
    Replaces the loss in the outputs of one part by that part's own loss, if the model returned a loss.

    The model's loss must be its `loss_function`, which [`PartLosses`] verifies.

    Args:
        outputs (`dict`): Outputs of some images, as [`part_of`] gives them; changed in place.
        inputs (`dict`): The inputs of the same images.
        unwrapped (`nn.Module`): The classifier without wrappers, for its `loss_function`.
    """
    if "loss" in outputs:
        options = {name: inputs[name] for name in ("num_items_in_batch",) if name in inputs}
        classifier = without_adapters(unwrapped)
        outputs["loss"] = classifier.loss_function(inputs["labels"], outputs["logits"], classifier.config, **options)
    return outputs


# Libraries whose layers process each image independently, except for layers that keep batch statistics.
KNOWN_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "peft")


class TwofoldForward(nn.Module):
    """
    Replaces a classifier that is called twice, clean and noisy, by one that runs a single pass over both halves.

    The first call runs the model on the batch twice over, with noise on the second half, and returns the clean half
    with its own loss. The second call returns the noisy half. The caller, such as `Trainer`'s `compute_loss`, sees two
    forward passes. Each half's loss comes from the model's `loss_function`, called on one half at a time. A model that
    computes its loss in another way is not supported.

    Args:
        model (`nn.Module`): The classifier as it is trained, with its wrappers.
        unwrapped (`nn.Module`): The same classifier without wrappers.
        injector ([`NoiseInjector`]): The injector of the classifier.
        noise (`torch.Tensor` of shape `(1 or batch_size, num_patches, hidden_size)`): The noise.

    Raises:
        [`NotSeparableError`]: By a call, if one pass over both halves does not give what two passes would.
    """

    def __init__(self, model: nn.Module, unwrapped: nn.Module, injector: NoiseInjector, noise: torch.Tensor):
        super().__init__()
        self.model = model
        self.unwrapped = unwrapped
        self.injector = injector
        self.noise = noise
        self.noisy_half: dict[str, Any] | None = None

    def forward(self, **inputs: Any) -> dict[str, Any]:
        if self.noisy_half is not None:
            return self.noisy_half
        batch_size = len(inputs["pixel_values"])
        twofold = {name: _twice(name, value, batch_size) for name, value in inputs.items()}
        parts = [(start, batch_size) for start in (0, batch_size)]
        losses = PartLosses(self.unwrapped, parts, 2 * batch_size)
        compiled = is_compiled(self.model)
        # Compiled code keeps the original `loss_function`. An eager pass has verified that it is the model's whole loss.
        stand_in = nullcontext() if compiled else losses.standing_in()
        with self.injector.inject(self.noise, is_twofold=True), stand_in:
            outputs = self.model(**twofold)
        clean_half, self.noisy_half = (part_of(outputs, *part, 2 * batch_size) for part in parts)
        if compiled:
            losses.check_rows({name: value for name, value in outputs.items() if name != "loss"})
            with_loss(clean_half, inputs, self.unwrapped)
            with_loss(self.noisy_half, inputs, self.unwrapped)
            return clean_half
        losses.check(outputs)
        if outputs.get("loss") is not None:
            clean_half["loss"], self.noisy_half["loss"] = losses.losses
        return clean_half


class ForwardPlan:
    """
    Decides whether the clean and the noisy images share one forward pass.

    It starts with what was asked for, and falls back permanently to two passes once one pass proves unsuitable.

    Args:
        noise_forward (`str`): `"concatenated"` or `"sequential"`, what was asked for.
        model (`nn.Module`): The classifier, unwrapped.
        reason (`str`, *optional*): Why the computation of the loss needs two passes.
        told (`str`, *optional*): The reason that has been logged already; it is not logged again.

    Attributes:
        concatenates (`bool`): Whether clean and noisy images share a pass.
        reason (`str` or `None`): Why they do not although one pass was asked for.
    """

    def __init__(self, noise_forward: str, model: nn.Module, reason: str | None = None, told: str | None = None):
        self.concatenates = noise_forward == "concatenated"
        self.reason = told
        self._is_checked = False
        reason = reason or reason_against_concatenation(model)
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
            # The random state is restored: a resumed run checks again, an uninterrupted one does not.
            with preserved_random_state():
                eager = unwrapped if is_compiled(model) else model
                self._try(lambda: loss_of(TwofoldForward(eager, unwrapped, injector, noise)))
            self._is_checked = True
        if self.concatenates:
            halves = TwofoldForward(model, unwrapped, injector, noise)
            # If the model's loss has changed since the check, the two passes below are run instead.
            results = self._try(lambda: (loss_of(halves), loss_of(halves)))
            if results is not None:
                return results
        clean = loss_of(model)
        with injector.inject(noise):
            return clean, loss_of(model)

    def _try(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except NotSeparableError as reason:
            self._run_sequentially(str(reason))
            return None

    def _run_sequentially(self, reason: str) -> None:
        told = self.reason
        self.reason = reason
        self.concatenates = False
        if reason != told:
            logger.warning(f"The clean and the noisy images run in two forward passes: {reason}.")


def reason_against_concatenation(model: nn.Module) -> str | None:
    """
    Why one pass over both halves may differ from two passes; `None` if it does not.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
    """
    for name, module in model.named_modules():
        kind = type(module)
        named = f"{name} ({kind.__name__})" if name else kind.__name__
        if isinstance(module, _BatchNorm) or {"running_mean", "running_var"} & module._buffers.keys():
            return f"{named} takes its statistics over the batch"
        if kind.__module__.partition(".")[0] not in KNOWN_LIBRARIES or _has_other_forward(module):
            return f"{named} runs code of its own, which may make one thing of the images of a batch"
    return None


def _has_other_forward(module: nn.Module) -> bool:
    """Whether a module's `forward` was replaced by another than Accelerate's wrapper around it."""
    attributes = vars(module)
    forward = attributes.get("_original_forward", attributes.get("_old_forward", attributes.get("forward")))
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _twice(name: str, value: Any, batch_size: int) -> Any:
    """An input of a batch, repeated for the second half."""
    if is_batched(value, batch_size):
        return torch.cat([value, value])
    if isinstance(value, (dict, list, tuple)):
        raise NotSeparableError(f"the input {name} is a {type(value).__name__}, not a tensor")
    return value


def check_not_checkpointed(model: nn.Module, projection: PatchProjection, will_be_on: bool = False) -> None:
    """
    Makes sure that activation checkpointing does not run the projection again without its noise.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
        projection ([`PatchProjection`]): Where the noise is added.
        will_be_on (`bool`, *optional*, defaults to `False`): Whether activation checkpointing is turned on later, in
            every layer that supports it. Otherwise only layers that have it on count.

    Raises:
        `ValueError`: If the patch projection lies inside a layer that activation checkpointing recomputes.
    """
    for name, layer in model.named_modules():
        is_on = isinstance(layer, GradientCheckpointingLayer) and (will_be_on or layer.gradient_checkpointing)
        if is_on and projection.name.startswith(f"{name}."):
            raise ValueError(
                f"Activation checkpointing runs {name} again in the backward pass, and with it the patch projection "
                f"{projection.name}, without its noise: the gradients would be wrong. Train "
                f"{type(model).__name__} without `activation_checkpointing`."
            )
