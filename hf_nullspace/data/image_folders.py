"""Folders with one sub-folder of pictures for each class. Paths are never interpreted as patterns."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from transformers.utils import logging


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # read by `datasets`
# Names of sub-folders that stand for splits, as `datasets` takes them; words beside them as in "val-2017".
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def check_path(path: str, flag: str, folder: bool = True) -> Path:
    """
    The folder or file that a flag names.

    Raises:
        `FileNotFoundError`: If there is nothing of that name.
        `ValueError`: If it is a file where a folder is expected, or the other way round.
    """
    found = Path(path).expanduser()
    if not str(path).strip():
        raise ValueError(f"`--{flag}` is empty. Name a {'folder' if folder else 'file'}.")
    if not found.exists():
        parent = next(parent for parent in found.absolute().parents if parent.is_dir())
        link = f" It is a link to {os.readlink(found)!r}, which is missing." if found.is_symlink() else ""
        raise FileNotFoundError(
            f"There is no {'folder' if folder else 'file'} {str(path)!r} (`--{flag}`); {str(parent)!r} exists.{link}"
        )
    if folder and not found.is_dir():
        raise ValueError(f"`--{flag}` takes a folder, but {str(path)!r} is a file.")
    if not folder and found.is_dir():
        raise ValueError(f"`--{flag}` takes a file, but {str(path)!r} is a folder.")
    return found


def split_of_name(name: str) -> str | None:
    """The split that a folder's name stands for: "val-2017" is validation, "trainer" is no split."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((split for split, known in SPLIT_WORDS.items() if set(words) & set(known)), None)


def list_files(folder: Path) -> list[tuple[str, ...]]:
    """The files below a folder as parts of their relative paths, sorted; links are followed, hidden names left out."""
    files = []
    seen = set()
    for root, names, leaves in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        names[:] = [] if real in seen else sorted(name for name in names if not name.startswith((".", "__")))
        if real in seen:  # a link to one of its own parent folders
            continue
        seen.add(real)
        parts = Path(root).relative_to(folder).parts
        files += [(*parts, leaf) for leaf in leaves if not leaf.startswith(".")]
    return sorted(files)


def is_picture(name: str) -> bool:
    extensions = Image.registered_extensions()
    kind = extensions.get(os.path.splitext(name)[1].lower())
    return kind in Image.OPEN and kind not in ("MPEG", "HDF5", "GRIB", "BUFR")


def has_metadata(files: list[tuple[str, ...]]) -> bool:
    """Whether `datasets` finds the labels of a folder in its metadata, or its pictures in archives."""
    return any(file[-1] in METADATA_NAMES or file[-1].lower().endswith(".zip") for file in files)


def has_labels(folder: Path) -> bool:
    """Whether the pictures of a folder have classes: by their sub-folders, or perhaps by its metadata."""
    files = list_files(folder)
    return has_metadata(files) or all(len(file) > 1 for file in files if is_picture(file[-1]))


def needs_datasets(files: list[tuple[str, ...]]) -> bool:
    """Whether a folder is more than pictures: metadata with labels, archives, tables or a dataset card."""
    suffixes = (".zip", ".parquet", ".csv", ".tsv", ".json", ".jsonl", ".arrow", ".tar", ".gz", ".py", ".md")
    return not any(is_picture(file[-1]) for file in files) or any(
        file[-1].lower().endswith(suffixes) for file in files
    )


def split_folders(files: list[tuple[str, ...]]) -> dict[str, str]:
    """The sub-folder of each split, if the sub-folders with pictures are splits and not classes."""
    pictures = [file for file in files if is_picture(file[-1])]
    tops = sorted({file[0] for file in pictures if len(file) > 1})
    splits = {name: split_of_name(name) for name in tops}
    named = {split: name for name, split in reversed(splits.items()) if split}
    has_classes_inside = any(len(file) > 2 and splits[file[0]] for file in pictures)
    all_are_splits = bool(tops) and all(splits.values())
    if (has_classes_inside and (all_are_splits or len(named) > 1)) or (all_are_splits and len(named) > 1):
        return {split: named[split] for split in SPLIT_WORDS if split in named}
    return {}


def read_class_folders(
    folder: str, flag: str, image_column_name: str = "image", label_column_name: str = "label"
) -> Dataset:
    """
    The pictures of `folder/class/picture.png` with their classes, in the order of their names.

    Args:
        folder (`str`): The folder; never a pattern.
        flag (`str`): The flag that names it, for messages.
        image_column_name, label_column_name (`str`, *optional*): Columns of the result.

    Raises:
        `FileNotFoundError`: If there is no such folder.
        `ValueError`: If it has no pictures, its sub-folders are splits, or its pictures have no class.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    root = check_path(folder, flag)
    files = list_files(root)
    pictures = [file for file in files if is_picture(file[-1])]
    if not pictures:
        kinds = Counter(os.path.splitext(file[-1])[1].lower() or "no ending" for file in files)
        held = ", ".join(f"{count} files of {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise ValueError(f"The folder {folder!r} (`--{flag}`) holds no pictures, but {held}.")
    check_no_splits(folder, flag, files)
    flat = [file for file in pictures if len(file) == 1]
    if flat:
        tail = f" {len(pictures) - len(flat)} are in sub-folders." if len(flat) < len(pictures) else ""
        raise ValueError(
            f"{len(flat)} pictures, such as {flat[0][0]!r}, lie in {folder!r} (`--{flag}`) itself and so have no class."
            f"{tail} Put each into a sub-folder that is named after its class, or write a metadata.csv with `file_name` "
            f"and `{label_column_name}`."
        )
    depths = {len(file): "/".join(file) for file in sorted(pictures, key=len)}
    if len(depths) > 1:
        raise ValueError(
            f"The pictures of {folder!r} (`--{flag}`) lie at different depths, such as "
            f"{' and '.join(map(repr, list(depths.values())[:2]))}. Put each into a sub-folder that is named after its "
            "class, all at the same depth."
        )
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))}
    empty = sorted(folders - {file[0] for file in pictures})
    if empty:
        logger.warning(f"Sub-folders of {folder!r} without pictures are no classes: {empty[:5]}.")
    known = set(pictures)
    others = Counter(os.path.splitext(file[-1])[1].lower() or "no ending" for file in files if file not in known)
    if others:
        logger.warning(f"Files of {folder!r} that are no pictures are left out: {dict(others)}.")
    names = sorted({file[-2] for file in pictures})
    places = {name: place for place, name in enumerate(names)}
    columns = {
        image_column_name: [str(root.joinpath(*file)) for file in pictures],
        label_column_name: [places[file[-2]] for file in pictures],
    }
    features = Features({image_column_name: ImageFeature(), label_column_name: ClassLabel(names=names)})
    return Dataset.from_dict(columns, features=features)


def check_no_splits(folder: str, flag: str, files: list[tuple[str, ...]]) -> None:
    """
    Raises:
        `ValueError`: If the sub-folders of a folder are splits; the message says what to pass instead.
    """
    splits = split_folders(files)
    if not splits:
        return
    parts = {split: os.path.join(folder, name) for split, name in splits.items()}
    listed = ", ".join(repr(name) for name in splits.values())
    message = f"The sub-folders {listed} of {folder!r} (`--{flag}`) are splits, not classes."
    validation = parts.get("validation", parts.get("test"))
    if flag == "train_dir" and "train" in parts:
        advice = f"`--train_dir {parts['train']}`" + (f" and `--validation_dir {validation}`" if validation else "")
        raise ValueError(f"{message} Pass {advice}.")
    best = validation if flag != "train_dir" and validation else next(iter(parts.values()))
    raise ValueError(f"{message} Pass one of them, such as `--{flag} {best}`.")
