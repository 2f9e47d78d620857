"""The images of an evaluation: read from a dataset, with labels that are places among the model's logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from torch import nn
from transformers.utils import logging

from ..pictures import picture_name, read_picture
from .datasets import RobustnessDataset, dataset_for_model
from .outcomes import images_fingerprint


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

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
