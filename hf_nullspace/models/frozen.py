"""Freezes a classifier for a while: eval mode and no weight gradients, restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.modeling_layers import GradientCheckpointingLayer

from .injection import NoiseInjector
from .model_inputs import accepted_inputs
from .objectives import Objective, agreement, is_multi_label, largest_probability_mse, probability_mse, read_logits


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """
    Puts a model into eval mode without weight gradients, and restores every module and parameter at the end.

    Activation checkpointing stays on. A layer checkpoints only if its own `training` flag is set, so this one flag is
    kept while all modules inside the layer are in eval mode. Reentrant checkpointing is turned off meanwhile: it gives
    no gradient if only the noise requires one.
    """
    _reshard(model)
    training = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        _forget_kept_values(model)
        model.eval()
        model.requires_grad_(False)
        for module, _ in training:
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = module._gradient_checkpointing_func.keywords.get("use_reentrant") is False
        yield model
    finally:
        _forget_kept_values(model)
        for module, mode in training:
            module.training = mode
        _reshard(model)
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


def _forget_kept_values(model: nn.Module) -> None:
    """Clears values that some modules cache from their weights in eval mode; their `train` method drops the cache."""
    for module in model.modules():
        if type(module).train is not nn.Module.train:
            module.train()


def _reshard(model: nn.Module) -> None:
    """Reshards a model that `fully_shard` has sharded, since its shards are what is frozen; others are unchanged."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def frozen_classifier(
    model: nn.Module,
    patch_projection: str | None = None,
    accelerator: Accelerator | None = None,
    objective: Objective | None = None,
) -> Iterator[FrozenClassifier]:
    """Yields a [`FrozenClassifier`] of a [`frozen`] model. After an error, its new hooks are removed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an `nn.Module`, but got a `{type(model).__name__}`.")
    with frozen(model), NoiseInjector.attached(model, patch_projection):
        yield FrozenClassifier(model, patch_projection, accelerator, objective)


class FrozenClassifier:
    """
    Logits of a frozen model as a function of images and noise.

    Args:
        model (`nn.Module`): The classifier; use it inside [`frozen`].
        patch_projection (`str`, *optional*): Name of the projection module, if the rule does not find it.
        accelerator (`Accelerator`, *optional*): Provides autocast, the device and the reduction over processes.
        objective (`Callable`, *optional*): Maps the model's output to logits. Defaults to [`read_logits`].

    A model that `fully_shard` (FSDP2) has sharded runs the same images on every process.
    """

    def __init__(
        self,
        model: nn.Module,
        patch_projection: str | None = None,
        accelerator: Accelerator | None = None,
        objective: Objective | None = None,
    ):
        self.model = model
        self.objective = objective or read_logits
        self.has_own_objective = objective is not None
        # What its logits mean, and how large an error can be; [`read_images`] finds out.
        self.multi_label = False
        self.largest_error = 2.0
        self.injector = NoiseInjector.attach(model, patch_projection)
        self.accelerator = accelerator or Accelerator()
        # Every pass through a sharded model needs every process, so all of them run the same batches; a share of a
        # batch could be empty on one of them.
        self.is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        self.num_shares = 1 if self.is_sharded else self.accelerator.num_processes
        self.share = 0 if self.is_sharded else self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        """Device of the patch projection, to which images and noise are moved."""
        return self.injector.projection.module.weight.device

    def logits(
        self,
        inputs: dict[str, torch.Tensor],
        noise: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Runs the model, with `noise` of shape `(1 or batch_size, num_patches, hidden_size)` on its patch embeddings.

        Args:
            inputs (`dict[str, torch.Tensor]`): Model inputs.
            noise (`torch.Tensor`, *optional*): The noise.
            embeddings (`torch.Tensor`, *optional*): Output of the projection for these images, used instead of running
                it again. Only the shape of the pixels matters then.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)` in float32.
        """
        with self.accelerator.autocast(), self.injector.inject(noise), self._replayed(embeddings):
            logits = self.objective(self.model(**accepted_inputs(self.model, inputs)))
        return logits.float()

    def settle_problem(self, labels: torch.Tensor | None, logits: torch.Tensor) -> None:
        """
        Determines whether the model is multi-label: see [`~objectives.is_multi_label`].

        With a custom `objective`, the logits are always those of one softmax.
        """
        self.multi_label = not self.has_own_objective and is_multi_label(self.model, labels, logits)
        self.largest_error = largest_probability_mse(logits.shape[-1], self.multi_label)

    def probability_mse(self, clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
        """[`~certificate.probability_mse`] with this model's kind of probabilities."""
        return probability_mse(clean_logits, noisy_logits, self.multi_label)

    def agreement(self, clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
        """[`~certificate.agreement`] with this model's kind of decisions."""
        return agreement(clean_logits, noisy_logits, self.multi_label)

    @contextmanager
    def _replayed(self, embeddings: torch.Tensor | None) -> Iterator[None]:
        projection = self.injector.projection.module
        if embeddings is None:
            yield
            return
        own_forward = projection.__dict__.get("forward")  # set where Accelerate has patched the module
        projection.forward = lambda *args, **kwargs: embeddings
        try:
            yield
        finally:
            del projection.forward
            if own_forward is not None:
                projection.forward = own_forward

    @torch.no_grad()
    def embed(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The patch embeddings of these images, and their clean logits."""
        embeddings = []

        def record(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            embeddings.append(output)

        handle = self.injector.projection.module.register_forward_hook(record)
        try:
            logits = self.logits(inputs)
        finally:
            handle.remove()
        if len(embeddings) != 1:
            raise ValueError(
                f"The patch projection {self.injector.projection.name!r} ran {len(embeddings)} times in one forward "
                "pass; expected once. Name the module that embeds patches with `patch_projection=...`."
            )
        return embeddings[0], logits

    def sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all processes that have a share of the images."""
        return values if self.is_sharded else self.accelerator.reduce(values, "sum")
