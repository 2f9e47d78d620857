"""Image datasets by name, folder or file: found, checked and prepared before any training starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers.utils import logging


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


logger = logging.get_logger(__name__)


def load_image_splits(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    train_val_split: float = 0.15,
    seed: int = 42,
    **load_kwargs: Any,
) -> DatasetDict:
    """
    Loads a Hub dataset, imagefolders (`dir/class/picture.png`) or parquet files into `train` and `validation` splits.

    Args:
        dataset_name (`str`, *optional*): Hub id or local folder of a dataset; with `dataset_config_name`.
        train_dir, validation_dir (`str`, *optional*): Folders with one sub-folder of pictures for each class.
        train_file, validation_file (`str`, *optional*): Parquet files.
        train_val_split (`float`, *optional*, defaults to 0.15): Share split off for validation where there is none.
        seed (`int`, *optional*, defaults to 42): Seed of that split.
        load_kwargs: Passed on to `datasets.load_dataset` (`cache_dir`, `token`, ...).

    Raises:
        `ValueError`: If not exactly one source is given, or it holds no images.
    """
    from datasets import load_dataset

    sources = {"dataset_name": dataset_name, "train_dir": train_dir, "train_file": train_file}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of {list(sources)}, but got {given or 'none'}.")
    if dataset_name is not None:
        splits = load_dataset(dataset_name, dataset_config_name, **load_kwargs)
    elif train_dir is not None:
        files = {"train": f"{train_dir}/**"} | ({"validation": f"{validation_dir}/**"} if validation_dir else {})
        splits = load_dataset("imagefolder", data_files=files, **load_kwargs)
    else:
        files = {"train": train_file} | ({"validation": validation_file} if validation_file else {})
        splits = load_dataset("parquet", data_files=files, **load_kwargs)
    if "train" not in splits or len(splits["train"]) == 0:
        raise ValueError(f"{sources[given[0]]!r} holds no training images; its splits are {dict(splits.num_rows)}.")
    if "validation" not in splits and "test" in splits:
        splits["validation"] = splits["test"]
    if "validation" not in splits:
        parts = splits["train"].train_test_split(train_val_split, seed=seed)
        splits["train"], splits["validation"] = parts["train"], parts["test"]
    return splits


def check_columns(splits: DatasetDict, image_column_name: str, label_column_name: str) -> list[str]:
    """
    Checks that the columns are there and the labels are classes, encoding integers and text as classes if need be.

    Args:
        splits (`DatasetDict`): The splits; label columns are cast in place.

    Returns:
        `list[str]`: The class names, in the order of their labels.

    Raises:
        `ValueError`: If a column is missing, or a label lies outside the classes.
    """
    from datasets import ClassLabel

    for split, dataset in splits.items():
        for flag, column in (("image_column_name", image_column_name), ("label_column_name", label_column_name)):
            if column not in dataset.column_names:
                raise ValueError(
                    f"The {split} split has no column {column!r}, only {dataset.column_names}. Name it with `--{flag}`."
                )
    if not isinstance(splits["train"].features[label_column_name], ClassLabel):
        values = sorted(set(splits["train"][label_column_name]), key=lambda value: (value is None, value))
        if values[-1] is None or -1 in values:
            raise ValueError(
                f"The train split has images without a label ({'none' if values[-1] is None else -1}). Label them or "
                "leave them out of the dataset."
            )
        names = [str(value) for value in values]
        places = {value: place for place, value in enumerate(values)}
        for split in list(splits):
            unknown = set(splits[split][label_column_name]) - set(values)
            if unknown:
                raise ValueError(
                    f"The {split} split has labels {sorted(unknown)} that the train split, with {names}, has not."
                )
            encoded = [places[value] for value in splits[split][label_column_name]]
            dataset = splits[split].remove_columns(label_column_name).add_column(label_column_name, encoded)
            splits[split] = dataset.cast_column(label_column_name, ClassLabel(names=names))
    names = splits["train"].features[label_column_name].names
    seen = np.asarray(splits["train"][label_column_name])
    for split, dataset in splits.items():
        labels = np.asarray(dataset[label_column_name])
        if dataset.features[label_column_name].names != names:
            raise ValueError(
                f"The {split} split has the classes {dataset.features[label_column_name].names}, but the train split "
                f"has {names}. Give both splits the same class folders."
            )
        unseen = sorted(
            {names[label] for label in set(labels.tolist()) - set(seen.tolist()) if 0 <= label < len(names)}
        )
        if unseen:
            logger.warning(
                f"The {split} split has images of {unseen}, of which the train split has none to learn from."
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= len(names)):
            raise ValueError(
                f"The {split} split has labels from {labels.min()} to {labels.max()}, but there are {len(names)} "
                "classes (0 to one less). Remove unlabelled images, or correct the labels."
            )
    return names


def draw_images(dataset: Dataset, max_images: int | None, seed: int) -> Dataset:
    """At most `max_images` of the images, drawn at random; all of them in their order if there are no more."""
    if max_images is None or max_images >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(max_images))


def drop_unreadable_images(
    dataset: Dataset, image_column_name: str, skip_bad_images: bool = False, num_proc: int | None = None
) -> Dataset:
    """
    Decodes every image once, so that a corrupt one is known by its name before training and not in the middle of it.

    Args:
        dataset (`Dataset`): The images.
        image_column_name (`str`): Their column.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Leave unreadable images out, with a warning that
            counts and names them.
        num_proc (`int`, *optional*): Processes to decode with.

    Raises:
        `ValueError`: If an image is unreadable and `skip_bad_images` is `False`, or none is left.
    """
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
    errors = checked["error"]
    bad = [error for error in errors if error]
    if not bad:
        return dataset
    listed = "; ".join(bad[:5]) + ("; ..." if len(bad) > 5 else "")
    if not skip_bad_images:
        raise ValueError(
            f"{len(bad)} of {len(dataset)} images cannot be read: {listed}. Repair or remove them, or pass "
            "`--skip_bad_images` to leave them out."
        )
    if len(bad) == len(dataset):
        raise ValueError(f"None of the {len(dataset)} images can be read: {listed}.")
    logger.warning(f"Skipping {len(bad)} of {len(dataset)} images that cannot be read: {listed}.")
    return dataset.select([index for index, error in enumerate(errors) if not error])


def _image_error(image: dict[str, Any], index: int) -> dict[str, str]:
    import io

    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as picture:
            picture.load()
    except Exception as error:  # Pillow's plugins raise many kinds; each means the same here
        return {"error": f"{image['path'] or f'image {index}'} ({error})"}
    return {"error": ""}


def image_transform(
    image_processor: Callable, image_column_name: str, label_column_name: str
) -> Callable[[dict[str, list]], dict[str, list]]:
    """The `with_transform` function that turns a batch of pictures into `pixel_values` and `labels`."""

    def transform(batch: dict[str, list]) -> dict[str, list]:
        pictures = [picture.convert("RGB") for picture in batch[image_column_name]]
        values = image_processor(pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(values), "labels": batch[label_column_name]}

    return transform
