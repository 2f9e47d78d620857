"""Loads image datasets by name, folder or file, and checks them before training starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .image_tables import read_dataset, read_folder, read_table
from .pictures import picture_name, read_picture


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.get_logger(__name__)

MAX_NAMED = 100  # largest number of unreadable images that a message names


def load_image_splits(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    train_val_split: float = 0.15,
    seed: int = 42,
    image_column_name: str = "image",
    label_column_name: str = "label",
    **load_kwargs: Any,
) -> DatasetDict:
    """
    Loads a Hub dataset, folders (`dir/class/picture.png`) or files into `train` and `validation` splits, each by itself.

    Args:
        dataset_name (`str`, *optional*): Hub id or local folder of a dataset; with `dataset_config_name`.
        train_dir, validation_dir (`str`, *optional*): Folders with one sub-folder of pictures for each class, or with a
            `metadata.csv`, `.jsonl` or `.parquet`. Paths, never patterns.
        train_file, validation_file (`str`, *optional*): Parquet, CSV, TSV, JSON-lines or Arrow files that hold pictures,
            or name them relative to their own folder.
        train_val_split (`float`, *optional*, defaults to 0.15): Share split off for validation where there is none.
        seed (`int`, *optional*, defaults to 42): Seed of that split.
        image_column_name, label_column_name (`str`, *optional*): The columns of pictures and labels.
        load_kwargs: Passed on to `datasets.load_dataset` (`cache_dir`, `token`, ...).

    Raises:
        `FileNotFoundError`: If a folder or a file is missing.
        `ValueError`: If not exactly one source is given, more than one validation source is, or one holds no images.
    """
    from datasets import ClassLabel, DatasetDict

    sources = {"dataset_name": dataset_name, "train_dir": train_dir, "train_file": train_file}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of {list(sources)}, but got {given or 'none'}.")
    if validation_dir is not None and validation_file is not None:
        raise ValueError(
            f"Give `validation_dir` or `validation_file`, but not both ({validation_dir!r}, {validation_file!r})."
        )
    has_table = any(source is not None for source in (dataset_name, train_file, validation_file))
    columns = {}
    if has_table:  # a folder next to it uses its column names
        columns = {"image_column_name": image_column_name, "label_column_name": label_column_name}
    validation = None
    if validation_dir is not None:  # before the training images, so that a wrong path is known at once
        validation = read_folder(validation_dir, "validation_dir", **columns, **load_kwargs)
    elif validation_file is not None:
        validation = read_table(
            validation_file, "validation_file", image_column_name, label_column_name, **load_kwargs
        )
    if dataset_name is not None:
        splits = read_dataset(dataset_name, dataset_config_name, image_column_name, label_column_name, **load_kwargs)
    elif train_dir is not None:
        splits = DatasetDict(train=read_folder(train_dir, "train_dir", **columns, **load_kwargs))
    elif train_file is not None:
        splits = DatasetDict(
            train=read_table(train_file, "train_file", image_column_name, label_column_name, **load_kwargs)
        )
    if validation is not None:
        splits["validation"] = validation
    if train_dir is not None and validation_dir is not None:
        are_classes = [isinstance(part.features.get(label_column_name), ClassLabel) for part in splits.values()]
        if all(are_classes):
            _share_folder_classes(splits, label_column_name)
    if "train" not in splits or len(splits["train"]) == 0:
        raise ValueError(f"{sources[given[0]]!r} holds no training images; its splits are {dict(splits.num_rows)}.")
    if "validation" not in splits and "test" in splits:
        splits["validation"] = splits["test"]
    if "validation" not in splits:
        if not 0 < train_val_split < 1:
            raise ValueError(f"`train_val_split` must lie between 0 and 1, but got {train_val_split!r}.")
        count = len(splits["train"])
        if not 0 < math.ceil(count * train_val_split) < count:
            raise ValueError(
                f"{train_val_split:g} of {count} training images cannot be split off for validation. Name validation "
                "images, or more training images."
            )
        parts = splits["train"].train_test_split(train_val_split, seed=seed)
        splits["train"] = parts["train"]
        splits["validation"] = parts["test"]
    if len(splits["validation"]) == 0:
        raise ValueError(f"The validation split holds no images; the splits are {dict(splits.num_rows)}.")
    return splits


def check_columns(splits: DatasetDict, image_column_name: str, label_column_name: str) -> list[str]:
    """
    Checks that the columns are there and the labels are classes, and gives all splits one class list by their names.

    The classes are those of the training split, in its order: its class list, or its sorted integers or texts. Labels of
    the other splits are mapped by name, whatever their order. Classes of a class list that training has no images of are
    kept; where the class list comes from folders, those of the other splits are added. A split that is neither `train`
    nor `validation` and does not fit is left out with a warning.

    Args:
        splits (`DatasetDict`): The splits; label columns are cast in place.

    Returns:
        `list[str]`: The class names, in the order of their labels.

    Raises:
        `ValueError`: If a column is missing, holds no pictures or no classes, or a label lies outside the classes.
    """
    from datasets import Image as ImageFeature

    names = []
    train_is_integers = False
    for split in sorted(splits, key=lambda split: split != "train"):
        dataset = splits[split]
        try:
            for flag, column in (("image_column_name", image_column_name), ("label_column_name", label_column_name)):
                if column not in dataset.column_names:
                    raise ValueError(
                        f"The {split} split has no column {column!r}, only {dataset.column_names}. Name it with "
                        f"`--{flag}`."
                    )
            feature = dataset.features[image_column_name]
            if not isinstance(feature, ImageFeature):
                raise ValueError(
                    f"The column {image_column_name!r} of the {split} split holds no pictures but {feature}. Name the one "
                    "that does with `--image_column_name`."
                )
            values, known, is_integers = _read_classes(dataset, label_column_name, split)
            if split == "train":
                names = known
                train_is_integers = is_integers
            if is_integers and not train_is_integers and names != [str(place) for place in range(len(names))]:
                raise ValueError(
                    f"The {split} split has integers for labels, such as {values[0]}, but the train split has the class "
                    f"names {names}. Give both splits the same names."
                )
            splits[split] = _encode_classes(dataset, label_column_name, split, values, names)
        except ValueError as error:
            if split in ("train", "validation"):
                raise
            logger.warning(f"The {split} split is left out: {error}")
            del splits[split]
    labels_of = {split: set(dataset[label_column_name]) for split, dataset in splits.items()}
    seen = labels_of["train"]
    for split, labels in labels_of.items():
        if split == "validation" and not seen & labels:
            raise ValueError(
                f"No image of the {split} split is of a class that the train split has images of. Its classes are "
                f"{sorted(names[label] for label in labels)}, and those of the train split "
                f"{sorted(names[label] for label in seen)}."
            )
        unseen = [names[label] for label in sorted(labels - seen)]
        if unseen:
            logger.warning(
                f"The {split} split has images of {unseen}, of which the train split has none to learn from."
            )
    return names


def _read_classes(dataset: Dataset, column: str, split: str) -> tuple[list[str], list[str], bool]:
    """The class name of each image, all class names in their order, and whether they are bare integers."""
    from datasets import ClassLabel

    feature = dataset.features[column]
    labels = dataset[column][:]
    if isinstance(feature, ClassLabel):
        outside = [label for label in labels if label is not None and not 0 <= label < feature.num_classes]
        if outside:
            numbers = [label for label in labels if label is not None]
            raise ValueError(
                f"The {split} split has labels from {min(numbers)} to {max(numbers)}, but there are {feature.num_classes} "
                "classes (0 to one less). Remove unlabelled images, or correct the labels."
            )
        values = [label if label is None else feature.names[label] for label in labels]
        known = list(feature.names)
    else:
        kinds = {type(label) for label in labels} - {type(None)}
        if kinds == {float} and all(label is None or label.is_integer() for label in labels):
            labels = [label if label is None else int(label) for label in labels]
            kinds = {int}
        if len(kinds) > 1 or not kinds <= {str, int, bool}:
            raise ValueError(
                f"The column {column!r} of the {split} split holds {feature}, but labels must be classes: integers or "
                "texts. Name the right column with `--label_column_name`."
            )
        values = labels
        known = sorted(set(labels) - {None})
    missing = [index for index, value in enumerate(values) if value in (None, "", -1)]
    if missing:
        held = "none" if values[missing[0]] in (None, "") else -1
        raise ValueError(
            f"The {split} split has images without a label ({held}): {len(missing)} of {len(values)}, the first is image "
            f"{missing[0]}. Label them or leave them out of the dataset."
        )
    is_integers = bool(known) and type(known[0]) is int
    return [str(value) for value in values], [str(value) for value in known], is_integers


def _encode_classes(dataset: Dataset, column: str, split: str, values: list[str], names: list[str]) -> Dataset:
    """The dataset with its labels as indices into `names`, the classes of the train split."""
    from datasets import ClassLabel

    feature = ClassLabel(names=names)
    if dataset.features[column] == feature:
        return dataset
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f"The {split} split has labels {unknown} that the train split, with {names}, has not. Give both splits the "
            "same class names."
        )
    places = {name: place for place, name in enumerate(names)}
    encoded = [places[value] for value in values]
    return dataset.remove_columns(column).add_column(column, encoded).cast_column(column, feature)


def _share_folder_classes(splits: DatasetDict, column: str) -> None:
    """Gives class folders of several splits one shared class list, as a single call of `datasets` would."""
    lists = [dataset.features[column].names for dataset in splits.values()]
    names = sorted(set().union(*lists))
    for split, dataset in splits.items():
        own = dataset.features[column].names
        splits[split] = _encode_classes(dataset, column, split, [own[label] for label in dataset[column]], names)


def draw_images(dataset: Dataset, max_images: int | None, seed: int) -> Dataset:
    """At most `max_images` of the images, drawn at random; all of them in their order if there are no more."""
    if max_images is None or max_images >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_images))


def drop_unreadable_images(
    dataset: Dataset, image_column_name: str, skip_bad_images: bool = False, num_proc: int | None = None
) -> Dataset:
    """
    Decodes every image once, so that corrupt images are reported before training and not in the middle of it.

    Args:
        dataset (`Dataset`): The images.
        image_column_name (`str`): Their column.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Leave unreadable images out, with a warning that
            counts and names them.
        num_proc (`int`, *optional*): Processes to decode with.

    Raises:
        `ValueError`: If images are unreadable and `skip_bad_images` is `False`, or none is left; it names all of them.
    """
    return drop_unreadable_of_splits({"": dataset}, image_column_name, skip_bad_images, num_proc)[""]


def drop_unreadable_of_splits(
    splits: dict[str, Dataset], image_column_name: str, skip_bad_images: bool = False, num_proc: int | None = None
) -> dict[str, Dataset]:
    """[`drop_unreadable_images`] for several splits. All splits are checked before an error is raised."""
    errors = {split: _image_errors(dataset, image_column_name, num_proc) for split, dataset in splits.items()}
    bad = sorted(error for of_split in errors.values() for error in of_split if error)
    total = sum(len(dataset) for dataset in splits.values())
    listed = "; ".join(bad[:MAX_NAMED]) + (f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else "")
    if bad and not skip_bad_images:
        raise ValueError(
            f"{len(bad)} of {total} images cannot be read: {listed}. Repair or remove them, or pass `--skip_bad_images` to "
            "leave them out."
        )
    for split, of_split in errors.items():
        if of_split and all(of_split):
            where = f" of the {split} split" if split else ""
            raise ValueError(f"None of the {len(of_split)} images{where} can be read: {listed}.")
    if bad:
        logger.warning(f"Skipping {len(bad)} of {total} images that cannot be read: {listed}.")
    good = {split: [place for place, error in enumerate(of_split) if not error] for split, of_split in errors.items()}
    return {
        split: dataset if len(good[split]) == len(dataset) else dataset.select(good[split])
        for split, dataset in splits.items()
    }


def _image_errors(dataset: Dataset, image_column_name: str, num_proc: int | None) -> list[str]:
    """The error of each image; empty if the image can be read."""
    from datasets import Image as ImageFeature

    encoded = dataset.select_columns(image_column_name).cast_column(image_column_name, ImageFeature(decode=False))
    checked = encoded.map(
        _image_error,
        with_indices=True,
        input_columns=image_column_name,
        remove_columns=encoded.column_names,
        num_proc=num_proc,
        desc="Checking images",
    )
    return checked["error"][:]


def _image_error(image: dict[str, Any] | None, index: int) -> dict[str, str]:
    if image is None:
        return {"error": f"image {index} is missing"}
    try:
        read_picture(image, picture_name(image) or f"image {index}")
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}
