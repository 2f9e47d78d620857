"""FreeLB: a few steps of ascent on the patch embeddings, each of which also trains the weights."""

from __future__ import annotations

import math
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..models.frozen import frozen_classifier
from ..models.injection import NoiseInjector, tokens_shape
from ..training.arguments import check_not_negative
from ..utils.random import preserved_random_state
from .rival import RivalTrainer, RivalTrainingArguments, check_steps
from .way import Way


@dataclass
class FreeLBTrainingArguments(RivalTrainingArguments):
    """
    Arguments of [`FreeLBTrainer`]: those of [`NullspaceTrainingArguments`], and the ascent's.

    Args:
        freelb_steps (`int`, *optional*, defaults to 2):
            Forward and backward passes of a training step.
        freelb_epsilon (`float`, *optional*, defaults to 4.0):
            Largest norm of the perturbation of an image's patch embeddings, over all patches. At 0 training is plain.
        freelb_step_size (`float`, *optional*, defaults to 2.0):
            Norm of a step.

    Raises:
        `ValueError`: If a value lies outside its range.
    """

    freelb_steps: int = field(default=2, metadata={"help": "Forward and backward passes of a training step."})
    freelb_epsilon: float = field(
        default=4.0, metadata={"help": "Largest norm of the perturbation of an image's patch embeddings."}
    )
    freelb_step_size: float = field(default=2.0, metadata={"help": "Norm of a step of the perturbation."})

    def __post_init__(self):
        super().__post_init__()
        check_steps(self, "freelb_steps")
        check_not_negative(self, "freelb_epsilon", "freelb_step_size")


class FreeLBTrainer(RivalTrainer):
    """
    Finetunes on perturbed patch embeddings: FreeLB ([Zhu et al., 2020](https://arxiv.org/abs/1909.11764)), algorithm 1.

    The perturbation of an image starts uniform in `[-epsilon, epsilon] / sqrt(num_patches * hidden_size)`. Each of
    `freelb_steps` passes adds `1 / freelb_steps` of its gradient to that of the weights, and moves the perturbation by
    `freelb_step_size` along its own gradient, both of the loss and scaled to norm 1, back into the ball of radius
    `freelb_epsilon`. All passes of a step draw the same dropout, as in the paper. The images themselves are in no pass.

    This is the ascent of nullspace finetuning without its axes: any direction of the hidden axis is allowed. Starts depend
    on the seed, the step and the image's place in the batch, so two processes, or several micro-batches, have those of one.

    Args:
        args ([`FreeLBTrainingArguments`]): The arguments; any other are refused.
    """

    args_class = FreeLBTrainingArguments
    has_own_loss = True
    needs_whole_weights = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        NoiseInjector.attach(self.model, self.args.patch_projection)  # before torch.compile, which ignores later hooks
        self._tokens_shapes: dict[torch.Size, tuple[int, int]] = {}

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        inputs = self._prepare_inputs(inputs)
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        injector = NoiseInjector.attach(unwrapped, self.args.patch_projection)
        noise = self._start(unwrapped, inputs["pixel_values"])
        losses = []
        for step in range(self.args.freelb_steps):
            variable = noise.requires_grad_()
            with ExitStack() as stack:
                if step + 1 < self.args.freelb_steps:
                    stack.enter_context(self._deferred_synchronisation(model))  # to the last pass
                    stack.enter_context(preserved_random_state())  # for the same dropout in the next pass
                stack.enter_context(injector.inject(variable))
                losses.append(super().training_step(model, copy(inputs), num_items_in_batch))
            noise = ascend_in_ball(
                variable.detach(),
                self._gradient_of(variable, injector),
                self.args.freelb_step_size,
                self.args.freelb_epsilon,
            )
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        self._own_loss_ran = True
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss / self.args.freelb_steps if model.training else loss
        return (loss, outputs) if return_outputs else loss

    def _start(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Perturbations of shape `(batch_size, num_patches, hidden_size)`, drawn on the CPU."""
        shape = self._tokens_shape(model, images)
        size = self.args.freelb_epsilon / math.sqrt(math.prod(shape))
        draws = [2 * torch.rand(shape, generator=generator) - 1 for generator in self.image_generators(len(images))]
        return (size * torch.stack(draws)).to(images.device)

    def _tokens_shape(self, model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
        """`(num_patches, hidden_size)` for images of this size, found with one pass."""
        size = images.shape[1:]
        if size not in self._tokens_shapes:
            with frozen_classifier(model, self.args.patch_projection, self.accelerator) as classifier:
                self._tokens_shapes[size] = tokens_shape(classifier.embed({"pixel_values": images[:1]})[0])
        return self._tokens_shapes[size]

    def _method_in_words(self) -> str:
        return (
            "it saw its images under adversarial perturbations of the patch embeddings "
            f"(FreeLB, {self.args.freelb_steps} steps, L2 {self.args.freelb_epsilon:g})."
        )


def ascend_in_ball(noise: torch.Tensor, gradient: torch.Tensor, step_size: float, epsilon: float) -> torch.Tensor:
    """
    Moves the noise of each image along its normalised gradient, and back into the ball around 0.

    Args:
        noise, gradient (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`):
            Where each image's noise is, and the gradient of the loss there. Without a finite gradient it stays.
        step_size, epsilon (`float`): Norm of the step and radius of the ball, over the patches of an image.
    """
    tiny = torch.finfo(torch.float32).tiny
    # Squares of the gradient of a confident prediction underflow, so it is scaled first.
    gradient = gradient.float().nan_to_num(0.0, 0.0, 0.0)
    gradient = gradient / gradient.abs().amax((1, 2), keepdim=True).clamp(min=tiny)
    gradient = gradient / torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True).clamp(min=tiny)
    noise = noise + step_size * gradient
    norm = torch.linalg.vector_norm(noise, dim=(1, 2), keepdim=True)
    return noise * (epsilon / norm.clamp(min=max(epsilon, tiny)))


FREELB = Way(
    "freelb",
    "adversarial perturbations of the patch embeddings in any direction (FreeLB)",
    float(FreeLBTrainingArguments.freelb_steps),
    FreeLBTrainer,
    FreeLBTrainingArguments,
    {"noise_weight": 0.0},
)
