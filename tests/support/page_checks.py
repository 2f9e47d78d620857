"""Checks of model cards and of pages of results."""

import json
import math
import re
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_nullspace.hub.model_card import TRAINING_NAME, eval_results, render_section


CARDS = Path(__file__).parents[2] / "model_cards"


FINISHED = sorted(path.parent for path in CARDS.rglob(TRAINING_NAME))


NUMBER = re.compile(r"(?<![\w.:/+-])[+-]?\d+(?:\.\d+)*(?:e[+-]?\d+)?(?![\w/-]|\.\d)")


def prose_of(text: str) -> str:
    """A page without its metadata, code, links, file names, and names with a digit."""
    text = re.sub(r"^---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->|https?://\S+", " ", text, flags=re.DOTALL)
    text = re.sub(r"\b(ViT-[SB]/1[46]|DINOv2|CIFAR-10|ImageNet-C|SHA-256|L2|Linf|arXiv \S+)", " ", text)
    return text


def numbers_of(text: str) -> list[str]:
    """The numbers that a page states."""
    return NUMBER.findall(prose_of(text))


def values_of(content) -> list:
    """Every leaf of a JSON value, and the numbers inside its texts."""
    if isinstance(content, dict):
        return [leaf for value in content.values() for leaf in values_of(value)]
    if isinstance(content, list):
        return [leaf for value in content for leaf in values_of(value)]
    return [content, *NUMBER.findall(content.replace("=", " "))] if isinstance(content, str) else [content]


class Values:
    """
    The numbers of JSON values, to be found by the way that a page rounds them.

    Args:
        leaves (`list`): As [`values_of`] gives them.
    """

    def __init__(self, leaves: list):
        self.texts = {leaf for leaf in leaves if isinstance(leaf, str)}
        numbers = {number for leaf in leaves if (number := as_float(leaf)) is not None}
        self.scaled = sorted(numbers | {100 * number for number in numbers})

    def __contains__(self, number: str) -> bool:
        """Whether a value, or a hundred times it, is this number when it is rounded as far."""
        if number.count(".") > 1:  # a version
            return number in self.texts
        stated, decimals = float(number), len(number.partition(".")[2].partition("e")[0])
        reach = float("inf") if "e" in number else 0.5 * 10**-decimals + 1e-9
        first, last = bisect_left(self.scaled, stated - reach), bisect_right(self.scaled, stated + reach)
        digits = number.lstrip("+-0.").replace(".", "").partition("e")[0]
        sign = "+" if number.startswith("+") else ""
        formats = (f"{sign}.{decimals}f", f".{decimals}f", ".4g", f".{max(1, len(digits))}g")
        return any(
            stated == value or any(f"{value:{form}}" == number for form in formats)
            for value in self.scaled[first:last]
        )


def as_float(leaf: Any) -> float | None:
    try:
        number = float(leaf)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def results_of(folder: Path) -> list[Path]:
    """The JSON files that a page in this folder is read from; those of all comparisons for a page about all of them."""
    return sorted(folder.rglob("*.json") if folder == CARDS else folder.glob("*.json"))


def json_values(folder: Path) -> list:
    files = results_of(folder)
    return [value for path in files for value in values_of(json.loads(path.read_text(encoding="utf-8")))]


def check_page(page: Path) -> None:
    """Every number is in a JSON file beside the page, and every word with a digit that is no number is a name there."""
    values, text = json_values(page.parent), page.read_text(encoding="utf-8")
    if page.parent == CARDS:  # a page about all comparisons may state a difference the other way round
        values += [-value for value in values if isinstance(value, float)]
    known = Values(values)
    assert [number for number in numbers_of(text) if number not in known] == []
    words = re.findall(r"[\w.+/-]*\d[\w.+/-]*", NUMBER.sub(" ", prose_of(text)))
    names = " ".join(path.read_text(encoding="utf-8") for path in results_of(page.parent))
    assert [word for word in words if word not in names] == []


def check_card(folder: Path) -> None:
    """The metadata, the section and the figures of a card are those of the results beside it."""
    card = ModelCard.load(folder / "README.md")
    facts = json.loads((folder / TRAINING_NAME).read_text(encoding="utf-8"))
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        result.metric_name: result.metric_value for result in eval_results(facts)
    }
    assert render_section(facts) in card.content
    assert {"nullspace", "robustness", "vision", "vit", "arxiv:2403.10476"} <= set(card.data.tags)
    assert card.data.license and card.data.datasets and card.data.pipeline_tag == "image-classification"
    for name in facts["figures"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
