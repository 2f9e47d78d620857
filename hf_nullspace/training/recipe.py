"""The recipe of finetuning: how training pictures are augmented, by flags or by what the pictures are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from ..data.pictures import read_picture
from ..models.preprocessing import Preprocessing, image_transform
from ..utils.flags import FlagRule
from ..utils.phases import announce
from .augmentation import KINDS, NO_AUGMENTATION, Augmentation, check_crop_scale, check_package
from .augmented_images import AugmentedImages


if TYPE_CHECKING:
    from datasets import Dataset

# Smallest share of the area that a crop keeps: of photographs that of Transformers' example; of pictures below 96 pixels
# that of BiT (arXiv 1912.11370, crops of 128 of 160 pixels); of characters one that cuts off no stroke.
CROP_SCALE = 0.08
SMALL_CROP_SCALE = 0.64
CHARACTER_CROP_SCALE = 0.8
SMALL_SIDE = 96
NUM_SEEN = 32  # pictures whose size is looked at


@dataclass
class RecipeArguments:
    """How the training images are augmented."""

    augmentation: str = field(
        default="default",
        metadata={
            "help": "What is done to training pictures: random crops, mirrored half of the time (`default`), then "
            "TrivialAugment (`trivial`) or AugMix (`augmix`); or nothing (`none`).",
            "choices": list(KINDS),
        },
    )
    crop_scale: float | None = field(
        default=None,
        metadata={
            "help": f"Smallest share of the area that a crop keeps. Default: {CROP_SCALE}; for pictures below {SMALL_SIDE} "
            f"pixels {SMALL_CROP_SCALE}, for characters {CHARACTER_CROP_SCALE}."
        },
    )
    horizontal_flip: bool | None = field(
        default=None,
        metadata={
            "help": "Mirror half of the pictures. Default: unless the classes are characters, each named by one letter "
            "or digit."
        },
    )

    def __post_init__(self):
        if self.crop_scale is not None:
            check_crop_scale(self.crop_scale)

    def recipe_settings(self) -> dict[str, Any]:
        """What identifies the recipe of a run, as JSON values; empty where nothing is augmented."""
        if self.augmentation == NO_AUGMENTATION:
            return {}
        names = ("augmentation", "crop_scale", "horizontal_flip")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_NO_PICTURE = "no picture is changed"
RECIPE_RULES = tuple(
    FlagRule(name, _NO_PICTURE, only_with=("augmentation", KINDS[:-1])) for name in ("crop_scale", "horizontal_flip")
)


def training_images(
    dataset: Dataset,
    preprocessing: Preprocessing,
    recipe: RecipeArguments,
    labels: Sequence[str],
    image_column_name: str,
    label_column_name: str,
    seed: int,
) -> Any:
    """
    The images that a model is trained on: augmented as the recipe says, or as they are.

    Args:
        dataset ([`~datasets.Dataset`]): Pictures and labels.
        preprocessing ([`Preprocessing`]): That of the model's image processor.
        recipe ([`RecipeArguments`]): The flags.
        labels (`Sequence[str]`): The names of the classes.
        image_column_name, label_column_name (`str`): The columns.
        seed (`int`): Seed of the augmentation.

    Raises:
        `ImportError`: If kornia is needed and missing.
    """
    if recipe.augmentation == NO_AUGMENTATION:
        return dataset.with_transform(image_transform(preprocessing, image_column_name, label_column_name))
    check_package(recipe.augmentation)
    pictures = dataset[: min(NUM_SEEN, len(dataset))][image_column_name]
    crop_scale, horizontal_flip = suited_to([read_picture(picture).size for picture in pictures], labels)
    augmentation = Augmentation(
        recipe.augmentation,
        preprocessing.processed_size,
        crop_scale if recipe.crop_scale is None else recipe.crop_scale,
        horizontal_flip if recipe.horizontal_flip is None else recipe.horizontal_flip,
        preprocessing.num_channels,
    )
    announce(f"Training pictures are augmented: {augmentation}.")
    return AugmentedImages(dataset, preprocessing, augmentation, image_column_name, label_column_name, seed)


def suited_to(sizes: Sequence[tuple[int, int]], labels: Sequence[str]) -> tuple[float, bool]:
    """
    What suits pictures, by one rule: classes that are all named by one letter or digit are characters, which are cropped
    mildly and never mirrored; pictures whose shorter side is below 96 pixels in the middle of their order are small.

    Args:
        sizes (`Sequence[tuple[int, int]]`): Width and height of some pictures.
        labels (`Sequence[str]`): The names of the classes.

    Returns:
        `tuple[float, bool]`: The smallest share of the area that a crop keeps, and whether pictures are mirrored.
    """
    if all(len(label) == 1 and label.isalnum() for label in labels):
        return CHARACTER_CROP_SCALE, False
    return SMALL_CROP_SCALE if median(map(min, sizes)) < SMALL_SIDE else CROP_SCALE, True
