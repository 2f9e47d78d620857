"""Interpolation between a model's weights before and after finetuning (WiSE-FT)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn


Weights = TypeVar("Weights", nn.Module, Mapping[str, torch.Tensor])

NEW_HEAD = (
    "Where finetuning began with a new head, the start is the model whose head was trained alone first, before the other "
    "weights were."
)


@torch.no_grad()
def interpolate(start: Weights, finetuned: Weights, weight: float) -> Weights:
    """
    `(1 - weight) * start + weight * finetuned`: weight-space ensembling of
    [Wortsman et al., 2022](https://arxiv.org/abs/2109.01903), which costs no training.

    Floating-point weights and buffers are interpolated in float32 (float64 stays so). Integers, such as the counters of
    batch normalisation, are those of the nearer end. At 0 and 1 the result is an end, bit for bit.

    Args:
        start (`nn.Module` or `Mapping[str, torch.Tensor]`):
            The model before finetuning, or its state dict. Its head must be of the same classes: where finetuning began
            with a new head, take the model whose head was trained alone first.
        finetuned (`nn.Module` or `Mapping[str, torch.Tensor]`):
            The model after finetuning, or its state dict; of the kind of `start`.
        weight (`float`):
            Between 0 and 1.

    Returns:
        A model like `finetuned`, or a state dict; neither argument is changed.

    Raises:
        `TypeError`: If the two are not both models, or both state dicts.
        `ValueError`: If `weight` lies outside [0, 1], or the two are of other classes, names, shapes or dtypes.

    Example:

    ```python
    >>> from hf_nullspace.models.interpolation import interpolate

    >>> middle = interpolate(model, model, weight=0.5)
    >>> middle.config.num_labels == model.config.num_labels
    True
    ```
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise ValueError(f"`weight` must lie between 0 (the start) and 1 (the finetuned model), but got {weight!r}.")
    if isinstance(start, nn.Module) and isinstance(finetuned, nn.Module):
        _check_models(start, finetuned)
        merged = copy.deepcopy(finetuned)
        merged.load_state_dict(interpolate(start.state_dict(), finetuned.state_dict(), weight))
        return merged
    if not (isinstance(start, Mapping) and isinstance(finetuned, Mapping)):
        raise TypeError(
            f"Expected two models or two state dicts, but got a `{type(start).__name__}` and a "
            f"`{type(finetuned).__name__}`."
        )
    _check_names(start, finetuned)
    return {name: _between(name, start[name], value, weight) for name, value in finetuned.items()}


def _check_models(start: nn.Module, finetuned: nn.Module) -> None:
    if type(start) is not type(finetuned):
        raise ValueError(
            f"The start is a `{type(start).__name__}`, the finetuned model a `{type(finetuned).__name__}`: only models of "
            "one architecture have weights in between."
        )
    labels = [dict(getattr(getattr(model, "config", None), "id2label", None) or {}) for model in (start, finetuned)]
    if labels[0] != labels[1]:
        raise ValueError(
            f"The head of the start is of {_in_words(labels[0])}, that of the finetuned model of {_in_words(labels[1])}. "
            f"{NEW_HEAD}"
        )


def _in_words(labels: dict[Any, str]) -> str:
    names = list(labels.values())
    shown = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} classes ({shown})"


def _check_names(start: Mapping[str, torch.Tensor], finetuned: Mapping[str, torch.Tensor]) -> None:
    missing = [name for name in finetuned if name not in start]
    further = [name for name in start if name not in finetuned]
    if missing or further:
        raise ValueError(
            f"The two are no weights of one model: the start lacks {missing[:5]}, and the finetuned one {further[:5]} "
            f"({len(missing)} and {len(further)} names)."
        )


def _between(name: str, start: Any, end: Any, weight: float) -> Any:
    if not (isinstance(start, torch.Tensor) and isinstance(end, torch.Tensor)):
        raise ValueError(f"{name!r} is no tensor, but a `{type(start).__name__}` and a `{type(end).__name__}`.")
    if start.shape != end.shape or start.dtype != end.dtype:
        remedy = (
            "Load both in one dtype." if start.shape == end.shape else f"They are no weights of one model. {NEW_HEAD}"
        )
        raise ValueError(
            f"{name!r} is {start.dtype} of shape {tuple(start.shape)} in the start, and {end.dtype} of shape "
            f"{tuple(end.shape)} in the finetuned model. {remedy}"
        )
    if not end.is_floating_point():
        return (start if weight < 0.5 else end).to(end.device, copy=True)
    start = start.to(end.device)
    precision = torch.promote_types(end.dtype, torch.float32)
    return torch.lerp(start.to(precision), end.to(precision), weight).to(end.dtype)
