"""The pictures for verification: folders given by the user, or the digits that the checkpoint was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import nn

from ..data.digits import DIGITS_NAME, load_digits_splits
from ..data.image_folders import has_labels
from ..data.image_tables import read_folder
from ..data.pictures import read_pictures
from ..data.splits import draw_images, drop_unreadable_images
from ..robustness.profiles import EVALUATION_SET
from ..robustness.sources import ImageSource, image_source


if TYPE_CHECKING:
    from datasets import Dataset

_digits = lru_cache(maxsize=1)(load_digits_splits)


@dataclass(frozen=True)
class PublishedImages:
    """
    The images that claims are measured on.

    Args:
        dataset (`str` or `None`): Name of the dataset that the checkpoint was trained on.
        seed (`int`): Seed of its splits.
        folders (`tuple`, *optional*): Folders of images given by the user.
        max_images (`int`, *optional*): Largest number of images.
    """

    dataset: str | None
    seed: int
    folders: tuple[str | os.PathLike, ...] = ()
    max_images: int | None = None

    @property
    def exist(self) -> bool:
        """Whether there are images: given by the user, or available in the package."""
        return bool(self.folders) or self.dataset == DIGITS_NAME

    @property
    def are_known(self) -> bool:
        """Whether the claims were measured on these same images."""
        return not self.folders

    def pictures(self) -> Sequence[Image.Image]:
        """Pictures for the certificate."""
        if self.folders:
            return [picture for folder in self.folders for picture in read_pictures(folder)][: self.max_images]
        return _digits(self.seed)["validation"][: self.max_images]["image"]

    def labelled(self, model: nn.Module, count: int, fingerprint: str) -> tuple[ImageSource, bool] | None:
        """
        Pictures with labels for checking a report; `None` if they have no labels.

        Args:
            model (`nn.Module`): The classifier; labels are indices into its classes.
            count (`int`): Number of images in the report.
            fingerprint (`str`): Fingerprint of these images.

        Returns:
            `tuple[ImageSource, bool]`: The images, and whether they are the same images as in the report.
        """
        parts = self._labelled_parts
        if parts is None:
            return None
        for dataset in self._candidates(parts, count):
            source = image_source(dataset, model, EVALUATION_SET)
            if source.fingerprint() == fingerprint:
                return source, True
        if self.are_known:
            return image_source(parts[0], model, EVALUATION_SET), False
        # The files are sorted by class, so the first ones would cover few classes.
        return image_source(parts[0].shuffle(seed=self.seed), model, EVALUATION_SET), False

    def validation(self, model: nn.Module) -> ImageSource | None:
        """Validation pictures with labels; `None` if they have no labels."""
        if self.are_known:
            return image_source(_digits(self.seed)["validation"], model, EVALUATION_SET)
        parts = self._labelled_parts
        return None if parts is None else image_source(parts[0], model, EVALUATION_SET)

    @cached_property
    def _labelled_parts(self) -> list[Dataset] | None:
        """Datasets with labels that claims may be of, read and decoded once for all claims; `None` without labels."""
        if not self.folders:
            splits = _digits(self.seed)
            return [splits["test"], splits["validation"]]
        from datasets import concatenate_datasets

        if not all(has_labels(Path(folder)) for folder in self.folders):
            return None
        # As the commands that claim read them; pictures that cannot be read had to be left out there, too.
        parts = [
            drop_unreadable_images(read_folder(str(folder), "images"), "image", skip_bad_images=True)
            for folder in self.folders
        ]
        if not all("label" in part.column_names for part in parts):
            return None
        classes = [part.features["label"].names for part in parts]
        if any(names != classes[0] for names in classes):
            raise ValueError(f"The folders of `--images` have different classes: {classes}. Verify with each alone.")
        return [concatenate_datasets(parts)]

    def _candidates(self, parts: Sequence[Dataset], count: int) -> Iterator[Dataset]:
        """Subsets that a run may have measured on: the first images, or a draw with its seed."""
        for part in parts:
            if len(part) >= count:
                yield part.select(range(count))
                if len(part) > count:
                    yield draw_images(part, count, self.seed)
