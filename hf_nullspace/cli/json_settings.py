"""Reads a JSON file of settings and checks each one like a flag."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..utils.strict_json import object_of_pairs


def read_settings(
    path: str,
    hints: Mapping[str, Any],
    choices: Mapping[str, Collection[Any] | None],
    removed: Mapping[str, str],
) -> dict[str, Any]:
    """
    The settings in a JSON file.

    Args:
        path (`str`): The file.
        hints (`Mapping[str, Any]`): The type of each setting.
        choices (`Mapping[str, Collection]`): The allowed values of each setting; `None` for any.
        removed (`Mapping[str, str]`): The error for each setting of an earlier version.

    Raises:
        `ValueError`: If there is no such file, it holds no JSON object, or a setting is unknown or of another type.
    """
    try:
        values = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"), object_pairs_hook=object_of_pairs)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path!r}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the file {path!r} is not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"the file {path!r} is nested too deeply") from None
    except (OSError, ValueError) as error:  # of the file, of UTF-8, and of a name that is there twice
        raise ValueError(f"the file {path!r} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the file {path!r} must hold one object of settings by name, but holds a {_kind(values)}")
    for name, value in values.items():
        if name in removed and name not in hints:
            raise ValueError(f"the file {path!r} has an old setting: {removed[name]}")
        if name not in hints:
            known = difflib.get_close_matches(name, hints, n=1, cutoff=0.7)
            raise ValueError(
                f"the file {path!r} has an unknown setting {name!r}"
                + (f", did you mean {known[0]!r}?" if known else "")
            )
        if not _fits(value, hints[name]):
            raise ValueError(
                f"{name!r} in the file {path!r} must be {_describe(hints[name])}, but is the {_kind(value)} "
                f"{json.dumps(value)}"
            )
        _check_choice(name, path, value, choices.get(name))
    return values


def _check_choice(name: str, path: str, value: Any, choices: Collection[Any] | None) -> None:
    chosen = value if isinstance(value, list) else [value]
    if choices and value is not None and not all(each in choices for each in chosen):
        raise ValueError(f"{name!r} in the file {path!r} must be one of {list(choices)}, but is {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type that a field is annotated with."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_fits(part, typing.get_args(hint)[0]) for part in value)
    if isinstance(hint, type) and issubclass(hint, str):  # enumerations of text, too
        return isinstance(value, str)
    base = origin or hint
    return isinstance(value, base) if isinstance(base, type) and base in (bool, dict, list) else True


def _describe(hint: Any) -> str:
    words = {float: "a number", int: "an integer", str: "text", bool: "true or false", types.NoneType: "null"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list or hint is list:
        return "a list"
    return "an object" if (typing.get_origin(hint) or hint) is dict else words.get(hint, str(hint))


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "null")
