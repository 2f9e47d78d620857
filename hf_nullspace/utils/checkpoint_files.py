"""The file list of a checkpoint, with size and hash of every file. Written last: a complete checkpoint has it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .files import file_hash, write_text


LIST_NAME = "nullspace_checkpoint.json"
# Nobody who resumes reads these: a pickle that holds the token, and the mark that `enable_jit_checkpoint` takes away.
NOT_LISTED = (LIST_NAME, "training_args.bin", "checkpoint-is-incomplete.txt")


def write_list(folder: Path, facts: dict[str, Any], is_complete: bool) -> None:
    """
    Writes the list of a checkpoint.

    Args:
        folder (`Path`): The checkpoint.
        facts (`dict`): What else is known of it.
        is_complete (`bool`): Whether its files are listed; before they are written, the list says that they are not.
    """
    files = None
    if is_complete:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_LISTED]
        with ThreadPoolExecutor() as pool:
            rows = list(pool.map(_row, paths))
        files = {path.relative_to(folder).as_posix(): row for path, row in zip(paths, rows, strict=True)}
    _write(folder, {**facts, "files": files})


def read_list(folder: Path) -> dict[str, Any] | None:
    """
    Reads what [`write_list`] wrote; `None` for a checkpoint without a list.

    Raises:
        `ValueError`: If the list is damaged.
    """
    try:
        values = json.loads((folder / LIST_NAME).read_text(encoding="utf-8"))
        if values.pop("sha256") != _digest(values):
            raise ValueError("its own hash does not fit")
        return values
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"its {LIST_NAME} cannot be read ({error})") from error


def what_differs(folder: Path, values: dict[str, Any], concerns: Callable[[str], bool] = bool) -> str | None:
    """How the files of a checkpoint differ from their list; `None` if they do not. All files are read."""
    if values["files"] is None:
        return f"its {LIST_NAME}, which is written last, lists no files, so its save was cut short"
    listed = {name: row for name, row in values["files"].items() if concerns(name)}
    gone = [name for name in listed if not (folder / name).is_file()]
    if gone:
        return f"it has no {', '.join(gone)}"
    for name, row in listed.items():
        size = (folder / name).stat().st_size
        if size != row["size"]:
            return f"its {name} has {size} bytes, and {row['size']} were written"
    with ThreadPoolExecutor() as pool:
        found = dict(zip(listed, pool.map(_row, [folder / name for name in listed]), strict=True))
    damaged = [name for name, row in listed.items() if found[name]["sha256"] != row["sha256"]]
    return f"its {', '.join(damaged)} changed since it was written (another SHA-256)" if damaged else None


def list_again(folder: Path, name: str) -> None:
    """Brings the list up to date with one file of a copy of a checkpoint that was changed on purpose."""
    values = read_list(folder)
    if values is not None and name in (values["files"] or {}):
        values["files"][name] = _row(folder / name)
        _write(folder, values)


def _row(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_hash(path)}


def _write(folder: Path, values: dict[str, Any]) -> None:
    write_text(folder / LIST_NAME, json.dumps({**values, "sha256": _digest(values)}, indent=2) + "\n")


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
