"""An exponential moving average of the weights in training, which checkpoints hold and training ends with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from .checkpointing import REMEDY
from .noise import replaced


AVERAGE_NAME = "averaged_weights.safetensors"


class WeightAverage(TrainerCallback):
    """
    Averages the weights that are trained, `average = decay * average + (1 - decay) * weight` after every optimizer step,
    in float32, from those that training starts with; puts the average in their place when training ends.

    Buffers are not averaged.

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
            self.weights = {name: weight.detach().float().clone() for name, weight in _trained(model).items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        current = [weight.float() for weight in _trained(model).values()]
        self._average(list(self.weights.values()), current, None)

    @torch.no_grad()
    def on_train_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        for name, weight in _trained(model).items():
            weight.copy_(self.weights[name])

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
        trained = _trained(model)
        expected = {name: tuple(weight.shape) for name, weight in trained.items()}
        if {name: tuple(weight.shape) for name, weight in weights.items()} != expected:
            raise ValueError(f"{AVERAGE_NAME} in {directory} holds the weights of another model. {REMEDY}")
        self.weights = {name: weights[name].to(trained[name].device) for name in trained}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
