"""The help of flags, from the docstring of a dataclass, and the groups of flags."""

from __future__ import annotations

import functools
import inspect
import re

from transformers import TrainingArguments


TRAINER_GROUP = "Trainer"


@functools.cache
def field_descriptions(kind: type) -> dict[str, str]:
    """The description of each field, in one line, from the `Args` of a dataclass' docstring."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    described: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        entry = re.match(r"([\w, ]+) \(.*?\):\s*(.*)$", line.strip()) if indent == 4 else None
        if entry:
            names = entry.group(1).split(", ")
            described |= {name: [entry.group(2)] for name in names}
        elif names and line.strip():
            for name in names:
                described[name].append(line.strip())
    plain = {name: " ".join(lines).replace("[`", "`").replace("`]", "`").strip() for name, lines in described.items()}
    return {name: text for name, text in plain.items() if text}


def group_of(kind: type, name: str) -> tuple[str, str | None]:
    """
    Title and description of the group of a field.

    The group is one of the class attribute `argument_groups` (names of fields by title), or that of the class that
    declares the field: its name without `Arguments`, and the first line of its docstring.
    """
    for title, names in getattr(kind, "argument_groups", {}).items():
        if name in names:
            return title, None
    owner = next(each for each in reversed(kind.__mro__) if name in inspect.get_annotations(each))
    if owner is TrainingArguments:
        return TRAINER_GROUP, "Those of Transformers' `Trainer`."
    words = re.findall("[A-Z][a-z]*", owner.__name__.removesuffix("Arguments")) or [owner.__name__]
    summary = inspect.cleandoc(owner.__doc__ or "").partition("\n")[0]
    return " ".join(words).capitalize(), re.sub(r"\[(`.*?`)\]", r"\1", summary) or None
