"""Which files of a folder are published, and their hashes for checking a download."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..utils.escaping import plain_text
from ..utils.files import file_hash
from ..utils.strict_json import DamagedFileError, expect, read_json


MANIFEST_NAME = "nullspace_manifest.json"
# Version of the format of all published files. A different number means that this version cannot read them.
FORMAT_VERSION = 1
# Weights, results, figures, and the code of models that bring their own. `training_args.bin` is none of these: it is a
# pickle, holds the token and the folders of the machine, and nothing reads it.
PUBLISHED_SUFFIXES = (".csv", ".json", ".md", ".png", ".py", ".safetensors")
# Of use to a resumed run only, and the first names folders of the machine; what is published to resume from a
# checkpoint has its own. The last holds pictures of the evaluation set, which may be private, and `report.html` shows
# them: neither is published.
LOCAL_NAMES = (
    "trainer_state.json",
    "nullspace_schedule.json",
    "averaged_weights.safetensors",
    "nullspace_checkpoint.json",
    "nullspace_run.json",
    "examples.safetensors",
)


class NewerFormatError(ValueError):
    """The published files have a format that this version of the package does not know."""


def publishable_files(folder: str | os.PathLike) -> list[str]:
    """
    Names of the files in `folder` that are published: weights, results, figures and the card, without hidden ones,
    without sub-folders, and never a pickle.
    """
    return sorted(
        path.name
        for path in Path(folder).iterdir()
        if path.is_file()
        and path.suffix in PUBLISHED_SUFFIXES
        and not path.name.startswith((".", "_"))
        and path.name not in LOCAL_NAMES
    )


def write_manifest(folder: str | os.PathLike) -> None:
    """Writes `nullspace_manifest.json` into `folder`: size and SHA-256 of each file that is published."""
    files = {}
    for name in publishable_files(folder):
        if name != MANIFEST_NAME:
            path = Path(folder, name)
            files[name] = {"size": path.stat().st_size, "sha256": file_hash(path)}
    text = json.dumps({"version": FORMAT_VERSION, "files": files}, indent=2) + "\n"
    Path(folder, MANIFEST_NAME).write_text(text, encoding="utf-8")


def read_manifest(folder: str | os.PathLike) -> dict[str, dict]:
    """
    The files that the manifest of `folder` lists, with their `size` and `sha256`.

    Raises:
        `FileNotFoundError`: If the folder has no manifest.
        `ValueError`: If it is damaged, or has another format than this version of the package writes.
    """
    path = Path(folder, MANIFEST_NAME)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {MANIFEST_NAME}, so nothing says what the files should be. `hf-nullspace push FOLDER REPO` "
            "publishes a folder with one."
        )
    content = read_json(path)
    try:
        version = expect(content["version"], int, "`version`")
        files = expect(content["files"], dict, "`files`")
        if version != FORMAT_VERSION:
            raise NewerFormatError(
                f"{MANIFEST_NAME} is of format {version!r}; this hf_nullspace reads format {FORMAT_VERSION}. Upgrade it "
                "with `pip install -U hf_nullspace`."
            )
        outside = [name for name in files if Path(name).name != name]
        if outside:
            raise ValueError(f"it names files of other folders: {outside}")
        kinds = {"size": int, "sha256": str}
        return {
            name: {field: expect(row[field], kind, f"`{field}` of a file") for field, kind in kinds.items()}
            for name, row in files.items()
        }
    except NewerFormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{MANIFEST_NAME} is damaged: {plain_text(repr(error), 200)}.") from error


def compare_with_manifest(folder: str | os.PathLike) -> dict[str, str]:
    """
    Compares `folder` with its manifest.

    Returns:
        `dict[str, str]`: For each file of the manifest, what is wrong with it; empty if nothing is.
    """
    problems = {}
    for name, row in read_manifest(folder).items():
        path = Path(folder, name)
        if not os.path.isfile(path):  # unlike `Path.is_file`, also for names that are too long
            problems[name] = "is missing"
        elif path.stat().st_size != row["size"]:
            problems[name] = f"has {path.stat().st_size} bytes, published were {row['size']}"
        elif file_hash(path) != row["sha256"]:
            problems[name] = "has another SHA-256 than was published"
        else:
            problems[name] = ""
    return problems
