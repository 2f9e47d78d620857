"""A classifier held still, and images whose clean logits are computed once: what synthesis and probing look through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch import nn

from .injection import NoiseInjector, tokens_shape


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no weight gradients, each module and parameter put back as it was."""
    training = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield model
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


class FrozenClassifier:
    """
    Logits of a frozen model as a function of images and noise.

    Args:
        model (`nn.Module`): The classifier; use it inside [`frozen`].
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        accelerator (`Accelerator`, *optional*): Gives autocast, the device and the reduction over processes.
    """

    def __init__(self, model: nn.Module, patch_projection: str | None = None, accelerator: Accelerator | None = None):
        self.model = model
        self.injector = NoiseInjector.attach(model, patch_projection)
        self.accelerator = accelerator or Accelerator()

    @property
    def device(self) -> torch.device:
        """Where the patch projection lives, which is where images and noise go."""
        return self.injector.projection.module.weight.device

    def logits(self, inputs: dict[str, torch.Tensor], noise: torch.Tensor | None = None) -> torch.Tensor:
        """
        Runs the model, with `noise` of shape `(1 or batch_size, num_patches, hidden_size)` behind its projection.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)` in float32.
        """
        with self.accelerator.autocast(), self.injector.inject(noise):
            logits = self.model(**inputs).logits
        return logits.float()

    @torch.no_grad()
    def tokens_shape(self, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
        """`(num_patches, hidden_size)` of the patch embeddings of these images."""
        shapes = []

        def record(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            shapes.append(tokens_shape(output))

        handle = self.injector.projection.module.register_forward_hook(record)
        try:
            self.logits({name: value[:1] for name, value in inputs.items()})
        finally:
            handle.remove()
        return shapes[0]

    def sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all processes."""
        return self.accelerator.reduce(values, "sum")


@dataclass
class FrozenImages:
    """
    This process's share of some images, with the logits that the frozen model gives them.

    Every process walks the same global batches and takes its own images out of each, so that a sum over processes is
    the same sum however many processes there are.

    Args:
        inputs (`dict[str, torch.Tensor]`): Model inputs, each with a leading axis over this process's images.
        clean_logits (`torch.Tensor` of shape `(local_images, num_labels)`): Their logits without noise.
        positions (`torch.Tensor` of shape `(local_images,)`): Their places among the images of all processes.
        total (`int`): Number of images over all processes.
        batch_size (`int`): Images of a batch over all processes.
    """

    inputs: dict[str, torch.Tensor]
    clean_logits: torch.Tensor
    positions: torch.Tensor
    total: int
    batch_size: int

    def __len__(self) -> int:
        return self.total

    def split(self, first: int) -> tuple[FrozenImages, FrozenImages]:
        """The first `first` images over all processes, and the others."""
        return self._select(self.positions < first, 0, first), self._select(
            self.positions >= first, first, self.total - first
        )

    def _select(self, mask: torch.Tensor, offset: int, total: int) -> FrozenImages:
        rows = mask.to(self.clean_logits.device)
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return FrozenImages(inputs, self.clean_logits[rows], self.positions[mask] - offset, total, self.batch_size)

    def batches(
        self, order: torch.Tensor | None = None
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, int]]:
        """
        Yields `(inputs, clean_logits, global_batch_size)` for this process's images of each batch, of which there may
        be none.

        Args:
            order (`torch.Tensor` of shape `(total,)`, *optional*): Order of the images over all processes.
        """
        local = torch.full((self.total,), -1)
        local[self.positions] = torch.arange(len(self.positions))
        order = torch.arange(self.total) if order is None else order
        for batch in order.split(self.batch_size):
            rows = local[batch]
            rows = rows[rows >= 0].to(self.clean_logits.device)
            inputs = {name: value[rows] for name, value in self.inputs.items()}
            yield inputs, self.clean_logits[rows], len(batch)


def read_images(
    classifier: FrozenClassifier, dataloader: Iterable[dict[str, torch.Tensor]], max_images: int
) -> FrozenImages:
    """
    Reads up to `max_images` images over all processes and computes their clean logits.

    A dataloader that Accelerate prepared gives each process its own images. Any other gives every process the same
    ones, of which each keeps every `num_processes`-th.

    Raises:
        `ValueError`: If the loader yields no `pixel_values`, fewer images than one batch, or images whose logits are
            not finite.
    """
    world, rank = classifier.accelerator.num_processes, classifier.accelerator.process_index
    is_sharded = world > 1 and isinstance(dataloader, (DataLoaderShard, DataLoaderDispatcher))
    # Accelerate repeats images to make the last batches even; places beyond the dataset are those repeats.
    limit = min(max_images, getattr(dataloader, "total_dataset_length", max_images)) if is_sharded else max_images
    inputs, logits, positions, batch_size, seen = [], [], [], None, 0
    for batch in dataloader:
        images = _model_inputs(batch)
        size = len(images["pixel_values"])
        batch_size = batch_size or size
        if is_sharded:
            places = seen + rank * size + torch.arange(size)
            seen += world * size
        else:
            places = seen + torch.arange(size)
            seen += size
        keep = (places < limit) & (is_sharded | (places % world == rank))
        images = {name: value[keep.to(value.device)].to(classifier.device) for name, value in images.items()}
        positions.append(places[keep])
        inputs.append(images)
        logits.append(_clean_logits(classifier, images))
        if seen >= limit:
            break
    total, batch_size = min(seen, limit), (batch_size or 0) * (world if is_sharded else 1)
    expected = max(2, getattr(dataloader, "batch_size", None) or 2, batch_size)
    if total < expected:
        raise ValueError(
            f"The dataloader for the noise yields {total} images, but at least one batch of {expected} is needed. Give "
            "it more images or a smaller batch size."
        )
    return FrozenImages(
        {name: torch.cat([images[name] for images in inputs]) for name in inputs[0]},
        torch.cat(logits),
        torch.cat(positions),
        total,
        batch_size,
    )


def _model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "pixel_values" not in batch:
        raise ValueError(
            f"Each batch must be a dict with `pixel_values`, but got the keys {sorted(batch)}. Give the dataloader a "
            "collator such as `NullspaceDataCollator`."
        )
    return {
        name: value
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and name not in ("labels", "label")
    }


@torch.no_grad()
def _clean_logits(classifier: FrozenClassifier, images: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = classifier.logits(images)
    if not torch.isfinite(logits).all():
        raise ValueError(
            "The model gives NaN or infinite logits for clean images, so no noise can be synthesised for it. Check "
            "the checkpoint, the learning rate that trained it, and the precision (try bf16 or fp32)."
        )
    return logits
