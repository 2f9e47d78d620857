"""A classifier held still, and images whose patch embeddings and clean logits are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers.modeling_layers import GradientCheckpointingLayer

from .injection import NoiseInjector, tokens_shape
from .model_inputs import accepted_inputs
from .objectives import Objective, read_logits


LABEL_NAMES = ("labels", "label", "label_ids")


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """
    Evaluation mode and no weight gradients, each module and parameter put back as it was.

    Activation checkpointing stays on where it was on: a layer asks its own mode whether to checkpoint, so that one flag
    stays as it was while everything inside the layer is in evaluation mode. (Reentrant checkpointing knows no gradient
    with respect to the noise alone, and is off meanwhile.)
    """
    _reshard(model)
    training = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        for module, _ in training:
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = module._gradient_checkpointing_func.keywords.get("use_reentrant") is False
        yield model
    finally:
        for module, mode in training:
            if mode and type(module).train is not nn.Module.train:
                module.train()  # some drop there what they keep of their weights in evaluation mode
        for module, mode in training:
            module.training = mode
        _reshard(model)
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)


def _reshard(model: nn.Module) -> None:
    """Gives a model that `fully_shard` has sharded its shards back, which are what is frozen; others stay as they are."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class FrozenClassifier:
    """
    Logits of a frozen model as a function of images and noise.

    Args:
        model (`nn.Module`): The classifier; use it inside [`frozen`].
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        accelerator (`Accelerator`, *optional*): Gives autocast, the device and the reduction over processes.
        objective (`Callable`, *optional*): From the model's output to its logits; see [`read_logits`], the default.

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
        self.injector = NoiseInjector.attach(model, patch_projection)
        self.accelerator = accelerator or Accelerator()
        # Every pass through a sharded model needs every process, so all of them run the same batches; a share of a
        # batch could be empty on one of them.
        self.is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
        self.num_shares = 1 if self.is_sharded else self.accelerator.num_processes
        self.share = 0 if self.is_sharded else self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        """Where the patch projection lives, which is where images and noise go."""
        return self.injector.projection.module.weight.device

    def logits(
        self,
        inputs: dict[str, torch.Tensor],
        noise: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Runs the model, with `noise` of shape `(1 or batch_size, num_patches, hidden_size)` behind its projection.

        Args:
            inputs (`dict[str, torch.Tensor]`): Model inputs.
            noise (`torch.Tensor`, *optional*): The noise.
            embeddings (`torch.Tensor`, *optional*): What the projection gave for these images, to be used instead of
                running it again; of the pixels, only the shape then matters.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)` in float32.
        """
        with self.accelerator.autocast(), self.injector.inject(noise), self._replayed(embeddings):
            logits = self.objective(self.model(**accepted_inputs(self.model, inputs)))
        return logits.float()

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
        """The projection's output for these images, and their clean logits."""
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


@dataclass
class FrozenBatch:
    """This process's images of one batch; there may be none."""

    inputs: dict[str, torch.Tensor]
    embeddings: torch.Tensor | None
    clean_logits: torch.Tensor
    positions: torch.Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.clean_logits)


@dataclass
class FrozenImages:
    """
    This process's share of some images, with the embeddings and logits that the frozen model gives them.

    Every process walks the same global batches and takes its own images out of each, so that a sum over processes is
    the same sum however many processes there are.

    Args:
        inputs (`dict[str, torch.Tensor]`): Model inputs, each with a leading axis over this process's images. Where
            embeddings are kept, `pixel_values` is a stand-in of the right shape that takes no memory.
        embeddings (`torch.Tensor` or `None`): Output of the patch projection; `None` for a model that reads its pixels
            elsewhere too.
        clean_logits (`torch.Tensor` of shape `(local_images, num_labels)`): Their logits without noise.
        positions (`torch.Tensor` of shape `(local_images,)`): Their places among the images of all processes.
        tokens_shape (`tuple[int, int]`): `(num_patches, hidden_size)`.
        embedding_norm (`float`): Root mean square, over the images of all processes, of the norm of the embeddings.
        total (`int`): Number of images over all processes.
        batch_size (`int`): Images of a batch over all processes.
    """

    inputs: dict[str, torch.Tensor]
    embeddings: torch.Tensor | None
    clean_logits: torch.Tensor
    positions: torch.Tensor
    tokens_shape: tuple[int, int]
    embedding_norm: float
    total: int
    batch_size: int

    def __len__(self) -> int:
        return self.total

    def split(self, first: int) -> tuple[FrozenImages, FrozenImages]:
        """The first `first` images over all processes, and the others."""
        return self._select(self.positions < first, 0, first), self._select(
            self.positions >= first, first, self.total - first
        )

    def batches(self, order: torch.Tensor | None = None) -> Iterator[FrozenBatch]:
        """
        Yields this process's images of each batch.

        Args:
            order (`torch.Tensor` of shape `(total,)`, *optional*): Order of the images over all processes.
        """
        local = torch.full((self.total,), -1)
        local[self.positions] = torch.arange(len(self.positions))
        order = torch.arange(self.total) if order is None else order
        for batch in order.split(self.batch_size):
            rows = local[batch]
            rows = rows[rows >= 0]
            yield FrozenBatch(*self._rows(rows), self.positions[rows], len(batch))

    def _select(self, mask: torch.Tensor, offset: int, total: int) -> FrozenImages:
        rows, positions = self._rows(mask.nonzero()[:, 0]), self.positions[mask] - offset
        return FrozenImages(*rows, positions, self.tokens_shape, self.embedding_norm, total, self.batch_size)

    def _rows(self, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor]:
        rows = rows.to(self.clean_logits.device)
        inputs = {name: value[rows] for name, value in self.inputs.items() if name != "pixel_values"}
        pixels = self.inputs["pixel_values"]
        inputs["pixel_values"] = pixels[rows] if self.embeddings is None else pixels[: len(rows)]
        return inputs, None if self.embeddings is None else self.embeddings[rows], self.clean_logits[rows]


def read_images(
    classifier: FrozenClassifier, dataloader: Iterable[dict[str, torch.Tensor]], max_images: int
) -> FrozenImages:
    """
    Reads up to `max_images` images over all processes and computes their patch embeddings and clean logits.

    A dataloader that Accelerate prepared gives each process its own images. Any other gives every process the same
    ones, of which each keeps every `num_processes`-th.

    Raises:
        `ValueError`: If the loader yields no `pixel_values`, fewer images than one batch, or images whose logits are
            not finite.
    """
    world, rank = classifier.num_shares, classifier.share
    is_prepared = isinstance(dataloader, (DataLoaderShard, DataLoaderDispatcher))
    if classifier.is_sharded and is_prepared and classifier.accelerator.num_processes > 1:
        raise ValueError(
            "A sharded model needs the same whole batches on every process, but the dataloader was prepared by "
            "Accelerate and gives each its own. Pass the dataloader as it was before `accelerator.prepare`."
        )
    is_sharded = world > 1 and is_prepared
    # Accelerate repeats images to make the last batches even; places beyond the dataset are those repeats.
    limit = min(max_images, getattr(dataloader, "total_dataset_length", max_images)) if is_sharded else max_images
    parts, positions, batch_size, seen, keeps_embeddings = [], [], None, 0, None
    squares = torch.zeros((), device=classifier.device)
    for batch in dataloader:
        inputs = _model_inputs(batch)
        size = len(inputs["pixel_values"])
        batch_size = batch_size or size
        if is_sharded:
            places = seen + rank * size + torch.arange(size)
            seen += world * size
        else:
            places = seen + torch.arange(size)
            seen += size
        keep = (places < limit) & (is_sharded | (places % world == rank))
        if keep.any():
            inputs = {name: value[keep.to(value.device)].to(classifier.device) for name, value in inputs.items()}
            embeddings, logits = _embed_finite(classifier, inputs)
            squares += embeddings.float().square().sum()
            if keeps_embeddings is None:
                keeps_embeddings = _replays(classifier, inputs, embeddings, logits)
                tokens = tokens_shape(embeddings)
            if keeps_embeddings:
                inputs["pixel_values"] = _stand_in(inputs["pixel_values"])
            parts.append((inputs, embeddings if keeps_embeddings else None, logits))
            positions.append(places[keep])
        if seen >= limit:
            break
    total, batch_size = min(seen, limit), (batch_size or 0) * (world if is_sharded else 1)
    expected = max(2, world, getattr(dataloader, "batch_size", None) or 2, batch_size)
    if total < expected:
        raise ValueError(
            f"There are {total} images for the noise ({seen} from the dataloader, of which at most {max_images} are "
            f"used), but at least one batch of {expected} is needed. Give the dataloader more images or a smaller batch "
            "size, or raise `num_images` and `num_certificate_images`."
        )
    all_inputs, all_embeddings, all_logits = zip(*parts, strict=True)
    shapes = sorted({tuple(inputs["pixel_values"].shape[1:]) for inputs in all_inputs})
    if len(shapes) > 1:
        raise ValueError(
            f"The dataloader yields pixel_values of the shapes {shapes}, but one noise has one patch grid. Resize all "
            "images to one size; `inject_noise(..., resize=True)` takes the noise to others."
        )
    joined = {
        name: torch.cat([inputs[name] for inputs in all_inputs]) for name in all_inputs[0] if name != "pixel_values"
    }
    pixels = [inputs["pixel_values"] for inputs in all_inputs]
    count = sum(map(len, pixels))
    joined["pixel_values"] = (
        pixels[0][:1].expand(count, *pixels[0].shape[1:]) if keeps_embeddings else torch.cat(pixels)
    )
    return FrozenImages(
        joined,
        torch.cat(all_embeddings) if keeps_embeddings else None,
        torch.cat(all_logits),
        torch.cat(positions),
        tokens,
        (classifier.sum_over_processes(squares) / total).sqrt().item(),
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
        name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and name not in LABEL_NAMES
    }


def _embed_finite(classifier: FrozenClassifier, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings, logits = classifier.embed(inputs)
    if not torch.isfinite(logits).all():
        raise ValueError(
            "The model gives NaN or infinite logits for clean images, so no noise can be synthesised for it. Check "
            "the checkpoint, the learning rate that trained it, and the precision (try bf16 or fp32)."
        )
    return embeddings, logits


def _stand_in(pixels: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape of `pixels` that take the memory of one number."""
    return pixels.new_zeros(()).expand(pixels.shape)


@torch.no_grad()
def _replays(
    classifier: FrozenClassifier, inputs: dict[str, torch.Tensor], embeddings: torch.Tensor, logits: torch.Tensor
) -> bool:
    """Whether embeddings alone give the logits: some models read pixels elsewhere, some are compiled with the stem."""
    stand_in = {**inputs, "pixel_values": _stand_in(inputs["pixel_values"])}
    replayed = classifier.logits(stand_in, embeddings=embeddings)
    return torch.allclose(replayed, logits, rtol=0, atol=1e-4 * logits.abs().max().item())
