"""Images read once, with the embeddings and clean logits that a synthesis and a certificate need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from transformers.utils import logging

from ..models.frozen import FrozenClassifier
from ..models.injection import grid_of, tokens_shape
from ..models.model_inputs import LABEL_NAMES


logger = logging.get_logger(__name__)

# Fewer classes than this share of what random images would show suggest a loader that is sorted by class.
FEW_CLASSES = 0.5


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

    Every process iterates over the same global batches and takes its own images from each. A sum over processes is
    therefore independent of their number.

    Args:
        inputs (`dict[str, torch.Tensor]`): Model inputs, each with a leading axis over this process's images. Where
            embeddings are kept, `pixel_values` is a stand-in of the right shape that takes no memory.
        embeddings (`torch.Tensor` or `None`): Output of the patch projection; `None` for a model that reads its pixels
            elsewhere too.
        clean_logits (`torch.Tensor` of shape `(local_images, num_labels)`): Their logits without noise.
        positions (`torch.Tensor` of shape `(local_images,)`): Their places among the images of all processes.
        tokens_shape (`tuple[int, int]`): `(num_patches, hidden_size)`.
        grid (`tuple[int, int]` or `None`): `(rows, columns)` of the patches; `None` where the model does not say.
        embedding_norm (`float`): Root mean square, over the images of all processes, of the norm of the embeddings.
        total (`int`): Number of images over all processes.
        batch_size (`int`): Images of a batch over all processes.
    """

    inputs: dict[str, torch.Tensor]
    embeddings: torch.Tensor | None
    clean_logits: torch.Tensor
    positions: torch.Tensor
    tokens_shape: tuple[int, int]
    grid: tuple[int, int] | None
    embedding_norm: float
    total: int
    batch_size: int

    def __len__(self) -> int:
        return self.total

    def select(self, places: torch.Tensor) -> FrozenImages:
        """The images at these places among those of all processes, in this order."""
        order = torch.full((self.total,), -1)
        order[places] = torch.arange(len(places))
        new = order[self.positions]
        rows = (new >= 0).nonzero()[:, 0]
        return dataclasses.replace(
            self,
            **dict(zip(("inputs", "embeddings", "clean_logits"), self._rows(rows), strict=True)),
            positions=new[rows],
            total=len(places),
        )

    def split(self, first: int, generator: torch.Generator | None = None) -> tuple[FrozenImages, FrozenImages]:
        """`first` images over all processes, and the others: drawn by a generator, or without one the first ones."""
        order = torch.arange(self.total) if generator is None else torch.randperm(self.total, generator=generator)
        return self.select(order[:first]), self.select(order[first:])

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

    def _rows(self, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor]:
        rows = rows.to(self.clean_logits.device)
        inputs = {name: value[rows] for name, value in self.inputs.items() if name != "pixel_values"}
        pixels = self.inputs["pixel_values"]
        inputs["pixel_values"] = pixels[rows] if self.embeddings is None else pixels[: len(rows)]
        return inputs, None if self.embeddings is None else self.embeddings[rows], self.clean_logits[rows]


def read_images(
    classifier: FrozenClassifier,
    dataloader: Iterable[dict[str, torch.Tensor]],
    max_images: int | Callable[[], int] | None = None,
    min_images: int | None = None,
) -> FrozenImages:
    """
    Reads up to `max_images` images over all processes and computes their patch embeddings and clean logits.

    The first images tell the classifier its problem type. If `max_images` is a function, it is called after that. By
    default all images are read. There must be at least `min_images`, by default one batch of the loader, since the steps
    of a search take whole batches. Two images are enough for a measurement.

    A dataloader that Accelerate prepared gives each process its own images. Any other gives every process the same
    ones, of which each keeps every `num_processes`-th.

    Raises:
        `ValueError`: If the loader yields no `pixel_values`, fewer images than `min_images`, or images whose logits are
            not finite.
    """
    world = classifier.num_shares
    rank = classifier.share
    is_prepared = isinstance(dataloader, (DataLoaderShard, DataLoaderDispatcher))
    if classifier.is_sharded and is_prepared and classifier.accelerator.num_processes > 1:
        raise ValueError(
            "A sharded model needs the same whole batches on every process, but the dataloader was prepared by "
            "Accelerate and gives each its own. Pass the dataloader as it was before `accelerator.prepare`."
        )
    is_sharded = world > 1 and is_prepared
    # Accelerate repeats images to fill up the last batches. Places beyond the dataset are such repeats.
    longest = getattr(dataloader, "total_dataset_length", None) if is_sharded else None
    longest = 2**62 if longest is None else longest
    limit = longest if max_images is None or callable(max_images) else min(max_images, longest)
    parts, positions, labels = [], [], []
    batch_size = None
    seen = 0
    keeps_embeddings = False
    squares = torch.zeros((), device=classifier.device)
    for batch in _batches_of(dataloader):
        inputs = _model_inputs(batch)
        size = len(inputs["pixel_values"])
        own_labels = next((batch[name] for name in LABEL_NAMES if isinstance(batch.get(name), torch.Tensor)), None)
        is_first = batch_size is None
        batch_size = batch_size or size
        if is_sharded:
            places = seen + rank * size + torch.arange(size)
            seen += world * size
        else:
            places = seen + torch.arange(size)
            seen += size
        keep = (places < limit) & (is_sharded | (places % world == rank))
        if keep.any() or is_first:
            shown = keep if keep.any() else places == places[0]  # every process needs an image for the problem type
            inputs = {name: value[shown.to(value.device)].to(classifier.device) for name, value in inputs.items()}
            embeddings, logits = _embed_finite(classifier, inputs)
        if is_first:
            keeps_embeddings = _replays(classifier, inputs, embeddings, logits)
            tokens = tokens_shape(embeddings)
            grid = grid_of(embeddings)
            classifier.settle_problem(own_labels, logits)
            if callable(max_images):
                limit = min(max_images(), longest)
                keep &= places < limit
            if not torch.equal(shown, keep):
                rows = keep[shown].to(logits.device)
                inputs = {name: value[rows] for name, value in inputs.items()}
                embeddings, logits = embeddings[rows], logits[rows]
        if keep.any() or is_first:
            squares += embeddings.float().square().sum()
            if keeps_embeddings:
                inputs["pixel_values"] = _stand_in(inputs["pixel_values"])
            parts.append((inputs, embeddings if keeps_embeddings else None, logits))
            positions.append(places[keep])
            if own_labels is not None and own_labels.shape == keep.shape and not own_labels.is_floating_point():
                labels.append(own_labels[keep.to(own_labels.device)].cpu())
        if seen >= limit:
            break
    total = min(seen, limit)
    batch_size = (batch_size or 0) * (world if is_sharded else 1)
    needed = min_images or max(2, world, getattr(dataloader, "batch_size", None) or 2, batch_size)
    if total < needed:
        used = "" if total == seen else f" ({seen} from the dataloader, of which at most {limit} are used)"
        if min_images is not None:
            raise ValueError(
                f"There are {total} images for the noise{used}, but at least {needed} are needed. Give the dataloader more."
            )
        raise ValueError(
            f"There are {total} images for the noise{used}, but at least one batch of {needed} is needed. Give the "
            "dataloader more images or a smaller batch size, or raise `num_images` and `num_certificate_images`."
        )
    # A process without images in the first batch has one empty part.
    parts = [part for part in parts if len(part[2])] or parts[:1]
    if labels:
        _check_classes(torch.cat(labels), num_classes=parts[0][2].shape[-1])
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
        grid,
        (classifier.sum_over_processes(squares) / total).sqrt().item(),
        total,
        batch_size,
    )


def _model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not isinstance(batch, Mapping) or not isinstance(batch.get("pixel_values"), torch.Tensor):
        given = f"the keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a `{type(batch).__name__}`"
        raise ValueError(
            f"Each batch must be a dict with `pixel_values`, a tensor, but got {given}. Give the dataloader a collator "
            "such as `NullspaceDataCollator`."
        )
    if not batch["pixel_values"].is_floating_point():
        raise ValueError(
            f"`pixel_values` must be normalised pixels in floating point, but got {batch['pixel_values'].dtype}. Run the "
            "images through the model's image processor."
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
    """Whether embeddings alone give the logits; not if the model reads pixels elsewhere or was compiled as a whole."""
    stand_in = {**inputs, "pixel_values": _stand_in(inputs["pixel_values"])}
    replayed = classifier.logits(stand_in, embeddings=embeddings)
    return torch.allclose(replayed, logits, rtol=0, atol=1e-4 * logits.abs().max().item())


def _batches_of(dataloader: Any) -> Iterator[Any]:
    try:
        return iter(dataloader)
    except TypeError:
        raise TypeError(
            f"`dataloader` must yield batches, as a `DataLoader` does, but got a `{type(dataloader).__name__}`."
        ) from None


def _check_classes(labels: torch.Tensor, num_classes: int) -> None:
    """Warns where images show far fewer classes than as many random ones would."""
    found = len(labels.unique())
    expected = num_classes * (1 - (1 - 1 / num_classes) ** len(labels))
    if found < FEW_CLASSES * expected:
        logger.warning(
            f"The {len(labels)} images read for the noise are of {found} of the model's {num_classes} classes; as many "
            f"random ones would show about {expected:.0f}. What is found and measured holds for images like those alone: "
            "give a dataloader that shuffles, so that it reads a random part of the dataset."
        )
