"""Some rows of a training batch, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def is_batched(value: Any, batch_size: int) -> bool:
    """Whether `value` is a tensor with a row for each of `batch_size` images."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == batch_size


def select_rows(values: Any, rows: torch.Tensor | slice, batch_size: int) -> Any:
    """
    The given rows of every per-image tensor; other values are returned unchanged.

    Args:
        values (`Any`): Inputs of a model: a tensor, or a mapping, `tuple` or `list` of such values.
        rows (`torch.Tensor` of shape `(num_rows,)` or `slice`): Which.
        batch_size (`int`): Number of images that there are.
    """
    if isinstance(values, Mapping):
        return {name: select_rows(value, rows, batch_size) for name, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(select_rows(value, rows, batch_size) for value in values)
    return values[rows] if is_batched(values, batch_size) else values
