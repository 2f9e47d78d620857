"""An exponential moving average of the weights, for any `Trainer`: checkpoints hold it, and training ends with it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..utils.files import replaced
from .checkpoints import REMEDY


AVERAGE_NAME = "averaged_weights.safetensors"


class WeightAverageCallback(TrainerCallback, ExportableState):
    """
    Averages the weights that are trained, `average = decay * average + (1 - decay) * weight` after every optimizer step,
    in float32, from those that training starts with.

    Training, evaluation during training and the `model.safetensors` of checkpoints use the trained weights. When
    training ends the average replaces them, so `evaluate`, `predict` and `save_model` after `train` use the average.
    Each checkpoint to resume from holds the average in `averaged_weights.safetensors`, and a resumed run ends with
    bitwise the same weights.

    Weights are averaged by name; buffers are not averaged. A weight that is unfrozen during training is averaged from
    then on. A weight that is frozen during training is still averaged, with its constant value.

    Args:
        decay (`float`, *optional*, defaults to 0.999):
            Between 0 and 1; 0.99 looks back over some 100 steps.

    Raises:
        `ValueError`: If `decay` lies outside (0, 1). By the trainer's constructor: if weights are spread over processes
            (FSDP, DeepSpeed), or `load_best_model_at_end` is set, which ends training with other weights. By `train`: if
            the average of the checkpoint is damaged, or of another model or checkpoint.
        `FileNotFoundError`: By `train`, if the checkpoint holds no average. A plain `Trainer` tells its callbacks not
            what it resumes from: set `resume_from_checkpoint` in the training arguments too, unless it is a checkpoint
            in their `output_dir`.

    Example:

    ```python
    >>> trainer = Trainer(model, args, callbacks=[WeightAverageCallback(0.99)], train_dataset=train_dataset)
    >>> result = trainer.train()
    ```
    """

    def __init__(self, decay: float = 0.999):
        if not (isinstance(decay, (int, float)) and 0 < decay < 1):
            raise ValueError(f"`decay` must lie between 0 and 1, but got {decay!r}.")
        self.decay = decay
        self.weights: dict[str, torch.Tensor] = {}
        self.average_id = ""  # of the average after the last step, in its file and in the state of the checkpoint
        self._average = get_ema_multi_avg_fn(decay)
        self._saved_step: int | None = None

    def state(self) -> dict[str, Any]:
        return {"args": {"decay": self.decay}, "attributes": {"average_id": self.average_id}}

    def on_init_end(self, args, state, control, **kwargs) -> None:
        kind = AcceleratorState().distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"`WeightAverageCallback` averages whole weights, which {kind.value} spreads over processes. Train without "
                "it, or with each process holding the whole model."
            )
        if args.load_best_model_at_end:
            raise ValueError(
                "`WeightAverageCallback` ends training with averaged weights, and `load_best_model_at_end` with those of a "
                "checkpoint. Choose one of them."
            )

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        self.on_init_end(args, state, control)  # where the callback was added later
        self._saved_step = None
        if state.global_step:
            self._load(args, state, model)
        else:
            self.weights = {}
            self._begin_with_trained(model)

    def on_step_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        self._begin_with_trained(model)  # what has been thawed since

    @torch.no_grad()
    def on_step_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        current = dict(model.named_parameters())
        self._average(list(self.weights.values()), [current[name].float() for name in self.weights], None)
        self.average_id = uuid.uuid4().hex

    @torch.no_grad()
    def on_train_end(self, args, state, control, model: nn.Module, **kwargs) -> None:
        current = dict(model.named_parameters())
        for name, average in self.weights.items():
            current[name].copy_(average)

    def on_push_begin(self, args, state, control, **kwargs) -> None:
        self.on_save(args, state, control)  # a checkpoint is pushed before it is said to be saved

    def on_save(self, args, state, control, **kwargs) -> None:
        checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save and not args.save_only_model and checkpoint.is_dir():
            self.save(checkpoint, state.global_step)

    def save(self, checkpoint: str | Path, step: int) -> None:
        """
        Writes the average after optimizer step `step` into a checkpoint, unless it has been. `Trainer` does so at its
        end; one that closes its checkpoints earlier calls this before.
        """
        if self._saved_step != step:
            with replaced(Path(checkpoint, AVERAGE_NAME)) as path:
                weights = {name: weight.contiguous() for name, weight in self.weights.items()}
                save_file(weights, path, metadata={"average_id": self.average_id})
            self._saved_step = step

    def _begin_with_trained(self, model: nn.Module) -> None:
        for name, weight in model.named_parameters():
            if weight.requires_grad and name not in self.weights:
                self.weights[name] = weight.detach().float().clone()

    def _load(self, args, state, model: nn.Module) -> None:
        """The average of the checkpoint that training goes on from, on the devices of the model's weights."""
        given = args.resume_from_checkpoint
        checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        path = (Path(given) if given and Path(given).is_dir() else checkpoint) / AVERAGE_NAME
        exported = state.stateful_callbacks.setdefault(type(self).__name__, {})  # none in those of earlier versions
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}: the checkpoint was trained without `WeightAverageCallback`, or lies elsewhere. Resume "
                "without the callback, set `resume_from_checkpoint` in the training arguments to the checkpoint, or "
                "start a new run from its weights."
            )
        current = dict(model.named_parameters())  # callbacks may have thawed some that are frozen at the start
        try:
            with safe_open(path, "pt") as file:
                average_id = (file.metadata() or {}).get("average_id", "")
                weights = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}. {REMEDY}") from error
        if any(name not in current or current[name].shape != weight.shape for name, weight in weights.items()):
            raise ValueError(f"{path} holds the weights of another model. {REMEDY}")
        if average_id != exported.get("attributes", {}).get("average_id", ""):
            raise ValueError(
                f"{path} is not of the checkpoint that is resumed from. Set `resume_from_checkpoint` in the training "
                f"arguments to that checkpoint. {REMEDY}"
            )
        self.average_id = average_id
        self.weights = {name: weights[name].to(current[name].device) for name in current if name in weights}
