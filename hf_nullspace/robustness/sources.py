"""The images of an evaluation: read from a dataset, with labels that are indices of the model's logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..data.pictures import picture_name, read_picture
from ..data.robustness_datasets import RobustnessDataset, dataset_for_model, prepare_picture
from ..models.preprocessing import MODES, Preprocessing
from ..utils.random import keyed_generator
from .corruptions import corrupt
from .outcomes import images_fingerprint
from .profiles import Column


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)


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
        column = batch.column
        source = self.sources[column.name]
        pixels = to_pixels(source.read(batch.indices), self.preprocessing, source.preprocessing)
        if column.is_generated:
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


# Pictures, evenly spaced, that tell two datasets with the same labels apart.
FINGERPRINT_PICTURES = 16


@dataclass
class ImageSource:
    """
    Images whose labels are places among the model's logits.

    Args:
        name (`str`): The dataset's name in the profile.
        dataset (`datasets.Dataset`): The pictures, in a column `image`.
        labels (`list[int]`): The label of each.
        class_indices (`tuple[int, ...]` or `None`): The logits that compete; `None` for all.
        preprocessing (`str`): How pictures are resized; see [`RobustnessDataset`].
    """

    name: str
    dataset: Dataset
    labels: list[int]
    class_indices: tuple[int, ...] | None
    preprocessing: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """
        The pictures at some places, as [`~pictures.read_picture`] gives them.

        Raises:
            `ValueError`: If one cannot be read; it is named.
        """
        return [self._read(int(index), read_picture) for index in indices]

    def fingerprint(self) -> str:
        """Hash of all labels and of some pictures, as they are stored; unreadable ones count as one empty picture."""
        step = max(1, len(self) // FINGERPRINT_PICTURES)
        pictures = []
        for index in range(0, len(self), step)[:FINGERPRINT_PICTURES]:
            try:
                pictures.append(self._read(index, _loaded))
            except ValueError:
                pictures.append(Image.new("L", (0, 0)))
        return images_fingerprint(pictures, self.labels)

    def _read(self, index: int, prepare: Callable[[Image.Image, str], Image.Image]) -> Image.Image:
        try:
            picture = self.dataset[index]["image"]
            return prepare(picture, picture_name(picture) or f"image {index} of {self.name!r}")
        except Exception as error:  # Pillow's plugins raise many kinds; each means the same here
            raise ValueError(
                f"Image {index} of {self.name!r} ({self.file_of(index)}) cannot be read: {error}. Repair it or leave it "
                "out of the dataset."
            ) from error

    def file_of(self, index: int) -> str:
        """The file of a picture, or its place where it has none."""
        from datasets import Image as ImageFeature

        encoded = self.dataset.cast_column("image", ImageFeature(decode=False))
        return encoded[int(index)]["image"]["path"] or f"no file of its own, image {index}"


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    picture.load()  # a file that was cut short opens all the same
    return picture


def image_source(
    dataset: Dataset | RobustnessDataset,
    model: nn.Module,
    name: str,
    image_column_name: str = "image",
    label_column_name: str = "label",
) -> ImageSource:
    """
    A dataset, checked, its labels translated to the model's by the names of the classes.

    A model whose config does not name its classes (`LABEL_0`, ...) takes as many classes in their order; one without a
    config takes the labels as they are.

    Args:
        dataset (`datasets.Dataset` or [`RobustnessDataset`]): Pictures and labels.
        model (`nn.Module`): The classifier, for `config.id2label`.
        name (`str`): What to call the dataset.
        image_column_name, label_column_name (`str`, *optional*): The columns of a `datasets.Dataset`.

    Raises:
        `ValueError`: If a column or the class list is missing, there are no images, a class is not one of the model's, or a
            label not one of `class_indices`.
    """
    if not isinstance(dataset, RobustnessDataset):
        columns = getattr(dataset, "column_names", None)
        if not isinstance(columns, list):
            raise ValueError(
                f"The images must be a `datasets.Dataset` with a column of pictures and one of labels, but got a "
                f"{type(dataset).__name__} with columns {columns}. Choose one split, or make one with "
                "`datasets.Dataset.from_dict`."
            )
        if not len(dataset):
            raise ValueError("The dataset holds no images, so there is nothing to measure.")
        raw = dataset.with_format(None)  # any transform is for training
        classes = getattr(raw.features.get(label_column_name), "names", None) or []
        id2label = dict(getattr(getattr(model, "config", None), "id2label", None) or enumerate(classes))
        if list(id2label.values()) == [f"LABEL_{index}" for index in range(len(classes))]:
            logger.warning(f"The model does not name its {len(classes)} classes; taking the dataset's in their order.")
            id2label = dict(enumerate(classes))
        columns = {"image_column_name": image_column_name, "label_column_name": label_column_name}
        dataset = dataset_for_model(raw, id2label, name=name, **columns)
    labels = list(dataset.dataset["label"])
    if dataset.class_indices is not None and (outside := sorted(set(labels) - set(dataset.class_indices))):
        raise ValueError(
            f"{name!r} has labels {outside[:5]} that are not among its {len(dataset.class_indices)} `class_indices`. Correct "
            "either."
        )
    return ImageSource(name, dataset.dataset, labels, dataset.class_indices, dataset.preprocessing)
