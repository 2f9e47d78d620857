"""The rows of a comparison of finetuning methods: the methods as they are, and variants of them from a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .report import BASE, PLAIN


# Training arguments that the comparison sets itself, the same for all rows.
COMMON_ARGUMENTS = (
    *("output_dir", "seed", "data_seed", "remove_unused_columns", "resume_from_checkpoint"),
    *("save_strategy", "eval_strategy", "load_best_model_at_end", "push_to_hub"),
    *("bf16", "fp16", "use_cpu"),
)


@dataclass(frozen=True)
class Row:
    """
    One way of finetuning.

    Args:
        name (`str`): Its name in tables and folders.
        method (`str`): Its method.
        start (`str`, *optional*, defaults to `"base"`): The row whose finished model of the same seed it starts from, or
            the model that all rows share.
        arguments (`dict`, *optional*): Training arguments that differ from those of the comparison.
    """

    name: str
    method: str
    start: str = BASE
    arguments: dict[str, Any] = field(default_factory=dict)


def plan_rows(
    names: Sequence[str], methods: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Row]:
    """
    The rows of a comparison, each after the one that it starts from.

    Args:
        names (`Sequence[str]`): The methods that are a row as they are. `"plain"` must be one.
        methods (`Mapping[str, Method]`): All methods; `args_class` of each says which arguments it has.
        variants (`Mapping[str, Mapping]`, *optional*): For each further row its `method`, if need be its `start`, and
            training arguments.

    Raises:
        `ValueError`: If a method, an argument or a start is unknown, a name cannot be used, or starts run in a circle.
    """
    unknown = [name for name in names if name not in methods]
    if unknown or len(set(names)) < len(names) or PLAIN not in names:
        raise ValueError(
            f"`methods` must be some of {list(methods)}, each once, with {PLAIN!r} among them, which all others are "
            f"compared with; but got {list(names)}."
        )
    rows = {name: Row(name, name) for name in names}
    for name, values in (variants or {}).items():
        if name in rows or name == BASE:
            raise ValueError(f"The variant {name!r} needs another name: {[BASE, *rows]} are taken.")
        if not name or name.startswith(".") or not all(letter.isalnum() or letter in "._+-" for letter in name):
            raise ValueError(
                f"The name of a variant must be letters, digits and '._+-', because folders are named after it, but got "
                f"{name!r}."
            )
        rows[name] = _variant(name, values, methods)
    ordered: dict[str, Row] = {}
    while len(ordered) < len(rows):
        ready = [row for row in rows.values() if row.name not in ordered and row.start in (BASE, *ordered)]
        if not ready:
            waiting = {row.name: row.start for row in rows.values() if row.name not in ordered}
            absent = sorted(set(waiting.values()) - set(rows))
            reason = f"{absent} are no rows" if absent else "they start from one another"
            raise ValueError(
                f"These rows cannot start: {waiting}; {reason}. Start from {BASE!r} or one of {list(rows)}."
            )
        ordered |= {row.name: row for row in ready}
    return list(ordered.values())


def _variant(name: str, values: Mapping[str, Any], methods: Mapping[str, Any]) -> Row:
    if not isinstance(values, Mapping) or values.get("method") not in methods:
        raise ValueError(
            f"The variant {name!r} must be a JSON object with a `method` of {list(methods)}, but got {values!r}."
        )
    arguments = {key: value for key, value in values.items() if key not in ("method", "start")}
    method = values["method"]
    known = {item.name for item in fields(methods[method].args_class) if item.init}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(
            f"The variant {name!r} has the unknown training arguments {unknown}. A variant has a `method`, a `start` and "
            f"arguments of {methods[method].args_class.__name__}."
        )
    taken = sorted(set(arguments) & {*COMMON_ARGUMENTS, *methods[method].fixed_arguments})
    if taken:
        raise ValueError(
            f"The variant {name!r} sets {taken}, which the comparison or the method {method!r} sets itself. Remove them."
        )
    return Row(name, method, values.get("start", BASE), arguments)


def read_variants(path: str | os.PathLike | None) -> dict[str, Any]:
    """
    Variants from a JSON file; none without a file.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it holds no JSON object.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}. Name a JSON file with a variant for each row name.")
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{str(path)!r} must hold a JSON object with a variant for each row name, but got {values!r}."
        )
    return values
