"""A model computing in float32 for a while, whatever precision its weights and its caller have."""

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
    Half-precision weights and buffers in float32 and autocast off; each tensor put back as it was, bit for bit.

    In float16 the gradient of a confident answer with respect to the picture underflows to 0, and every attack that
    follows it comes to nothing: the model looks robust. Takes the memory of the weights in float32 meanwhile.

    Args:
        model (`nn.Module`): The model; unchanged where its weights are in float32 or float64 and no autocast is on.
    """
    kept = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers()) if tensor.dtype in HALVES]
    # What Accelerate prepares opens autocast inside its own forward, where an outer context has no say.
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
