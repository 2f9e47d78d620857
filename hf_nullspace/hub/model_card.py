"""Writes the model card with valid metadata from what was measured. Every number on it is also in a JSON file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..noise.certificate import Certificate
from ..utils.escaping import escaped_strings
from .card_page import render_page, template_environment
from .card_results import CONTROL_NAME, MODEL_NAME, undecided


TAGS = ("nullspace", "robustness", "vision", "arxiv:2403.10476")
PIPELINE_TAG = "image-classification"
CARD_NAME = "README.md"
TRAINING_NAME = "nullspace_training.json"
# Placeholder until the repository is known.
FOLDER_PLACEHOLDER = "path/to/this/folder"
# The templates of the section, by the number on the card. Earlier ones are kept, so that old cards can be checked.
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
            The contents of the card, JSON-serialisable: `dataset` (name or `None`), `method` (a sentence; `None` for
            nullspace finetuning), `model_type`, `patch_projection`, `is_local_base`, `bank_size`,
            `certificate` and `evaluation_certificate` (each a `dict` or `None`), `rounds` (`trainer.noise_history`),
            `settings`, the fields of [`card_results`] (each may be `None`), `figures` (caption by file name),
            `hyperparameters`, `metrics` and `versions`.
    """
    folder = Path(folder)
    card = ModelCard.load(folder / CARD_NAME)
    (tag,) = (card.data.datasets or [None])[:1]
    facts = {**facts, "dataset": facts["dataset"] or tag, "template": TEMPLATE}
    (folder / TRAINING_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    card.data.model_name = card.data.model_name or folder.name
    # The template holds all of the text, so that `verify` can render it again from the facts and compare.
    card.text = render_page(facts, render_section(facts), card.data.model_name, card.data.base_model)
    card.data.pipeline_tag = PIPELINE_TAG
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS, facts["model_type"]]))
    card.data.eval_results = eval_results(facts, tag) or None
    card.save(folder / CARD_NAME)


def render_section(facts: dict[str, Any]) -> str:
    """The Markdown section on nullspace finetuning; `facts` as for [`write_card`]."""
    name = TEMPLATES[facts.get("template", TEMPLATE)]
    facts = escaped_strings(facts)
    results = facts["results"]
    differences = facts["differences"]
    table = markdown_table(results, facts["intervals"], differences) if results else None
    template = template_environment().get_template(name)
    unclear = undecided(differences or {})
    shown = {"table": table, "undecided": unclear, "used_rounds": count_used(facts["rounds"])}
    if facts.get("template", TEMPLATE) == TEMPLATE:
        shown |= _words_on_certificates(facts)
    return template.render(
        **{"method": None, "result_logits": None, **facts}, **shown, folder=FOLDER_PLACEHOLDER
    ).strip()


def count_used(rounds: list[dict[str, Any]]) -> int:
    """The number of rounds in `trainer.noise_history` that trained on their noise, or on a control of noise in use."""
    return sum(map(_is_used, rounds))


def _is_used(row: dict[str, Any]) -> bool:
    return bool(row.get("source_in_use", row.get("source_converged", row.get("in_use", row["converged"]))))


def _words_on_certificates(facts: dict[str, Any]) -> dict[str, Any]:
    """Values for the template on uncertified noise: in how many rounds it was trained on or left out, and why."""
    rounds = facts["rounds"]
    evaluated = facts["evaluation_certificate"]
    # A control is rarely certified, so the noise that it replaces decides. The card of a control says that it is one.
    uncertified = [
        row for row in rounds if row.get("in_use") and not row["converged"] and "source_converged" not in row
    ]
    left_out = [row for row in rounds if not _is_used(row)]
    return {
        "uncertified_rounds": len(uncertified),
        "uncertified_reason": _obstacle(uncertified[-1]) if uncertified else None,
        "limit": "within epsilon" if all(map(_is_above_epsilon, left_out)) else "certified",
        "left_out_reason": None if all(map(_is_above_epsilon, left_out)) else _obstacle(left_out[-1]),
        "verdict": _verdict(facts["certificate"]) if facts["certificate"] else None,
        "evaluation_verdict": _verdict(evaluated) if evaluated else None,
    }


def _verdict(certificate: dict[str, Any]) -> str:
    if certificate["converged"]:
        return f"certified, its upper bound is within epsilon {certificate['epsilon']:g}"
    return f"not certified, since {_obstacle(certificate)}"


def _is_above_epsilon(row: dict[str, Any]) -> bool:
    error = row.get("source_probability_mse", row["probability_mse"])
    return error is None or error > row["epsilon"]  # an infinite one is `None`


def _obstacle(row: dict[str, Any]) -> str:
    """Why a noise is not certified."""
    fields = {field.name for field in dataclasses.fields(Certificate)}
    certificate = Certificate.from_dict({name: value for name, value in row.items() if name in fields})
    return certificate.obstacle or "another noise of its bank is not"  # in a run of an earlier version


def name_repository(text: str, name: str) -> str:
    """Puts the repository's name into the examples of a card, in place of the name before."""
    return REPOSITORY.sub(lambda _: name, text)


def markdown_table(
    results: dict[str, dict[str, float]],
    intervals: dict[str, dict[str, list[float]]] | None = None,
    differences: dict[str, list[float]] | None = None,
) -> str:
    """
    A Markdown table with a row for each model and one for the differences, in per cent. The columns are those of the
    first model; the arguments are the fields of [`card_results`].
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
