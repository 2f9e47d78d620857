"""Reads pictures and labels from folders; the class is given by the sub-folder or by a line of a list."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from PIL import Image


def read_class_folders(
    folder: str | os.PathLike, labels: Mapping[str, int], expected: str, ignored: Collection[str] = ()
) -> tuple[list[str], list[int]]:
    """
    The pictures of a folder that has one sub-folder for each class.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        labels (`Mapping[str, int]`): The label of each sub-folder; all of them must be there, and no others.
        expected (`str`): The sub-folders in words, for errors.
        ignored (`Collection[str]`, *optional*): Sub-folders that may be there and are not read.

    Returns:
        `tuple[list[str], list[int]]`: Paths, sorted within each class, and their labels.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `ValueError`: If a sub-folder is missing, empty or unknown, or a picture lies in none.
    """
    folder = _existing(folder)
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    found = {entry.name: entry for entry in entries if entry.is_dir()}
    unknown = [name for name in found if name not in labels and name not in ignored]
    missing = [name for name in labels if name not in found]
    if unknown or missing:
        message = f"{str(folder)!r} is not laid out as expected: {expected}. "
        if unknown:
            message += f"It has {len(unknown)} other folders, such as {unknown[:5]}. "
        if missing:
            message += f"{len(missing)} of {len(labels)} classes are missing, such as {missing[:5]}. "
        inner = [name for name in unknown[:20] if any(entry.name in labels for entry in found[name].iterdir())]
        padded = [name for name in unknown if name.isdecimal() and name.lstrip("0").rjust(1, "0") in labels]
        if inner:
            message += f"Name the folder inside it: {str(folder / inner[0])!r}."
        elif padded:
            message += (
                f"Folders such as {padded[0]!r} were padded or renamed; the published names are unpadded, as "
                f"{padded[0].lstrip('0').rjust(1, '0')!r}, and labels are read from these. Unpack the published archive again."
            )
        elif missing and not unknown:
            message += "Complete it, or name the classes that are to be evaluated with `class_subset`."
        raise ValueError(message.rstrip())
    kinds = Image.registered_extensions()
    loose = [entry.name for entry in entries if entry.is_file() and entry.suffix.lower() in kinds]
    if loose:
        raise ValueError(
            f"{str(folder)!r} has {len(loose)} pictures outside its class folders, such as {loose[:3]}; they have no "
            "label. Move or remove them."
        )
    paths = []
    numbers = []
    for name, label in labels.items():
        pictures = sorted(str(path) for path in found[name].iterdir() if path.suffix.lower() in kinds)
        if not pictures:
            raise ValueError(f"The class folder {str(found[name])!r} holds no picture. Unpack the dataset again.")
        paths += pictures
        numbers += [label] * len(pictures)
    return paths, numbers


def read_labelled_files(
    folder: str | os.PathLike, labels_file: str | os.PathLike | None, labels: Mapping[str, int], kind: str
) -> tuple[list[str], list[int]]:
    """
    The pictures of a flat folder, with labels from a text file that has a line `file_name class` for each.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        labels_file (`str` or `os.PathLike`, *optional*): The list. By default the only `.txt` file of the folder.
        labels (`Mapping[str, int]`): The label of each class that a line may name.
        kind (`str`): What such a name is, for errors.

    Raises:
        `FileNotFoundError`: If the folder or the list does not exist.
        `ValueError`: If there is no list, a line is no pair, or pictures and lines do not match one to one.
    """
    folder = _existing(folder)
    if labels_file is None:
        lists = sorted(folder.glob("*.txt"))
        if len(lists) != 1:
            raise ValueError(
                f"{str(folder)!r} has no class folders and {len(lists)} text files, so nothing says the classes of its "
                "pictures. Name the list, with a line `file_name class` for each picture, as `labels_file`."
            )
        labels_file = lists[0]
    listed: dict[str, int] = {}
    for number, line in enumerate(Path(labels_file).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace(",", " ").rpartition(" ")
        name = name.strip()
        if not name or label not in labels:
            raise ValueError(
                f"Line {number} of {str(labels_file)!r} is {line!r}; expected `file_name class`, the class as {kind}."
            )
        if listed.setdefault(name, labels[label]) != labels[label]:
            raise ValueError(f"{str(labels_file)!r} names two classes for {name!r}.")
    kinds = Image.registered_extensions()
    paths = {path.name: str(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds}
    unlisted = sorted(paths.keys() - listed.keys())
    absent = sorted(listed.keys() - paths.keys())
    if unlisted or absent or not paths:
        raise ValueError(
            f"The {len(paths)} pictures of {str(folder)!r} and the {len(listed)} lines of {str(labels_file)!r} do not "
            f"match: no line for {unlisted[:3]}, no picture for {absent[:3]}."
        )
    return list(paths.values()), [listed[name] for name in paths]


def _existing(folder: str | os.PathLike) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r}. Name the folder that the dataset is unpacked in."
        )
    return folder
