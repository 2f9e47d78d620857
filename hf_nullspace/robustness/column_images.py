"""The pictures of a column as pixels: read, resized, corrupted, in batches that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ..preprocessing import MODES, Preprocessing
from ..randomness import keyed_generator
from .corruptions import corrupt
from .datasets import prepare_picture
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
        preprocessing ([`~preprocessing.Preprocessing`]): That of the model's image processor.
        seed (`int`): Seed of the corruptions.
    """

    def __init__(self, sources: dict[str, ImageSource], preprocessing: Preprocessing, seed: int):
        self.sources = sources
        self.preprocessing = preprocessing
        self.seed = seed

    def __getitem__(self, batch: ColumnBatch) -> tuple[torch.Tensor, torch.Tensor]:
        source, column = self.sources[batch.column.name], batch.column
        pixels = to_pixels(source.read(batch.indices), self.preprocessing, source.preprocessing)
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


def to_pixels(pictures: Sequence[Image.Image], preprocessing: Preprocessing, protocol: str) -> torch.Tensor:
    """
    Pixels of shape `(num_pictures, channels, height, width)` in [0, 1].

    Args:
        pictures (`Sequence[PIL.Image.Image]`): The pictures.
        preprocessing ([`~preprocessing.Preprocessing`]): That of the model's image processor, which resizes them unless
            the dataset's protocol does.
        protocol (`str`): The `preprocessing` of a [`RobustnessDataset`].
    """
    if protocol == "image_processor":
        return preprocessing.to_pixels(pictures)
    height, width = preprocessing.processed_size or (224, 224)
    if height != width:
        raise ValueError(
            f"The protocol {protocol!r} gives square pictures, but the image processor gives {height}x{width}. "
            "Evaluate on a `datasets.Dataset`, which the image processor resizes."
        )
    return preprocessing.to_pixels_as_is([prepare_picture(picture, protocol, height) for picture in pictures])


def corrupt_pixels(pixels: torch.Tensor, name: str, severity: int, seed: int, index: int) -> torch.Tensor:
    """
    One picture of shape `(channels, height, width)` in [0, 1], corrupted; rounded to the eight bits of a file.

    A grey picture is corrupted as a colour picture of three equal channels, which is then read as grey.
    """
    key = keyed_generator(f"corruption-{name}-{severity}", seed, index).initial_seed()
    shades = (pixels.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    corrupted = corrupt(Image.fromarray(shades), name, severity, np.random.default_rng(key))
    array = np.asarray(corrupted.convert(MODES[len(pixels)]), dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
