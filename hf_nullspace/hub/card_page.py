"""Renders the whole text of a model card from its facts, so that a published card can be checked against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..utils.escaping import escaped_strings, markdown_text


# The display name of each framework, by the name of its package.
FRAMEWORKS = {"torch": "Pytorch"}


def template_environment() -> Environment:
    """A Jinja environment for the templates beside this file. A missing value is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render_page(facts: Mapping[str, Any], section: str, title: str, base_model: str | None = None) -> str:
    """
    The body of the card: the text that `Trainer` writes about a run, with the section on the nullspace inserted.

    Args:
        facts (`Mapping`): As for [`write_card`].
        section (`str`): From [`render_section`].
        title (`str`): The model's name.
        base_model (`str`, *optional*): Hub id of the model that was finetuned; `None` if it is not on the Hub.
    """
    facts = escaped_strings({name: facts[name] for name in ("hyperparameters", "metrics", "versions", "dataset")}) | {
        "is_local_base": facts["is_local_base"]
    }
    metrics = facts["metrics"]
    versions = facts["versions"]
    if base_model:
        name = markdown_text(base_model)
        origin = f"is a fine-tuned version of [{name}](https://huggingface.co/{name}) on"
    elif facts["is_local_base"]:
        origin = "was finetuned from a local checkpoint on"
    else:
        origin = "was trained from scratch on"
    last = metrics["last"]
    evaluations = metrics["evaluations"]
    return (
        template_environment()
        .get_template("card_page_template.md")
        .render(
            title=markdown_text(title),
            origin=origin,
            datasets=_dataset_words(facts["dataset"]),
            last=None if last is None else {name: _rounded(value) for name, value in last.items()},
            hyperparameters=facts["hyperparameters"],
            evaluations=None if evaluations is None else _training_table(evaluations),
            versions={FRAMEWORKS.get(name, name.capitalize()): value for name, value in versions.items()},
            section=section,
        )
    )


def _dataset_words(dataset: str | None) -> str:
    names = [f"the {name}" for name in dataset.split(", ")] if dataset else []
    if not names:
        return "an unknown dataset"
    return f"{names[0]} dataset" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} datasets"


def _rounded(value: Any) -> str:
    """The number as text, with at most four decimals."""
    long = isinstance(value, float) and len(str(value).partition(".")[2]) > 4
    return f"{value:.4f}" if long else str(value)


def _training_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The evaluations during training as a Markdown table; columns are padded to their longest cell."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_rounded(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["".join(f"| {cell:<{width}} " for cell, width in zip(line, widths, strict=True)) + "|" for line in cells]
    return "\n".join([lines[0], "".join(f"|:{'-' * width}:" for width in widths) + "|", *lines[1:]])
