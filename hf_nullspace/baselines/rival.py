"""What the ways of finetuning without nullspace noise share: their arguments, and random numbers for each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import DistributedType
from torch import nn

from ..training.arguments import NullspaceTrainingArguments
from ..training.trainer import NullspaceTrainer
from ..utils.random import keyed_generator


@dataclass
class RivalTrainingArguments(NullspaceTrainingArguments):
    """
    Arguments of a [`RivalTrainer`]: those of [`NullspaceTrainingArguments`], where `noise_weight` is 0, and must be.

    Raises:
        `ValueError`: If `noise_weight` is not 0.
    """

    noise_weight: float = field(default=0.0, metadata={"help": "Must be 0: it trains on no nullspace noise."})

    def __post_init__(self):
        super().__post_init__()
        if self.noise_weight != 0:
            raise ValueError(
                f"`noise_weight` must be 0 in {type(self).__name__}, but got {self.noise_weight!r}. To train on nullspace "
                "noise from a model that was trained like this, give that model to `NullspaceTrainer`."
            )


def check_steps(args: NullspaceTrainingArguments, name: str) -> None:
    """
    Raises:
        `ValueError`: If a number of steps among the arguments is no integer of at least 1.
    """
    value = getattr(args, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, but got {value!r}.")


class RivalTrainer(NullspaceTrainer):
    """
    [`NullspaceTrainer`] without noise; subclasses change what a training step does.

    Args:
        args ([`RivalTrainingArguments`]):
            The arguments, of the class that `args_class` names; any other are refused.

    Attributes:
        args_class (`type[RivalTrainingArguments]`): Class of the arguments.
        has_own_loss (`bool`): Whether `compute_loss` is a part of the way of finetuning, which a subclass that overrides it
            has to call.
        needs_whole_weights (`bool`): Whether FSDP, DeepSpeed and `nn.DataParallel`, which split weights or batches inside
            a step, are refused.

    Raises:
        `TypeError`: If `args` is none of `args_class`.
        `ValueError`: If whole weights are needed, and are split.
        `RuntimeError`: In `train`, at the first step, if a subclass's `compute_loss` does not call that of its parent.
    """

    args_class: type[RivalTrainingArguments] = RivalTrainingArguments
    has_own_loss = False
    needs_whole_weights = False
    _own_loss_ran = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, self.args_class):
            raise TypeError(f"`args` must be a `{self.args_class.__name__}`, but got a `{type(self.args).__name__}`.")
        kind = self.accelerator.distributed_type
        is_split = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) or self.args.n_gpu > 1
        if self.needs_whole_weights and is_split:
            name = kind.value if self.args.n_gpu <= 1 else f"one process with {self.args.n_gpu} devices"
            raise ValueError(
                f"`{type(self).__name__}` runs the model several times in a step, with whole weights and whole batches, "
                f"but got {name}. Start one process for each device with `accelerate launch --multi_gpu`."
            )

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        self._own_loss_ran = False
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.has_own_loss and not self._own_loss_ran:
            raise RuntimeError(
                f"`compute_loss` of {type(self).__name__} hides that of its parent, without which this trains on clean "
                "images. Call `super().compute_loss`, or pass a `compute_loss_func`."
            )
        return loss

    def image_generators(self, count: int) -> list[torch.Generator]:
        """
        A random generator for each image of the current micro-batch; call it once for each.

        They depend only on the seed, the optimizer step and the place of the image in the whole batch of that step. So a
        batch has the same random numbers however many processes and micro-batches share it, and in a resumed run.

        Args:
            count (`int`): Number of images of the micro-batch.
        """
        args = self.args
        step, micro_batch = self.noise_schedule.next_place(self.state.global_step)
        first = (micro_batch * args.world_size + args.process_index) * args.train_batch_size
        return [keyed_generator(type(self).__name__, args.seed, step, first + place) for place in range(count)]
