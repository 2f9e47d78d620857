"""An exponential moving average of the weights in training, which checkpoints hold and training ends with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..utils.files import replaced
from .checkpoints import REMEDY


AVERAGE_NAME = "averaged_weights.safetensors"


class WeightAverage(TrainerCallback):
    """
    Averages the weights that are trained, `average = decay * average + (1 - decay) * weight` after every optimizer step,
    in float32, from those that training starts with; puts the average in their place when training ends.

    Buffers are not averaged. A weight that is thawed on the way is averaged from there on; one that is frozen on the way
    goes on in the average as it is.

    Args:
        decay (`float`): Between 0 and 1.
    """

    def __init__(self, decay: float):
        self._average = get_ema_multi_avg_fn(decay)
        self.reset()

    def reset(self) -> None:
        """Back to before the first step."""
        self.weights: dict[str, torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        if self.weights is None:
            self.weights = {}
            self._begin_with(_trained(model))

    def on_step_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        self._begin_with(_trained(model))  # what has been thawed since

    @torch.no_grad()
    def on_step_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        current = dict(model.named_parameters())
        self._average(list(self.weights.values()), [current[name].float() for name in self.weights], None)

    @torch.no_grad()
    def on_train_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        current = dict(model.named_parameters())
        for name, average in self.weights.items():
            current[name].copy_(average)

    def _begin_with(self, weights: dict[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            if name not in self.weights:
                self.weights[name] = weight.detach().float().clone()

    def save(self, directory: str) -> None:
        """Writes the average into a checkpoint."""
        with replaced(Path(directory, AVERAGE_NAME)) as path:
            save_file({name: weight.contiguous() for name, weight in self.weights.items()}, path)

    def load(self, directory: str, model: nn.Module) -> None:
        """
        Restores the average from a checkpoint, onto the devices of the model's weights.

        Raises:
            `FileNotFoundError`: If the checkpoint holds none.
            `ValueError`: If the file is damaged, or its weights are not those of the model.
        """
        path = Path(directory, AVERAGE_NAME)
        if not path.is_file():
            raise FileNotFoundError(
                f"The checkpoint {directory} has no {AVERAGE_NAME}: it was trained without `ema_decay`. Resume without it, "
                "or start a new run from the checkpoint's weights."
            )
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{AVERAGE_NAME} in {directory} is damaged: {error}. {REMEDY}") from error
        current = dict(model.named_parameters())  # callbacks may have thawed some that are frozen at the start
        if any(name not in current or current[name].shape != weight.shape for name, weight in weights.items()):
            raise ValueError(f"{AVERAGE_NAME} in {directory} holds the weights of another model. {REMEDY}")
        self.weights = {name: weights[name].to(current[name].device) for name in current if name in weights}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
