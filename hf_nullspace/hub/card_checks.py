"""Checks that the card agrees with its files: its text is rendered again and its metadata derived again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.repocard_data import eval_results_to_model_index

from ..utils.escaping import plain_text
from .card_page import render_page
from .claims import Claim
from .model_card import (
    CARD_NAME,
    FOLDER_PLACEHOLDER,
    PIPELINE_TAG,
    REPOSITORY,
    TEMPLATE,
    eval_results,
    name_repository,
    render_section,
)
from .page_text import compare_texts, read_page


# Metadata that the Hub shows and that only the publisher can know.
FREE_FIELDS = (
    "library_name",
    "license",
    "license_name",
    "license_link",
    "language",
    "tags",
    "datasets",
    "base_model",
    "base_model_relation",
    "metrics",
)
DERIVED_FIELDS = ("pipeline_tag", "model-index")
NAME = re.compile(r"[\w.:/ -]{1,200}")
TITLE = re.compile(r"^# (.*)$", re.MULTILINE)


def check_card(folder: Path, facts: dict[str, Any], repository: str | None) -> list[Claim]:
    """
    The claims of a card.

    Args:
        folder (`Path`): Where it is.
        facts (`dict`): From [`read_facts`].
        repository (`str`, *optional*): The repository that it was downloaded from.
    """
    metadata, text = read_page(folder / CARD_NAME)
    heading = TITLE.search(text)
    title = heading[1].strip() if heading else ""
    base_model = metadata.get("base_model")
    names = dict.fromkeys(match[0] for match in REPOSITORY.finditer(text))
    is_old = facts["template"] < TEMPLATE
    expected = render_page(facts, render_section(facts), title, base_model if isinstance(base_model, str) else None)
    text_claim = compare_texts(
        f"text of {CARD_NAME}", name_repository(text, FOLDER_PLACEHOLDER), expected, facts, is_old
    )
    return [
        text_claim,
        _check_metrics(metadata, facts, title),
        _check_fields(metadata, title),
        _check_repository(list(names), repository),
    ]


def list_hearsay(facts: Mapping[str, Any]) -> list[Claim]:
    """Claims shown to the reader that only the training run could confirm; they are listed as not checked."""
    before = " before the last" if facts["certificate"] else " without a published noise"
    parts = {
        "training settings": ["hyperparameters", "settings", "versions"],
        f"rounds{before}": ["rounds"] if len(facts["rounds"]) > bool(facts["certificate"]) else [],
        "step and use of the last round": ["rounds"] if facts["rounds"] else [],
        "certificate of training images": ["certificate"] if facts["certificate"] else [],
        "kind of the base model": ["is_local_base"],
        "evaluations during training": ["metrics.evaluations"] if facts["metrics"]["evaluations"] else [],
        "dataset": ["dataset"] if facts["dataset"] else [],
        "method": ["method"] if facts["method"] else [],
    }
    return [
        Claim(name, None, reason=f"only the training run knows (`{'`, `'.join(names)}`)")
        for name, names in parts.items()
        if names
    ]


def _check_metrics(metadata: Mapping[str, Any], facts: dict[str, Any], title: str) -> Claim:
    tags = metadata.get("datasets")
    tag = tags[0] if isinstance(tags, list) and tags else tags
    results = eval_results(facts, tag if isinstance(tag, str) else None)
    expected = eval_results_to_model_index(title, results) if results else None
    found = metadata.get("model-index")
    if found == expected or (expected is None and found in ([], [{"name": title, "results": []}])):
        return Claim("the card has the measured metrics", True)
    names = sorted(_metrics(found).items() ^ _metrics(expected).items()) if found and expected else []
    listed = list(dict.fromkeys(plain_text(name, 60) for name, _ in names)) or "its other fields"
    return Claim("the card has the measured metrics", False, reason=f"the card and its files differ in {listed}")


def _metrics(index: Any) -> dict[str, str]:
    """Name and value of each metric in an untrusted model index."""
    try:
        rows = [metric for result in index[0]["results"] for metric in result["metrics"]]
        return {str(row.get("name")): repr(row.get("value")) for row in rows}
    except (AttributeError, IndexError, KeyError, TypeError):
        return {}


def _check_fields(metadata: Mapping[str, Any], title: str) -> Claim:
    name = "metadata of the card"
    others = [field for field in metadata if field not in (*FREE_FIELDS, *DERIVED_FIELDS)]
    if others:
        return Claim(name, False, reason=f"no run writes {[plain_text(field, 40) for field in others]}")
    if metadata.get("pipeline_tag") != PIPELINE_TAG:
        return Claim(name, False, reason=f"its `pipeline_tag` is not {PIPELINE_TAG!r}")
    words = [title]
    for field in FREE_FIELDS:
        value = metadata.get(field)
        words += value if isinstance(value, list) else [] if value is None else [value]
    odd = [word for word in words if not isinstance(word, str) or not NAME.fullmatch(word)]
    if odd:
        return Claim(name, False, reason=f"{plain_text(odd[0], 60)!r} is no name")
    return Claim(name, None, reason="nobody but the publisher knows title, license, tags and base model")


def _check_repository(names: list[str], repository: str | None) -> Claim:
    name = "repository that the card's examples load"
    if not names:
        return Claim(name, None, reason="they load none")
    if len(names) > 1 or not NAME.fullmatch(names[0]):
        return Claim(name, False, reason=f"they name {[plain_text(each, 60) for each in names[:3]]}")
    if repository is None:
        return Claim(name, None, reason=f"this is a folder; they load {plain_text(names[0], 60)!r}")
    holds = names[0] == repository
    reason = "" if holds else f"they load {plain_text(names[0], 60)!r}; `hf-nullspace push` names the right one"
    return Claim(name, holds, reason=reason)
