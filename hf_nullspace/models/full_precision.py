"""Runs a model in float32 for a while, whatever the dtype of its weights and the caller's autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def full_precision(model: nn.Module) -> Iterator[nn.Module]:
    """
    Casts half-precision weights and buffers to float32 and turns autocast off. Every tensor is restored bit for bit.

    In float16 the gradient of a confident prediction with respect to the picture underflows to 0. Gradient attacks
    then fail and the model looks robust. Meanwhile the weights take the memory of float32.

    Args:
        model (`nn.Module`): The model; unchanged where its weights are in float32 or float64 and no autocast is on.
    """
    kept = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers()) if tensor.dtype in HALVES]
    # A model prepared by Accelerate enters autocast inside its own forward, which an outer context cannot turn off.
    wrapped = [
        (module, module.forward)
        for module in model.modules()
        if {"forward", "_original_forward"} <= vars(module).keys()
    ]
    device_type = next((tensor.device.type for tensor in model.parameters()), "cpu")
    try:
        for tensor, data in kept:
            tensor.data = data.float()
        for module, _ in wrapped:
            module.forward = module._original_forward
        with torch.autocast(device_type, enabled=False):
            yield model
    finally:
        for module, forward in wrapped:
            module.forward = forward
        for tensor, data in kept:
            tensor.data = data


def is_half(model: nn.Module) -> bool:
    """Whether some weight is in float16 or bfloat16."""
    return any(weight.dtype in HALVES for weight in model.parameters())


@contextmanager
def gradients_on(model: nn.Module) -> Iterator[None]:
    """Gradients with respect to the inputs of a model, also under a caller's `no_grad` or `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_inference():  # made under `inference_mode`; a backward pass could not keep it
                    module._buffers[name] = buffer.clone()
        yield
