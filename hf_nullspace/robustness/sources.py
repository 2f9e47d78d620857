"""The images of an evaluation: read from a dataset, with labels that are places among the model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn
from transformers.utils import logging

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
        dataset (`datasets.Dataset`): The pictures, without any transform.
        image_column_name (`str`): Their column.
        labels (`list[int]`): The label of each.
        class_indices (`tuple[int, ...]`, *optional*): The logits that take part; all by default.
    """

    name: str
    dataset: Dataset
    image_column_name: str
    labels: list[int]
    class_indices: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """
        The pictures at some places, as they are.

        Raises:
            `ValueError`: If one cannot be read; it is named.
        """
        pictures = []
        for index in indices:
            try:
                pictures.append(self.dataset[int(index)][self.image_column_name])
            except Exception as error:  # Pillow's plugins raise many kinds; each means the same here
                raise ValueError(
                    f"Image {index} of {self.name!r} ({self._file(index)}) cannot be read: {error}. Repair it or leave it "
                    "out of the dataset."
                ) from error
        return pictures

    def fingerprint(self) -> str:
        """Hash of all labels and of some pictures."""
        step = max(1, len(self) // FINGERPRINT_PICTURES)
        return images_fingerprint(self.read(range(0, len(self), step)[:FINGERPRINT_PICTURES]), self.labels)

    def _file(self, index: int) -> str:
        from datasets import Image as ImageFeature

        encoded = self.dataset.cast_column(self.image_column_name, ImageFeature(decode=False))
        return encoded[int(index)][self.image_column_name]["path"] or "no file of its own"


def image_source(
    dataset: Dataset, model: nn.Module, name: str, image_column_name: str = "image", label_column_name: str = "label"
) -> ImageSource:
    """
    A user's dataset, checked, its labels matched to the model's by name where both have names and by place otherwise.

    Args:
        dataset (`datasets.Dataset`): Pictures and labels.
        model (`nn.Module`): The classifier, for `config.id2label`.
        name (`str`): What to call the dataset.
        image_column_name, label_column_name (`str`, *optional*): Its columns.

    Raises:
        `ValueError`: If a column is missing, there are no images, or a label is not one of the model's.
    """
    for flag, column in (("image_column_name", image_column_name), ("label_column_name", label_column_name)):
        if column not in (getattr(dataset, "column_names", None) or ()):
            raise ValueError(
                f"The images must be a `datasets.Dataset` with a column {column!r}, but it is a "
                f"{type(dataset).__name__} with {getattr(dataset, 'column_names', None)}. Name the column with "
                f"`{flag}`."
            )
    if len(dataset) == 0:
        raise ValueError("The dataset holds no images, so there is nothing to measure.")
    raw = dataset.with_format(None)
    labels = list(raw.select_columns(label_column_name)[:][label_column_name])
    names = getattr(raw.features[label_column_name], "names", None)
    classes = class_places(names, labels, getattr(model, "config", None))
    places = [classes.get(label) for label in labels]
    if None in places:
        unknown = sorted({str(label) for label, place in zip(labels, places, strict=True) if place is None})
        raise ValueError(
            f"The dataset has the labels {unknown[:10]}, which are none of the model's {len(set(classes.values()))} classes "
            "(places from 0, or names in `config.label2id`). Give the dataset a `ClassLabel` column with the model's class "
            "names, remove unlabelled images, or load a model with a head for these classes."
        )
    return ImageSource(name, raw, image_column_name, places)


def class_places(names: Sequence[str] | None, labels: Sequence[Any], config: Any) -> dict[Any, int]:
    """
    The place among the model's logits of each label of a dataset.

    Args:
        names (`Sequence[str]` or `None`): Class names of the dataset, where it has a class list.
        labels (`Sequence[int or str]`): Its labels; what they are decides where there is no class list.
        config (`PreTrainedConfig` or `None`): The model's config.

    Raises:
        `ValueError`: If the dataset's class list is not the model's, and of another length.
    """
    id2label = getattr(config, "id2label", None) or {}
    own = [str(id2label[index]) for index in sorted(id2label)]
    by_name = {name: place for place, name in enumerate(own)}
    is_named = len(by_name) == len(own) and own != [f"LABEL_{index}" for index in range(len(own))]
    if names is not None:
        if is_named and set(names) <= set(own):
            return {label: by_name[name] for label, name in enumerate(names)}
        if own and len(names) != len(own):
            missing = [name for name in names if name not in by_name]
            raise ValueError(
                f"The dataset has {len(names)} classes and the model {len(own)}, and {len(missing)} of the dataset's are not "
                f"among the model's by name ({missing[:5]}; the model has {own[:5]}). Give the `ClassLabel` column the "
                "model's class names, or load a model with a head for these classes."
            )
        if is_named:
            logger.warning(
                f"The class names of the dataset ({list(names[:3])}, ...) are not the model's ({own[:3]}, ...); its "
                f"{len(names)} labels are matched to the model's by their order."
            )
        return {label: label for label in range(len(names))}
    if any(isinstance(label, str) for label in labels):
        return by_name
    return {label: label for label in range(len(own) or 1 + max(label or 0 for label in labels))}
