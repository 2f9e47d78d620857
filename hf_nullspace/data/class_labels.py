"""Matches the labels of a dataset with the logits of a model by the names of the classes, never by their order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from transformers.utils import logging

from .imagenet import NUM_CLASSES, imagenet_candidates, imagenet_wnids


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
    feature = dataset.features[label_column]
    values = dataset[label_column][:]
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

    `is_numbered`: whether names may be the numbers of ImageNet-V2's folders.
    """
    wnids = imagenet_wnids()
    if is_numbered and all(label.isdecimal() for label in names):
        # The published folders are sorted as text ('0', '1', '10'), so the name is the class and not its position.
        wrong = [label for label in names if label != str(int(label)) or int(label) >= NUM_CLASSES]
        if wrong:
            raise ValueError(f"{title}'s classes are named '0' to '999', unpadded, but got {wrong[:5]}.")
        indices = {place: int(label) for place, label in enumerate(names)}
    else:
        needed = sorted(set(labels))  # names without pictures need not match
        chosen = needed if len(names) != NUM_CLASSES else range(NUM_CLASSES)
        candidates = dict(zip(chosen, imagenet_candidates([names[label] for label in chosen]), strict=True))
        if ambiguous := [names[label] for label in needed if len(candidates[label]) > 1]:
            raise ValueError(
                f"{title} has pictures of {ambiguous[:5]}, which may be one of several ImageNet classes; give WordNet "
                "ids instead."
            )
        indices = {label: candidates[label][0] for label in needed}
        twice = sorted(wnids[index] for index, count in Counter(indices.values()).items() if count > 1)
        if twice:
            raise ValueError(f"Several class names of {title} stand for {twice[:5]}; give each class once.")
    found = [indices[label] for label in labels]
    expected = set(classes)
    outside = set(found) - expected
    missing = expected - set(found)
    if outside and not is_subset:
        raise ValueError(
            f"{title} has {len(expected)} classes, but the dataset also has pictures of "
            f"{[wnids[index] for index in sorted(outside)[:5]]}. Name the dataset that it is."
        )
    if missing:
        raise ValueError(describe_missing(title, [wnids[index] for index in sorted(missing)], len(expected)))
    return [index if index in expected else -1 for index in found]


def describe_missing(where: str, missing: list[str], count: int) -> str:
    """The error message for classes without pictures, of `count` classes."""
    return (
        f"{where}: no picture of {len(missing)} of {count} classes, such as {missing[:5]}. Complete it, or name the "
        "classes that are to be evaluated with `class_subset`."
    )


def with_labels(dataset: Dataset, image_column: str, labels: list[int]) -> Dataset:
    """The dataset with the column `image` and new labels; pictures with label -1 are left out."""
    dataset = dataset.select_columns(image_column)
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    kept = [place for place, label in enumerate(labels) if label >= 0]
    if len(kept) < len(labels):
        dataset = dataset.select(kept)
    return dataset.add_column("label", [labels[place] for place in kept])


def _model_places(id2label: Mapping[int, str]) -> dict[int, list[int]]:
    """The candidate logits of each ImageNet class; more than one if names are ambiguous."""
    names = [str(label) for label in id2label.values()]
    if len(names) == NUM_CLASSES and all(label == f"LABEL_{index}" for index, label in enumerate(names)):
        logger.warning("The model does not name its 1000 classes; taking them for ImageNet's, in their order.")
        return {index: [index] for index in range(NUM_CLASSES)}
    places: dict[int, list[int]] = {}
    for place, candidates in zip(id2label, imagenet_candidates(names), strict=True):
        for index in candidates:
            # One logit that matches two classes is as ambiguous as two logits that match one class.
            places.setdefault(index, []).extend([int(place)] * len(candidates))
    return places


def translate_labels(
    dataset: Dataset, title: str, classes: list[int], rule: list[int] | None, id2label: Mapping[int, str] | None
) -> tuple[Dataset, tuple[int, ...] | None]:
    """
    Labels in the model's order, and the logits that compete: all (`None`), or those of the classes of a published `rule`.
    """
    if id2label is None:
        id2label = dict(enumerate(imagenet_wnids()))
        places = {index: [index] for index in range(NUM_CLASSES)}
    else:
        places = _model_places(id2label)
    if not any(index in places for index in classes):
        raise ValueError(f"The model has none of the {len(classes)} classes of {title}; see its `id2label`.")
    labels = list(dataset["label"])
    ambiguous = sorted({label for label in labels if len(places.get(label, ())) > 1})
    if ambiguous:
        named = sorted({str(id2label[place]) for label in ambiguous for place in places[label]})
        raise ValueError(
            f"{title} has pictures of {[imagenet_wnids()[label] for label in ambiguous[:5]]}, and the model's names "
            f"{named[:5]} do not say which logit is theirs. Give WordNet ids in `id2label`, or leave these pictures out."
        )
    if any(places.get(index) != [index] for index in classes):
        labels = [places.get(label, [-1])[0] for label in labels]
        if dropped := labels.count(-1):
            logger.warning(f"{title}: leaving out {dropped} of {len(labels)} pictures of classes the model has not.")
        dataset = with_labels(dataset, "image", labels)
    if rule is None:
        return dataset, None
    competing = sorted({place for index in rule for place in places.get(index, ())})
    return dataset, None if len(competing) == len(id2label) else tuple(competing)


def model_labels(names: Sequence[str], needed: Collection[int], id2label: Mapping[int, str]) -> dict[int, int]:
    """
    The model's logit of each label of a dataset, by name; only labels that pictures have are looked up.

    Names are compared exactly first, then without case and outer blanks. If all names of both sides are ImageNet's
    classes, WordNet ids match synonyms too.

    Args:
        names (`Sequence[str]`): The name of each label.
        needed (`Collection[int]`): The labels that pictures have.
        id2label (`Mapping[int, str]`): The model's classes.

    Raises:
        `ValueError`: If a name matches none of the model's classes, or several, or two names match one.
    """
    own = [str(label) for label in id2label.values()]
    if [folded(label) for label in names] == [folded(label) for label in own]:
        return dict(enumerate(map(int, id2label)))  # the same list: even a name that occurs twice is not ambiguous
    exact = defaultdict(list)
    loose = defaultdict(list)
    for place, label in id2label.items():
        exact[str(label)].append(int(place))
        loose[folded(label)].append(int(place))
    found = {label: exact.get(names[label]) or loose.get(folded(names[label]), []) for label in sorted(needed)}
    if not all(len(places) == 1 for places in found.values()):
        found = _as_imagenet(names, found, id2label)
    unknown = [names[label] for label, places in found.items() if not places]
    if unknown:
        raise ValueError(
            f"The model has no class {unknown[:5]}, only {own[:5]} and so on. Labels are matched by name: pass "
            "`class_names` in the model's words, or an `id2label` in the dataset's."
        )
    ambiguous = {names[label]: places for label, places in found.items() if len(places) > 1}
    if ambiguous:
        name, places = next(iter(ambiguous.items()))
        raise ValueError(
            f"There are pictures of {list(ambiguous)[:5]}, but the model has two classes by the name "
            f"{str(id2label[places[0]])!r} (logits {places}). Rename one in `id2label`, or leave these pictures out."
        )
    logits = {label: places[0] for label, places in found.items()}
    counts = Counter(logits.values())
    alike = [names[label] for label, logit in logits.items() if counts[logit] > 1]
    if alike:
        raise ValueError(
            f"Several classes of the pictures, {alike[:5]}, are one class of the model by their names; give each class "
            "once."
        )
    return logits


def _as_imagenet(
    names: Sequence[str], found: dict[int, list[int]], id2label: Mapping[int, str]
) -> dict[int, list[int]]:
    """Completes `found` by matching ImageNet's classes, if all names of both sides are such classes."""
    chosen = range(len(names)) if len(names) == NUM_CLASSES else list(found)
    try:
        candidates = dict(zip(chosen, imagenet_candidates([names[label] for label in chosen]), strict=True))
        places = _model_places(id2label)
    except ValueError:
        return found
    return {
        label: places.get(candidates[label][0], []) if len(candidates[label]) == 1 else found[label] for label in found
    }


def folded(label: str) -> str:
    """A class name for comparison: without case and outer blanks."""
    return str(label).strip().lower()
