"""The model card: what was measured in, README with valid metadata out; every number of it is also in a JSON file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..escaping import escaped_strings
from .card_page import render_page, template_environment
from .card_results import CONTROL_NAME, MODEL_NAME, undecided


TAGS = ("nullspace", "robustness", "vision", "arxiv:2403.10476")
PIPELINE_TAG = "image-classification"
TRAINING_NAME = "nullspace_training.json"

# Stands for the repository until one is known.
FOLDER_PLACEHOLDER = "path/to/this/folder"

# The templates of the section, by the number that cards carry; earlier ones stay, so that old cards can be compared.
TEMPLATE = 2
TEMPLATES = {1: "model_card_template_1.md", TEMPLATE: "model_card_template.md"}

# Where the card names its repository.
REPOSITORY = re.compile(r"""(?<=model=")[^"]+(?=")|(?<=from_pretrained\(")[^"]+(?=")|(?<=hf-nullspace verify )\S+""")


def write_card(folder: str | Path, facts: dict[str, Any]) -> None:
    """
    Completes the card that `Trainer` wrote into `folder`, and writes `facts` beside it as `nullspace_training.json`.

    Args:
        folder (`str` or `Path`):
            Folder with the `README.md`.
        facts (`dict`):
            What is said, JSON-serialisable: `dataset` (name or `None`), `method` (a sentence, or `None` for nullspace
            finetuning), `model_type`, `patch_projection`,
            `is_local_base`, `bank_size`, `certificate` and `evaluation_certificate` (each a `dict` or `None`), `rounds`
            (`trainer.noise_history`), `settings`, the fields of [`card_results`] (each may be `None`), `figures`
            (caption by file name), `hyperparameters`, `metrics` and `versions`.
    """
    folder = Path(folder)
    card = ModelCard.load(folder / "README.md")
    (tag,) = (card.data.datasets or [None])[:1]
    facts = {**facts, "dataset": facts["dataset"] or tag, "template": TEMPLATE}
    (folder / TRAINING_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    card.data.model_name = card.data.model_name or folder.name
    # All of it is the template's, so that `verify` can write it again from the facts and compare.
    card.text = render_page(facts, render_section(facts), card.data.model_name, card.data.base_model)
    card.data.pipeline_tag = PIPELINE_TAG
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS, facts["model_type"]]))
    card.data.eval_results = eval_results(facts, tag) or None
    card.save(folder / "README.md")


def render_section(facts: dict[str, Any]) -> str:
    """The Markdown that says what nullspace finetuning did; `facts` as for [`write_card`]."""
    name = TEMPLATES[facts.get("template", TEMPLATE)]
    facts = escaped_strings(facts)
    results, differences = facts["results"], facts["differences"]
    table = markdown_table(results, facts["intervals"], differences) if results else None
    template = template_environment().get_template(name)
    unclear = undecided(differences or {})
    shown = {"table": table, "undecided": unclear, "used_rounds": count_used(facts["rounds"])}
    return template.render(
        **{"method": None, "result_logits": None, **facts}, **shown, folder=FOLDER_PLACEHOLDER
    ).strip()


def count_used(rounds: list[dict[str, Any]]) -> int:
    """How many rounds of `trainer.noise_history` were trained on their noise, or on the control of a certified one."""
    return sum(
        bool(row.get("source_in_use", row.get("source_converged", row.get("in_use", row["converged"]))))
        for row in rounds
    )


def name_repository(text: str, name: str) -> str:
    """The text of a card with the repository's name in its examples, whatever they named before."""
    return REPOSITORY.sub(lambda _: name, text)


def markdown_table(
    results: dict[str, dict[str, float]],
    intervals: dict[str, dict[str, list[float]]] | None = None,
    differences: dict[str, list[float]] | None = None,
) -> str:
    """
    A Markdown table with a row for each model, its columns those of the first, and one for the differences; all in per
    cent, the arguments as [`card_results`] gives them.
    """
    columns = list(next(iter(results.values())))
    lines = ["| model | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in results.items():
        cells = [f"{row[column]:.2f}" for column in columns]
        if intervals:
            ends = [intervals[name][column] for column in columns]
            cells = [f"{cell} [{low:.2f}, {high:.2f}]" for cell, (low, high) in zip(cells, ends, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if differences:
        cells = [
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*differences[name]) if name in differences else "" for name in columns
        ]
        lines.append(f"| {MODEL_NAME} - {CONTROL_NAME} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def eval_results(facts: dict[str, Any], dataset_type: str | None = None) -> list[EvalResult]:
    """The published model's measured metrics, for `model-index`; `facts` as for [`write_card`]."""
    values = {f"accuracy ({name})": value for name, value in (facts["results"] or {}).get("nullspace", {}).items()}
    last = facts["metrics"]["last"] or {}
    if "Accuracy" in last:
        values["accuracy (evaluation)"] = 100 * last["Accuracy"]
    certificate = facts["evaluation_certificate"]
    if certificate is not None:
        values["unchanged predictions under the noise"] = 100 * certificate["agreement"]
    dataset = facts["dataset"] or "unknown"
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=dataset_type or dataset,
            dataset_name=dataset,
            metric_type="accuracy" if name.startswith("accuracy") else "agreement",
            metric_name=name,
            metric_value=round(value, 2),
        )
        for name, value in values.items()
    ]
