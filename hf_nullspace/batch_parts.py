"""Some images of a batch that a classifier ran on: their inputs, their outputs, and a loss of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


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


def with_loss(outputs: dict[str, Any], inputs: dict[str, Any], unwrapped: nn.Module) -> dict[str, Any]:
    """
    Outputs of a part with that part's loss, if the model gave one.

    Args:
        outputs (`dict`): Outputs of some images, as [`part_of`] gives them; changed.
        inputs (`dict`): The inputs of the same images.
        unwrapped (`nn.Module`): The classifier without wrappers, for its `loss_function`.
    """
    if "loss" in outputs:
        options = {name: inputs[name] for name in ("num_items_in_batch",) if name in inputs}
        outputs["loss"] = unwrapped.loss_function(inputs["labels"], outputs["logits"], unwrapped.config, **options)
    return outputs
