"""Tables of pictures and labels: Parquet, CSV, JSON lines, metadata beside pictures, and local dataset folders."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .image_folders import (
    check_no_splits,
    check_path,
    has_metadata,
    list_files,
    needs_datasets,
    read_class_folders,
    split_folders,
)


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
}
# Labels that would change if they were read as numbers: 007, +1 and 1e3.
CODE = re.compile(r"[+-]?0\d+|\+\d+|[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def read_table(
    path: str, flag: str, image_column_name: str = "image", label_column_name: str = "label", **load_kwargs: Any
) -> Dataset:
    """
    The rows of one file, its pictures decoded when they are read.

    Pictures are in the file or named by it: relative names are relative to the file's folder. As in the `metadata.csv`
    of `datasets`, their column may be called `file_name`.

    Args:
        path (`str`): A .parquet, .csv, .tsv, .json, .jsonl or .arrow file, never a pattern; or an address with "://".
        flag (`str`): The flag that names it, for messages.
        image_column_name (`str`, *optional*, defaults to `"image"`): Column of the pictures.
        label_column_name (`str`, *optional*, defaults to `"label"`): Column of the labels; codes such as 007 are texts.
        load_kwargs: Passed on to `datasets.load_dataset`.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it is no such file or cannot be read.
    """
    from datasets import Dataset

    is_address = "://" in path
    file = Path(path) if is_address else check_path(path, flag, folder=False)
    builder = BUILDERS.get(file.suffix.lower())
    if builder is None:
        raise ValueError(f"`--{flag}` takes a file of {', '.join(BUILDERS)}, but got {str(path)!r}.")
    if not is_address and file.stat().st_size == 0:
        raise ValueError(f"The file {str(path)!r} (`--{flag}`) is empty.")
    options: dict[str, Any] = {"sep": "\t"} if file.suffix.lower() == ".tsv" else {}
    if builder == "csv":
        options |= {"keep_default_na": False, "na_values": [""]}  # a class may be called "None" or "NA"
    source = path if is_address else _as_pattern(file)
    dataset = _load(
        builder, f"The file {str(path)!r} (`--{flag}`)", data_files={"train": source}, **options, **load_kwargs
    )
    rows = dataset["train"]
    if builder == "csv" and not is_address and (texts := _codes(file, label_column_name, options)) is not None:
        rows = Dataset.from_dict({name: rows[name][:] for name in rows.column_names} | {label_column_name: texts})
    return as_pictures(rows, image_column_name, "" if is_address else str(file.absolute().parent))


def _codes(file: Path, column: str, options: dict[str, Any]) -> list[str | None] | None:
    """The labels of a CSV file as text, if reading them as integers would change them; else `None`."""
    import pandas

    header = pandas.read_csv(file, nrows=0, **options)
    if column not in header.columns:
        return None
    texts = pandas.read_csv(file, usecols=[column], dtype=str, **options)[column]
    texts = [None if pandas.isna(text) else text for text in texts]
    try:
        are_integers = all(text is None or float(text).is_integer() for text in texts)
    except ValueError:  # some are words, so all are read as text anyway
        return None
    return texts if are_integers and any(text is not None and CODE.fullmatch(text) for text in texts) else None


def read_folder(
    folder: str, flag: str, image_column_name: str = "image", label_column_name: str = "label", **load_kwargs: Any
) -> Dataset:
    """
    The pictures and labels of a folder: by its sub-folders, see [`read_class_folders`], or by its `metadata.csv`, `.jsonl`
    or `.parquet`, as `datasets` reads them.
    """
    root = check_path(folder, flag)
    files = list_files(root)
    if not has_metadata(files):
        return read_class_folders(folder, flag, image_column_name, label_column_name)
    check_no_splits(folder, flag, files)
    for name in (file for file in files if file[-1] == "metadata.csv"):
        if _codes(root.joinpath(*name), label_column_name, {"keep_default_na": False, "na_values": [""]}) is not None:
            raise ValueError(
                f"{str(root.joinpath(*name))!r} (`--{flag}`) has labels such as 007 or 1e3, which would be read as numbers. "
                "Give them a letter, or write a metadata.jsonl with texts."
            )
    title = f"The folder {folder!r} (`--{flag}`)"
    splits = _load("imagefolder", title, data_files={"train": os.path.join(_as_pattern(root), "**")}, **load_kwargs)
    return as_pictures(splits["train"], image_column_name, str(root))


def read_dataset(
    name: str,
    config_name: str | None,
    image_column_name: str,
    label_column_name: str,
    split: str | None = None,
    **load_kwargs: Any,
) -> DatasetDict:
    """
    The splits of a Hub dataset or a local folder of one.

    With `split`, such as `"test"` or `"test[:10%]"`, that one alone, by this name; of a Hub dataset no other is loaded.

    A local folder may hold split folders of class folders, files by split, or what `Dataset.save_to_disk` wrote. Where
    the Parquet files of a split have a class list of their own, it is the one that their labels mean.

    Raises:
        `FileNotFoundError`: If the name is a path and there is nothing of that name.
        `ValueError`: If it is a file, or cannot be read.
    """
    from datasets import DatasetDict, load_dataset

    path = check_dataset_name(name)
    if path is None:
        loaded = load_dataset(name, config_name, split=split, **load_kwargs)
        return loaded if split is None else DatasetDict({split: loaded})
    splits = _read_local_dataset(path, name, config_name, image_column_name, label_column_name, load_kwargs)
    if split is None:
        return splits
    base, _, part = split.partition("[")
    if base not in splits:
        raise ValueError(f"{name!r} has no split {base!r}, only {list(splits)}. Name one with `--dataset_split`.")
    return DatasetDict({split: splits[base].select(_slice(part, split, len(splits[base])))})


def _slice(part: str, split: str, count: int) -> range:
    """The range of indices of a slice such as "10:20]" or ":10%]" of `datasets`."""
    if not part:
        return range(count)
    found = re.fullmatch(r"(\d*)(%?):(\d*)(%?)\]", part)
    if found is None:
        raise ValueError(f"`--dataset_split {split}` is not understood. Write a split, or a part of it as test[:10%].")
    first, last = (
        (round(int(number) * count / 100) if percent else int(number)) if number else default
        for number, percent, default in ((found[1], found[2], 0), (found[3], found[4], count))
    )
    return range(min(first, count), min(last, count))


def _read_local_dataset(
    path: Path,
    name: str,
    config_name: str | None,
    image_column_name: str,
    label_column_name: str,
    load_kwargs: dict[str, Any],
) -> DatasetDict:
    from datasets import DatasetDict, load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    files = list_files(path)
    if not files:
        raise ValueError(f"The folder {name!r} (`--dataset_name`) is empty.")
    if not needs_datasets(files):
        parts = split_folders(files) or {"train": "."}
        return DatasetDict(
            {name: read_class_folders(str(path / part), "dataset_name") for name, part in parts.items()}
        )
    if glob.has_magic(str(path.absolute())) or "::" in str(path):
        raise ValueError(
            f"`datasets` takes one of `*?[]` or `::` in {name!r} (`--dataset_name`) for a pattern. Rename the folder, or "
            "give its files with `--train_file` and `--validation_file`."
        )
    title = f"The folder {name!r} (`--dataset_name`)"
    splits = _load(str(path), title, config_name, **load_kwargs)
    for split, own in _own_parquet_splits(str(path), config_name, splits, label_column_name, load_kwargs).items():
        splits[split] = own
    return DatasetDict({split: as_pictures(part, image_column_name, str(path)) for split, part in splits.items()})


def check_dataset_name(name: str) -> Path | None:
    """
    The local folder of a dataset name; `None` for a dataset on the Hub.

    Raises:
        `FileNotFoundError`: If the name can only be a path, and there is nothing of that name.
        `ValueError`: If it is a file.
    """
    path = Path(name).expanduser()
    if not path.exists() and not is_path(name):
        return None
    if path.is_file():
        raise ValueError(f"`--dataset_name` takes a Hub id or a folder, but {name!r} is a file. Name its folder.")
    return check_path(name, "dataset_name")


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a Hub id is `name` or `user/name`."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def as_pictures(dataset: Dataset, column: str, folder: str) -> Dataset:
    """The dataset with its column of file names or bytes cast to pictures."""
    from datasets import Image as ImageFeature

    if column not in dataset.column_names and "file_name" in dataset.column_names:
        dataset = dataset.rename_column("file_name", column)
    feature = dataset.features.get(column)
    if feature is None or isinstance(feature, ImageFeature):
        return dataset
    kind = getattr(feature, "dtype", "")
    if kind in ("string", "large_string"):
        names = [name and _resolve(name, folder) for name in dataset[column]]
        place = dataset.column_names
        dataset = dataset.remove_columns(column).add_column(column, names).select_columns(place)
    elif kind not in ("binary", "large_binary") and not (
        isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    ):
        return dataset  # no pictures: the check of the columns reports it
    return dataset.cast_column(column, ImageFeature())


def _resolve(name: str, folder: str) -> str:
    return name if "://" in name else os.path.join(folder, os.path.expanduser(name))


def _own_parquet_splits(
    path: str, config_name: str | None, splits: DatasetDict, label_column_name: str, load_kwargs: dict[str, Any]
) -> dict[str, Dataset]:
    """The splits whose Parquet files have another class list than the loaded one, read by themselves."""
    import pyarrow.parquet
    from datasets import ClassLabel, Features, load_dataset_builder

    builder = load_dataset_builder(path, config_name, **load_kwargs)
    result = {}
    for split, files in (builder.config.data_files or {}).items():
        files = [str(file) for file in files if str(file).endswith(".parquet") and os.path.isfile(file)]
        lists = {}
        for file in files:
            feature = Features.from_arrow_schema(pyarrow.parquet.read_schema(file)).get(label_column_name)
            if isinstance(feature, ClassLabel):
                lists[tuple(feature.names)] = file
        if len(lists) > 1:
            (names, file), (others, other) = list(lists.items())[:2]
            raise ValueError(
                f"Two files of the {split} split have other classes: {file!r} has {list(names)}, and {other!r} has "
                f"{list(others)}. Write them with the same class list."
            )
        loaded = splits[str(split)].features.get(label_column_name) if str(split) in splits else None
        if lists and isinstance(loaded, ClassLabel) and [*lists] != [tuple(loaded.names)]:
            data_files = {"train": [glob.escape(file) for file in files]}
            result[str(split)] = _load("parquet", f"The {split} split", data_files=data_files, **load_kwargs)["train"]
    return result


def _as_pattern(path: Path) -> str:
    """A pattern of `datasets` that matches this path alone."""
    if "::" in str(path):
        raise ValueError(f"`datasets` takes '::' in {str(path)!r} for a chain of addresses. Rename it.")
    return glob.escape(str(path.absolute()))


def _load(builder: str, title: str, *args: Any, **kwargs: Any) -> DatasetDict:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(builder, *args, **kwargs)
    except (DatasetGenerationError, ValueError) as error:  # only the cause of the first says why
        if "corresponds to no data" in str(error):
            raise ValueError(f"{title} holds no rows.") from error
        raise ValueError(f"{title} cannot be read: {error.__cause__ or error}") from error
