"""Some images of a batch that a classifier ran on: their inputs, their outputs, and a loss of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class NotSeparableError(Exception):
    """Raised where the parts of one forward pass are not what passes of their own would give."""


def is_batched(value: Any, batch_size: int) -> bool:
    """Whether `value` is a tensor with a row for each of `batch_size` images."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == batch_size


def part_of(values: Any, start: int, count: int, batch_size: int) -> Any:
    """
    The rows `start`, ..., `start + count - 1` of every tensor with a row for each image; all else as it is.

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


def without_adapters(model: nn.Module) -> nn.Module:
    """The classifier inside a PEFT model; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def loss_function_replaced(model: nn.Module, replacement: Callable[..., torch.Tensor]) -> Iterator[None]:
    """
    Inside the `with` block a model's forward pass calls `replacement` where it would have called its `loss_function`.

    Args:
        model (`nn.Module`): A Transformers model, or a PEFT model around one.
        replacement (`Callable`): Takes what the `loss_function` takes.
    """
    model = without_adapters(model)
    # What the library's property reads; a class with a method in its place is shadowed by an attribute.
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

    Use it as a context around a forward pass over all parts. It stands in for the `loss_function`, and calls it once
    for each part, so nothing is known or assumed of it. What the model does with the result is its own affair: only if
    it hands it on untouched are the losses of the parts those that the model would have given them.

    Args:
        model (`nn.Module`): The classifier without wrappers.
        parts (sequence of `tuple[int, int]`): First row and number of rows of each part.
        batch_size (`int`): Rows of all parts.
    """

    def __init__(self, model: nn.Module, parts: Sequence[tuple[int, int]], batch_size: int):
        self.model, self.parts, self.batch_size = model, parts, batch_size
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
        """Around the forward pass over all parts."""
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
            [`NotSeparableError`]: If the loss in `outputs` is not untouched what the `loss_function` gave, or if
                something else in them belongs to the whole batch.
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
    Outputs of a part with that part's loss, if the model gave one, from a model whose loss [`PartLosses`] knows.

    Args:
        outputs (`dict`): Outputs of some images, as [`part_of`] gives them; changed.
        inputs (`dict`): The inputs of the same images.
        unwrapped (`nn.Module`): The classifier without wrappers, for its `loss_function`.
    """
    if "loss" in outputs:
        options = {name: inputs[name] for name in ("num_items_in_batch",) if name in inputs}
        classifier = without_adapters(unwrapped)
        outputs["loss"] = classifier.loss_function(inputs["labels"], outputs["logits"], classifier.config, **options)
    return outputs
