"""The part of a model card that says what nullspace finetuning did: numbers in, Markdown out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..noise import NullspaceNoise


TAGS = ("nullspace", "robustness", "vision", "arxiv:2403.10476")


def build_card_section(
    noise: NullspaceNoise | None,
    history: list[dict[str, Any]],
    settings: dict[str, Any],
    results: dict[str, dict[str, float]] | None = None,
    figure: str | None = None,
) -> str:
    """
    Renders the section, from values that were measured and nothing else.

    Args:
        noise ([`NullspaceNoise`] or `None`): The bank that is saved beside the model.
        history (`list[dict]`): `trainer.noise_history`.
        settings (`dict`): Name and value of each setting to list.
        results (`dict[str, dict[str, float]]`, *optional*): For each model, accuracy in per cent by column.
        figure (`str`, *optional*): File name of the noise-norm figure, relative to the card.

    Returns:
        `str`: Markdown.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card_template.md").render(
        certificate=noise.certificate.to_dict() if noise is not None else None,
        bank_size=len(noise.tensor) if noise is not None else 0,
        history=history,
        settings=settings,
        table=markdown_table(results) if results else None,
        figure=figure,
    )


def markdown_table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row for each model, its columns those of the first; values in per cent."""
    columns = list(next(iter(results.values())))
    lines = ["| model | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.2f}" for column in columns) + " |")
    return "\n".join(lines)


def add_card_section(path: Path, section: str) -> None:
    """Adds `section` to the card that `Trainer` wrote, ahead of its training procedure."""
    card = ModelCard.load(path)
    # Trainer links to a base model even where there is none.
    card.text = card.text.replace(
        "This model is a fine-tuned version of [](https://huggingface.co/) on",
        "This model was trained from scratch on",
    )
    heading = "## Training procedure"
    before, found, after = card.text.partition(heading)
    card.text = f"{before.rstrip()}\n\n{section.strip()}\n\n{found}{after}"
    card.save(path)
