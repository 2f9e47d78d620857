"""Which inputs a model's forward pass takes: of a batch for training, the noise needs those alone."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


LABEL_NAMES = ("labels", "label", "label_ids")


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a model's forward pass by name, without `self`; those of the classifier inside a PEFT model."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(type(model).forward).parameters
    return dict(list(parameters.items())[1:])


def accepted_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """
    Those of `inputs` that the forward pass names, as `remove_unused_columns` keeps them; all where it names none.

    Args:
        model (`nn.Module`): The model, unwrapped.
        inputs (`dict`): A batch, with `pixel_values`.
    """
    names = forward_parameters(model)
    if "pixel_values" not in names:
        return inputs
    return {name: value for name, value in inputs.items() if name in names}


def missing_inputs(model: nn.Module, inputs: dict[str, Any]) -> list[str]:
    """Names of the parameters that have no default and that `inputs` lack."""
    empty = inspect.Parameter.empty
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in forward_parameters(model).items()
        if parameter.default is empty and parameter.kind not in variable and name not in inputs
    ]
