"""The recipe of finetuning: how training pictures are augmented, and whether a new head is trained first."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from transformers import PreTrainedModel, TrainingArguments

from ..data.loading import SOURCES
from ..data.pictures import read_picture
from ..models.preprocessing import Preprocessing, image_transform
from ..utils.flags import FlagRule, check_at_least
from ..utils.phases import announce, announced
from .augmentation import KINDS, NO_AUGMENTATION, Augmentation, check_crop_scale, check_package
from .augmented_images import AugmentedImages
from .head_first import NoSingleHeadError, head_in_words, train_head_first


if TYPE_CHECKING:
    from datasets import Dataset

# Smallest share of the area that a crop keeps: of photographs that of Transformers' example; of pictures below 96 pixels
# that of BiT (arXiv 1912.11370, crops of 128 of 160 pixels); of characters one that cuts off no stroke.
CROP_SCALE = 0.08
SMALL_CROP_SCALE = 0.64
CHARACTER_CROP_SCALE = 0.8
SMALL_SIDE = 96
NUM_SEEN = 32  # pictures whose size is looked at
HEAD_FIRST_STEPS = 500


@dataclass
class RecipeArguments:
    """How the training images are augmented, and whether a new head is trained alone first."""

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

    head_first_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps that the head is trained for alone, before the whole model. Default: "
            f"{HEAD_FIRST_STEPS} where the head is new, else 0."
        },
    )

    def __post_init__(self):
        if self.augmentation not in KINDS:
            raise ValueError(f"`augmentation` must be one of {list(KINDS)}, but got {self.augmentation!r}.")
        check_at_least(self, head_first_steps=0)
        if self.crop_scale is not None:
            check_crop_scale(self.crop_scale)

    def recipe_settings(self) -> dict[str, Any]:
        """What identifies the recipe of a run, as JSON values; of those, nothing is said that changes nothing."""
        names = ("augmentation", "crop_scale", "horizontal_flip", "head_first_steps")
        settings = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.augmentation == NO_AUGMENTATION:
            del settings["augmentation"]
        return settings


_NO_PICTURE = "no picture is changed"
RECIPE_RULES = (
    *(
        FlagRule(name, _NO_PICTURE, only_with=("augmentation", KINDS[:-1]))
        for name in ("crop_scale", "horizontal_flip")
    ),
    FlagRule(
        "head_first_steps", "the digits model is trained from nothing first", needs=("model_name_or_path", *SOURCES)
    ),
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
    mildly and never mirrored; nor are classes of which one is named left or right. Pictures whose shorter side is below 96
    pixels in the middle of their order are small.

    Args:
        sizes (`Sequence[tuple[int, int]]`): Width and height of some pictures.
        labels (`Sequence[str]`): The names of the classes.

    Returns:
        `tuple[float, bool]`: The smallest share of the area that a crop keeps, and whether pictures are mirrored.
    """
    if all(len(label) == 1 and label.isalnum() for label in labels):
        return CHARACTER_CROP_SCALE, False
    has_sides = any({"left", "right"} & set(re.findall("[a-z]+", label.lower())) for label in labels)
    return SMALL_CROP_SCALE if median(map(min, sizes)) < SMALL_SIDE else CROP_SCALE, not has_sides


def head_trained_first(
    model: PreTrainedModel,
    recipe: RecipeArguments,
    has_new_head: bool,
    dataset: Any,
    collator: Callable[[list], dict[str, Any]],
    args: TrainingArguments,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """
    Trains the head of a model alone, where the recipe says so or the head is new, and logs it.

    Args:
        model ([`~transformers.PreTrainedModel`]): The classifier, on its device.
        recipe ([`RecipeArguments`]): The flags.
        has_new_head (`bool`): Whether its head is of random numbers.
        dataset (sized), collator (`Callable`): The training images without augmentation, and what makes batches of them.
        args ([`~transformers.TrainingArguments`]): Those of the training that follows.
        accelerator ([`~accelerate.Accelerator`]): The processes.

    Returns:
        `dict[str, Any]` or `None`: The facts of [`train_head_first`]; `None` if it is not trained alone.

    Raises:
        [`NoSingleHeadError`]: If steps are given, and the model has no head that can be trained alone.
    """
    steps = recipe.head_first_steps
    if steps is None:
        steps = HEAD_FIRST_STEPS if has_new_head else 0
    if not steps:
        return None
    try:
        with announced(f"Training the {'new ' if has_new_head else ''}head alone, {steps} steps"):
            facts = train_head_first(
                model,
                dataset,
                collator,
                steps,
                accelerator,
                args.seed,
                label_smoothing=args.label_smoothing_factor,
                num_workers=args.dataloader_num_workers,
            )
    except NoSingleHeadError as error:
        if recipe.head_first_steps is not None:
            raise
        announce(f"The new head is trained with the whole model from the start. {error}")
        return None
    announce(f"The head was trained first: {head_in_words(facts)}.")
    return facts
