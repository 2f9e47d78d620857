"""The rows of a comparison: ways of finetuning with default settings, and variants from a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..baselines import PLAIN, Way


# The model that all rows start from, unless they say otherwise.
BASE = "base"
# Ends of the names of rows that other rows give rise to: trained for as many steps as plain finetuning, instead of as much
# time, and averaged with the weights that they started from.
EQUAL_STEPS = "-equal-steps"
INTERPOLATED = "-interpolated"
# Settings of the comparison that a variant may set for itself, beside training arguments.
RECIPE_SETTINGS = ("augmentation", "crop_scale", "horizontal_flip", "ema_decay")
# Training arguments that the comparison sets itself, the same for all rows.
COMMON_ARGUMENTS = (
    *("output_dir", "seed", "data_seed", "remove_unused_columns", "resume_from_checkpoint"),
    *("save_strategy", "eval_strategy", "load_best_model_at_end", "push_to_hub"),
    *("bf16", "fp16", "use_cpu"),
)


@dataclass(frozen=True)
class Row:
    """
    A row of the tables: a way of finetuning, from a start, with arguments of its own.

    Args:
        name (`str`): Its name in tables and folders.
        way (`str`): Its way of finetuning.
        start (`str`, *optional*, defaults to `"base"`): The row whose finished model of the same seed it starts from, or
            the model that all rows share.
        arguments (`dict`, *optional*): Training arguments that differ from those of the comparison.
        recipe (`dict`, *optional*): Those of `RECIPE_SETTINGS` that differ from the comparison's.
        interpolated_with (`str`, *optional*): The row, or the base, whose weights those of `start` are averaged with. Such a
            row is not trained.
    """

    name: str
    way: str
    start: str = BASE
    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    interpolated_with: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as in results and variants, where the way is called `method`."""
        described: dict[str, Any] = {"name": self.name, "method": self.way, "start": self.start}
        described["arguments"] = {**self.recipe, **self.arguments}
        if self.interpolated_with is not None:
            described["interpolated_with"] = self.interpolated_with
        return described

    def for_steps(self, max_steps: int, end: str = "") -> Row:
        """The row with a number of steps; `end` is added to its name."""
        return replace(self, name=self.name + end, arguments={**self.arguments, "max_steps": max_steps})


def plan_rows(
    names: Sequence[str], ways: Mapping[str, Way], variants: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Row]:
    """
    The rows of a comparison, each after the one that it starts from.

    Args:
        names (`Sequence[str]`): The ways of finetuning that are a row as they are. `"plain"` must be one.
        ways (`Mapping[str, Way]`): All ways of finetuning.
        variants (`Mapping[str, Mapping]`, *optional*): For each further row its way as `method`, if need be its `start`,
            and training arguments.

    Raises:
        `ValueError`: If a way, an argument or a start is unknown, a name cannot be used, or starts run in a circle.
    """
    unknown = [name for name in names if name not in ways]
    if unknown or len(set(names)) < len(names) or PLAIN.name not in names:
        raise ValueError(
            f"`methods` must be some of {list(ways)}, each once, with {PLAIN.name!r} among them, which all others are "
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
        taken = [end for end in (EQUAL_STEPS, INTERPOLATED) if name.endswith(end)]
        if taken:
            raise ValueError(
                f"The variant {name!r} needs another name: those with {taken[0]!r} at the end are made here."
            )
        rows[name] = _variant(name, values, ways)
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


def _variant(name: str, values: Mapping[str, Any], ways: Mapping[str, Way]) -> Row:
    if not isinstance(values, Mapping) or values.get("method") not in ways:
        raise ValueError(
            f"The variant {name!r} must be a JSON object with a `method` of {list(ways)}, but got {values!r}."
        )
    recipe = {key: values[key] for key in RECIPE_SETTINGS if key in values}
    arguments = {key: value for key, value in values.items() if key not in ("method", "start", *recipe)}
    way = ways[values["method"]]
    removed = [text for key, text in way.args_class.removed_arguments.items() if key in arguments]
    if removed:
        raise ValueError(f"The variant {name!r} has an old setting: {removed[0]}")
    unknown = sorted(set(arguments) - way.argument_names)
    if unknown:
        raise ValueError(
            f"The variant {name!r} has the unknown training arguments {unknown}. A variant has a `method`, a `start`, arguments "
            f"of {way.args_class.__name__}, and of {list(RECIPE_SETTINGS)}."
        )
    taken = sorted(set(arguments) & {*COMMON_ARGUMENTS, *way.fixed_arguments})
    if taken:
        raise ValueError(
            f"The variant {name!r} sets {taken}, which the comparison or the way {way.name!r} sets itself. Remove them."
        )
    return Row(name, way.name, values.get("start", BASE), arguments, recipe)


def interpolated_rows(names: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """
    For each of some rows the row of its finished weights, averaged with those that it started from.

    Raises:
        `ValueError`: If there is no row of a name.
    """
    known = {row.name: row for row in rows}
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"`interpolated` takes rows of this comparison, each once: {list(known)}; but got {list(names)}."
        )
    return [Row(name + INTERPOLATED, known[name].way, name, interpolated_with=known[name].start) for name in names]


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
