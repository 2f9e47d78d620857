"""The pictures of a column as pixels: read, resized, corrupted, in batches that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ..randomness import keyed_generator
from .corruptions import corrupt
from .datasets import prepare_picture
from .pixel_model import processed_size
from .profiles import IMAGENET_C, Column
from .sources import ImageSource


@dataclass(frozen=True)
class ColumnBatch:
    """
    Which images of which column are read together.

    Args:
        column ([`Column`]): The column.
        indices (`tuple[int, ...]`): Places of the images in the column's dataset.
    """

    column: Column
    indices: tuple[int, ...]


class ColumnImages(torch.utils.data.Dataset):
    """
    Pixels of shape `(batch_size, channels, height, width)` in [0, 1] and labels of shape `(batch_size,)`, by
    [`ColumnBatch`].

    Corruptions are generated at the model's own resolution, each picture's from the seed, the corruption and the
    picture's place alone.

    Args:
        sources (`dict[str, ImageSource]`): The images of each column, by the column's name.
        image_processor (`Callable`): The model's image processor.
        seed (`int`): Seed of the corruptions.
    """

    def __init__(self, sources: dict[str, ImageSource], image_processor: Callable, seed: int):
        self.sources = sources
        self.image_processor = image_processor
        self.seed = seed

    def __getitem__(self, batch: ColumnBatch) -> tuple[torch.Tensor, torch.Tensor]:
        source, column = self.sources[batch.column.name], batch.column
        pixels = to_pixels(source.read(batch.indices), self.image_processor, source.preprocessing)
        if column.corruption is not None and column.dataset != IMAGENET_C:
            corrupted = [
                corrupt_pixels(picture, column.corruption, column.severity, self.seed, index)
                for picture, index in zip(pixels, batch.indices, strict=True)
            ]
            pixels = torch.stack(corrupted)
        return pixels, torch.tensor([source.labels[index] for index in batch.indices])


def column_loader(images: ColumnImages, batches: Sequence[ColumnBatch], num_workers: int) -> DataLoader:
    """Yields the batches in order; the global generator is left alone."""
    return DataLoader(images, batch_size=None, sampler=batches, num_workers=num_workers, generator=torch.Generator())


def to_pixels(pictures: Sequence[Image.Image], image_processor: Callable, preprocessing: str) -> torch.Tensor:
    """
    Pixels of shape `(num_pictures, channels, height, width)` in [0, 1].

    Args:
        pictures (`Sequence[PIL.Image.Image]`): The pictures.
        image_processor (`Callable`): The model's image processor, which resizes them unless the dataset's protocol does.
        preprocessing (`str`): See [`RobustnessDataset`].
    """
    if preprocessing != "image_processor":
        height, width = processed_size(image_processor) or (224, 224)
        if height != width:
            raise ValueError(
                f"The protocol {preprocessing!r} gives square pictures, but the image processor gives {height}x{width}. "
                "Evaluate on a `datasets.Dataset`, which the image processor resizes."
            )
        prepared = [np.asarray(prepare_picture(picture, preprocessing, height)) for picture in pictures]
        return torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).float() / 255
    pictures = [picture.convert("RGB") for picture in pictures]
    # Some processors rescale to [-1, 1]; `PixelModel` does that.
    values = image_processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    return (values.float() / 255).clamp(0, 1)


def corrupt_pixels(pixels: torch.Tensor, name: str, severity: int, seed: int, index: int) -> torch.Tensor:
    """One picture of shape `(channels, height, width)` in [0, 1], corrupted; rounded to the eight bits of a file."""
    key = keyed_generator(f"corruption-{name}-{severity}", seed, index).initial_seed()
    picture = Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    corrupted = corrupt(picture, name, severity, np.random.default_rng(key))
    return torch.from_numpy(np.asarray(corrupted, dtype=np.float32) / 255).permute(2, 0, 1)
