"""The record that describes an evaluation dataset, and the registry of such datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.registry import Registry
from .class_lists import ClassList


PREPROCESSINGS = {
    "resize_256_crop_224": "shorter side resized to 256 (bicubic), centre crop of 224",
    "none": "none, the pictures are 224x224",
    "image_processor": "the model's image processor",
}


@dataclass(frozen=True)
class DatasetSpec:
    """
    An evaluation dataset that a column of a profile may name.

    Its folder has a sub-folder of pictures for each class, and where it has `corruptions`, one such folder for each
    corruption and severity (`fog/3/...`). A dataset of the Hub has a class list.

    Args:
        name (`str`):
            Its name in profiles and `--datasets`.
        title (`str`):
            Its name in reports.
        classes ([`ClassList`], *optional*):
            Its classes: [`ImageNetClasses`] or [`NamedClasses`]. By default they are read from the names of its
            sub-folders or its class list.
        help (`str`, *optional*):
            What it is, in a line.
        preprocessing (`str`, *optional*, defaults to `"image_processor"`):
            How its pictures are resized: one of `"resize_256_crop_224"`, `"none"` and `"image_processor"`.
        own_classes_compete (`bool`, *optional*, defaults to `False`):
            Whether predictions are restricted to its own classes, by the rule that it was published with. By default
            all classes of the model compete.
        corruptions (`Sequence[str]`, *optional*):
            The corruptions that it was published with, of which a column chooses one.
        severities (`Sequence[int]`, *optional*):
            Their severities.
        may_be_listed (`bool`, *optional*, defaults to `False`):
            Whether it may be one flat folder, with a text file that has a line `file_name class` for each picture.

    Raises:
        `ValueError`: If the preprocessing is unknown, or there are corruptions without severities.
    """

    name: str
    title: str
    classes: ClassList | None = None
    help: str = ""
    preprocessing: str = "image_processor"
    own_classes_compete: bool = False
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = ()
    may_be_listed: bool = False

    def __post_init__(self):
        check_preprocessing(self.preprocessing)
        if bool(self.corruptions) != bool(self.severities):
            raise ValueError(
                f"{self.title} must have both corruptions and severities or neither, but got {list(self.corruptions)} and "
                f"{list(self.severities)}."
            )

    def check_part(self, corruption: Any, severity: Any, where: str) -> None:
        """
        Checks the part of a dataset that was published with corruptions.

        Args:
            corruption, severity: What was chosen.
            where (`str`): What chose it, as the beginning of a sentence.

        Raises:
            `ValueError`: If there is no such part.
        """
        if corruption not in self.corruptions or type(severity) is not int or severity not in self.severities:
            raise ValueError(
                f"{where} needs a `corruption` of {list(self.corruptions)} and a `severity` of {list(self.severities)}, but "
                f"got {corruption!r} and {severity!r}."
            )


DATASETS: Registry[DatasetSpec] = Registry("dataset")


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """
    Adds an evaluation dataset, which profiles and `--datasets` may then name; returns it.

    Raises:
        `ValueError`: If there is a dataset of this name already.

    Example:

    ```python
    >>> from hf_nullspace.robustness import DatasetSpec, NamedClasses, register_dataset

    >>> register_dataset(DatasetSpec("drawings", "Drawings", NamedClasses(("cat", "dog"))))  # doctest: +SKIP
    ```
    """
    return DATASETS.register(spec)


def check_preprocessing(preprocessing: str) -> None:
    """
    Raises:
        `ValueError`: If there is no such preprocessing.
    """
    if preprocessing not in PREPROCESSINGS:
        raise ValueError(f"`preprocessing` must be one of {list(PREPROCESSINGS)}, but got {preprocessing!r}.")
