"""A classifier that gives other logits than the one inside."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import nn


class AlteredLogits(nn.Module):
    """The logits of `model` after `change`."""

    def __init__(self, model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.change(self.model(pixel_values).logits))
