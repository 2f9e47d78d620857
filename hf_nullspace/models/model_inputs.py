"""Selects the inputs of a batch that a model's forward pass accepts."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .adapters import without_adapters


LABEL_NAMES = ("labels", "label", "label_ids")


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a model's `forward` by name, without `self`; of a PEFT model, those of the model inside."""
    parameters = inspect.signature(type(without_adapters(model)).forward).parameters
    return dict(list(parameters.items())[1:])


def accepted_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """
    The entries of `inputs` that `forward` names, as with `remove_unused_columns`; all of them if it names none.

    Args:
        model (`nn.Module`): The model, unwrapped.
        inputs (`dict`): A batch, with `pixel_values`.
    """
    names = forward_parameters(model)
    if "pixel_values" not in names:
        return inputs
    return {name: value for name, value in inputs.items() if name in names}


def missing_inputs(model: nn.Module, inputs: dict[str, Any]) -> list[str]:
    """Names of the required parameters that are missing in `inputs`."""
    empty = inspect.Parameter.empty
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in forward_parameters(model).items()
        if parameter.default is empty and parameter.kind not in variable and name not in inputs
    ]
