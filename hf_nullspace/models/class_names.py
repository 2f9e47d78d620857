"""The names of a classifier's classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def class_names(model: nn.Module, num_labels: int | None = None) -> list[str]:
    """
    The model's own names of its classes, in the order of its logits; `"class 3"` where its config has none.

    Args:
        model (`nn.Module`): The classifier.
        num_labels (`int`, *optional*): Its number of logits. By default as many as its config names, which may be none.
    """
    named = getattr(getattr(model, "config", None), "id2label", None) or {}
    if num_labels is None:
        num_labels = max(named, default=-1) + 1
    return [str(named.get(index, f"class {index}")) for index in range(num_labels)]


def class_name(names: Sequence[str], index: int) -> str:
    """One of the names that [`class_names`] gave; `"class 3"` where they do not go as far."""
    return names[index] if index < len(names) else f"class {index}"
