"""Checks of model cards and of pages of results."""

import json
import re
from pathlib import Path

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


def is_among(number: str, values: list) -> bool:
    """Whether a value, or a hundred times it, is this number when it is rounded as far."""
    if number.count(".") > 1:  # a version
        return number in values
    decimals = len(number.partition(".")[2].partition("e")[0])
    # No value further away is rounded to it; to write each one in four ways would take most of the time.
    reach = float("inf") if "e" in number else 0.5 * 10**-decimals + 1e-9
    for value in values:
        try:
            value = float(value)
        except (TypeError, ValueError):
            continue
        for scaled in (value, 100 * value):
            if abs(scaled - float(number)) > reach:
                continue
            digits = number.lstrip("+-0.").replace(".", "").partition("e")[0]
            sign = "+" if number.startswith("+") else ""
            forms = (
                f"{scaled:{sign}.{decimals}f}",
                f"{scaled:.{decimals}f}",
                f"{scaled:.4g}",
                f"{scaled:.{max(1, len(digits))}g}",
            )
            if number in forms or float(number) == scaled:
                return True
    return False


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
    assert [number for number in numbers_of(text) if not is_among(number, values)] == []
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
