"""Sharpness-aware minimisation: the gradient at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..training.arguments import check_not_negative
from ..utils.random import preserved_random_state
from .rival import RivalTrainer, RivalTrainingArguments
from .way import Way


@dataclass
class SAMTrainingArguments(RivalTrainingArguments):
    """
    Arguments of [`SAMTrainer`]: those of [`NullspaceTrainingArguments`], and the radius.

    Args:
        sam_rho (`float`, *optional*, defaults to 0.05):
            Norm of the step to the worst weights nearby, over all trained weights; the paper's value. At 0 training is
            that of `Trainer`.

    Raises:
        `ValueError`: If it is no number of at least 0, or `fp16` is set.
    """

    sam_rho: float = field(default=0.05, metadata={"help": "Norm of the step to the worst weights nearby."})

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(self, "sam_rho")
        if self.fp16:
            raise ValueError("SAM normalises a gradient that would underflow in float16. Use `bf16`, or neither.")


class SAMTrainer(RivalTrainer):
    """
    Finetunes with sharpness-aware minimisation ([Foret et al., 2021](https://arxiv.org/abs/2010.01412)).

    A training step computes the gradient `g` of the loss, goes to `weights + sam_rho * g / norm(g)`, where `norm` is over
    all trained weights, and takes the gradient there as that of the weights, which the optimizer then moves. Both passes
    draw the same dropout. The logged loss is that at the worst weights.

    Every micro-batch on every process goes to worst weights of its own, so the first pass does not synchronise: the
    paper's m-sharpness, with `m = per_device_train_batch_size`. Two processes train as one with twice the gradient
    accumulation. A larger micro-batch is another `m`, and trains otherwise.

    Optimizer libraries have SAM as an optimizer that calls for the loss again. `Trainer` gives its optimizers no such
    closure, and accumulates gradients outside of them, so here it is a training step and works with every optimizer.

    Args:
        args ([`SAMTrainingArguments`]): The arguments; any other are refused.
    """

    args_class = SAMTrainingArguments
    needs_whole_weights = True

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        inputs = self._prepare_inputs(inputs)
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        model.train()
        # `autograd.grad` leaves the gradients of earlier micro-batches alone, and DDP's reduction.
        with preserved_random_state(), self.compute_loss_context_manager(), self.accelerator.autocast():
            loss = self.compute_loss(unwrapped, inputs, num_items_in_batch=num_items_in_batch)
        weights = [weight for weight in unwrapped.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        with moved_along(weights, gradients, self.args.sam_rho):
            return super().training_step(model, inputs, num_items_in_batch)

    def _method_in_words(self) -> str:
        return f"it minimised the loss of the worst weights nearby (SAM, rho {self.args.sam_rho:g})."


@contextmanager
@torch.no_grad()
def moved_along(
    weights: list[nn.Parameter], gradients: tuple[torch.Tensor | None, ...], distance: float
) -> Iterator[None]:
    """
    Inside the `with` block the weights lie `distance` further along their gradients, in the norm over all of them.

    Args:
        weights (`list[nn.Parameter]`): The weights; they have their values back afterwards, bit for bit.
        gradients (`tuple[torch.Tensor | None, ...]`): The gradient of each; `None` for one that the loss does not use.
        distance (`float`): How far. Where the gradient is 0 or not finite, the weights stay.
    """
    pairs = [(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]
    norm = torch.nn.utils.get_total_norm([gradient.float() for _, gradient in pairs])
    scale = torch.where(norm.isfinite() & (norm > 0), distance / norm, 0.0)
    before = [weight.clone() for weight, _ in pairs]
    try:
        for weight, gradient in pairs:
            weight.add_((scale * gradient.float()).nan_to_num(0.0, 0.0, 0.0).to(weight.dtype))
        yield
    finally:
        for (weight, _), value in zip(pairs, before, strict=True):
            weight.copy_(value)


SAM = Way(
    "sam",
    "clean images, with the gradient at the worst weights nearby (SAM)",
    2.0,
    SAMTrainer,
    SAMTrainingArguments,
    {"noise_weight": 0.0},
)
