"""Which logit each picture's label is: by the names of classes, never by the order in which they happen to stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transformers.utils import logging

from .imagenet import NUM_CLASSES, imagenet_class_indices, imagenet_wnids


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)


def named_labels(
    dataset: Dataset, title: str, image_column: str, label_column: str, class_names: Sequence[str] | None
) -> tuple[list[int], list[str]]:
    """The label of each picture and the name of each label."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    for flag, column in (("image_column_name", image_column), ("label_column_name", label_column)):
        if column not in dataset.column_names:
            raise ValueError(f"{title} has no column {column!r}, only {dataset.column_names}. Name it with `{flag}`.")
    if not isinstance(dataset.features[image_column], ImageFeature):
        raise ValueError(f"The column {image_column!r} of {title} is {dataset.features[image_column]}, not images.")
    feature, values = dataset.features[label_column], dataset[label_column][:]
    if None in values:
        raise ValueError(f"{title} has {values.count(None)} pictures without a label. Label them or leave them out.")
    if getattr(feature, "dtype", None) == "string":
        places = {text: place for place, text in enumerate(sorted(set(values)))}
        return [places[text] for text in values], list(places)
    names = class_names if class_names is not None else getattr(feature, "names", None)
    if names is None or isinstance(feature, ClassLabel) and not feature.names:
        raise ValueError(
            f"{title} has no class list: its column {label_column!r} holds {getattr(feature, 'dtype', feature)} without "
            "names, and their order cannot be guessed. Pass `class_names` (`imagenet_wnids()` if they are ImageNet's "
            "indices)."
        )
    outside = sorted({value for value in values if not 0 <= value < len(names)})
    if outside:
        raise ValueError(f"{title} has labels {outside[:5]}, but there are {len(names)} class names. Correct them.")
    return values, list(names)


def imagenet_labels(
    title: str, labels: list[int], names: list[str], classes: list[int], is_subset: bool, is_numbered: bool
) -> list[int]:
    """
    The ImageNet class of each picture, -1 where it is outside the subset.

    `is_numbered` says that names may be the numbers of ImageNet-V2's folders.
    """
    if is_numbered and all(label.isdecimal() for label in names):
        # Sorted as text the published folders run '0', '1', '10': the name is the class, its place is not.
        wrong = [label for label in names if label != str(int(label)) or int(label) >= NUM_CLASSES]
        if wrong:
            raise ValueError(f"{title}'s classes are named '0' to '999', unpadded, but got {wrong[:5]}.")
        indices = [int(label) for label in names]
    else:
        indices = imagenet_class_indices(names)
    found, expected = [indices[label] for label in labels], set(classes)
    outside, missing = set(found) - expected, expected - set(found)
    wnids = imagenet_wnids()
    if outside and not is_subset:
        raise ValueError(
            f"{title} has {len(expected)} classes, but the dataset also has pictures of "
            f"{[wnids[index] for index in sorted(outside)[:5]]}. Name the dataset that it is."
        )
    if missing:
        raise ValueError(describe_missing(title, missing, expected))
    return [index if index in expected else -1 for index in found]


def describe_missing(where: str, missing: set[int], expected: set[int]) -> str:
    """The error for classes without a picture."""
    wnids = [imagenet_wnids()[index] for index in sorted(missing)[:5]]
    return (
        f"{where}: no picture of {len(missing)} of {len(expected)} classes, such as {wnids}. Complete it, or name the "
        "classes that are to be evaluated with `class_subset`."
    )


def with_labels(dataset: Dataset, image_column: str, labels: list[int]) -> Dataset:
    """The pictures as `image`, with new labels; those with -1 are left out."""
    dataset = dataset.select_columns(image_column)
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    kept = [place for place, label in enumerate(labels) if label >= 0]
    if len(kept) < len(labels):
        dataset = dataset.select(kept)
    return dataset.add_column("label", [labels[place] for place in kept])


def _model_places(id2label: Mapping[int, str]) -> dict[int, int]:
    """The logit of each ImageNet class that the model has."""
    names = [str(label) for label in id2label.values()]
    if len(names) == NUM_CLASSES and all(label == f"LABEL_{index}" for index, label in enumerate(names)):
        logger.warning("The model does not name its 1000 classes; taking them for ImageNet's, in their order.")
        return {index: index for index in range(NUM_CLASSES)}
    return dict(zip(imagenet_class_indices(names), map(int, id2label), strict=True))


def translate_labels(
    dataset: Dataset, title: str, classes: list[int], id2label: Mapping[int, str] | None
) -> tuple[Dataset, tuple[int, ...] | None]:
    """Labels in the model's order, and the logits that compete."""
    places = _model_places(id2label) if id2label is not None else {index: index for index in range(NUM_CLASSES)}
    class_indices = sorted(places[index] for index in classes if index in places)
    if not class_indices:
        raise ValueError(f"The model has none of the {len(classes)} classes of {title}; see its `id2label`.")
    if any(places.get(index) != index for index in classes):
        labels = [places.get(label, -1) for label in dataset["label"]]
        if dropped := labels.count(-1):
            logger.warning(f"{title}: leaving out {dropped} of {len(labels)} pictures of classes the model has not.")
        dataset = with_labels(dataset, "image", labels)
    return dataset, None if len(class_indices) == NUM_CLASSES else tuple(class_indices)


def folded(label: str) -> str:
    """A class name as it is compared: without case and outer blanks."""
    return str(label).strip().lower()
