"""Strict reading of untrusted JSON files, with one-line errors."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .escaping import plain_text


# A report of ten thousand columns has a few MB.
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 32


class DamagedFileError(ValueError):
    """A file whose content is damaged or has the wrong format."""


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """
    The object that a JSON file holds.

    Args:
        path (`str` or `os.PathLike`): The file.
        max_bytes (`int`, *optional*, defaults to 64 MiB): Larger files are refused.

    Raises:
        `FileNotFoundError`: If there is no such file.
        [`DamagedFileError`]: If it is no JSON object in UTF-8, has a name twice, a number that is not finite, or is too
            large or too deep.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path.name}.")
    if path.stat().st_size > max_bytes:
        raise DamagedFileError(f"{path.name} has {path.stat().st_size} bytes; at most {max_bytes} are read.")
    try:
        content = json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=object_of_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite(float),
            parse_int=_finite(int),
        )
    except RecursionError:
        raise DamagedFileError(f"{path.name} is damaged: it is nested too deeply.") from None
    except ValueError as error:  # of JSON and of UTF-8 alike
        raise DamagedFileError(f"{path.name} is damaged: {plain_text(error, 200)}.") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path.name} is damaged: it holds a {type(content).__name__}, not an object.")
    if _depth(content) > MAX_DEPTH:
        raise DamagedFileError(f"{path.name} is damaged: it is nested more than {MAX_DEPTH} deep.")
    return content


def expect(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """
    `value`, if it is of a kind; numbers must be finite, and no truth value counts as one.

    Raises:
        [`DamagedFileError`]: If it is of another kind.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join("nothing" if each is type(None) else each.__name__ for each in kinds)
        raise DamagedFileError(f"{what} should be {expected}, but is {plain_text(repr(value), 60)}")
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise DamagedFileError(f"{what} is not finite")
    return value


def object_of_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """
    The object of a JSON file, as `object_pairs_hook`.

    Raises:
        `ValueError`: If it has a name twice, of which `json` would take the last without a word.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the name {twice!r} twice")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _finite(kind: type):
    def read(text: str):
        if len(text) > 400 or not math.isfinite(float(text)):
            raise ValueError(f"the number {text[:20]}... is too large")
        return kind(text)

    return read


def _depth(content: Any) -> int:
    depth = 0
    level = [content]
    while level:
        depth += 1
        level = [
            each
            for value in level
            if isinstance(value, (dict, list))
            for each in (value.values() if isinstance(value, dict) else value)
        ]
    return depth
