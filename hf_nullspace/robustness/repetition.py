"""Measures chosen images of a report's columns again, to compare them with its outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from ..models.frozen import frozen
from ..models.patch_projection import channels_of
from ..models.pixel_model import PixelModel
from ..models.preprocessing import Preprocessing
from ..utils.random import preserved_random_state
from .outcomes import Outcomes
from .profiles import Column, Profile
from .shards import Shard, ShardRunner, passes_per_image
from .sources import ColumnImages, ImageSource, to_pixels


class Repetition:
    """
    Measures chosen images of the columns of a profile, one column at a time.

    Args:
        model (`nn.Module`): The classifier.
        image_processor (`Callable`): Its image processor.
        source ([`ImageSource`]): The images; all columns are of these.
        profile ([`Profile`]): Gives the columns and the seed.
        batch_size (`int`, *optional*, defaults to 64): Images at a time.
    """

    def __init__(
        self, model: nn.Module, image_processor: Callable, source: ImageSource, profile: Profile, batch_size: int = 64
    ):
        self.model = model
        self.source = source
        self.profile = profile
        self.preprocessing = Preprocessing.of(image_processor, channels_of(model))
        self.batch_size = batch_size

    def seconds_per_pass(self) -> float:
        """Time of one image's forward pass, in batches; the first batch, which is slower, is not counted."""
        count = min(self.batch_size, len(self.source))
        with preserved_random_state(), frozen(self.model), torch.no_grad():
            classifier = PixelModel(self.model, self.preprocessing)
            pixels = self._pixels(range(count)).to(classifier.mean.device)
            classifier(pixels)
            begun = time.perf_counter()
            classifier(pixels)
            return (time.perf_counter() - begun) / count

    def run(self, places: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Outcomes]]:
        """
        Yields name and outcomes of each column, when they are measured.

        Args:
            places (`Mapping[str, Sequence[int]]`): Which images, by column.
        """
        columns = {column.name: column for column in self.profile.columns}
        for name, indices in places.items():
            yield name, self._measure(columns[name], list(indices))

    def _measure(self, column: Column, indices: list[int]) -> Outcomes:
        batches = [
            tuple(indices[first : first + self.batch_size]) for first in range(0, len(indices), self.batch_size)
        ]
        shard = Shard(column, 0, 0, tuple(batches))
        with preserved_random_state(), frozen(self.model):
            images = ColumnImages({column.name: self.source}, self.preprocessing, self.profile.seed)
            runner = ShardRunner(PixelModel(self.model, self.preprocessing), images, Accelerator())
            outcomes, *_ = runner.run([shard], None, {})
        return outcomes[column.name]

    def _pixels(self, places: Sequence[int]) -> torch.Tensor:
        return to_pixels(self.source.read(places), self.preprocessing, self.source.preprocessing)


def seconds_of(column: Column, seconds_per_pass: float) -> float:
    """How long one image of a column takes; a corruption counts as much as a pass, and at least 20 ms."""
    corrupting = 0.0 if column.corruption is None else max(0.02, seconds_per_pass)
    return passes_per_image(column) * seconds_per_pass + corrupting
