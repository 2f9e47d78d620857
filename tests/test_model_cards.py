"""Every number of every model card is in a JSON file beside it, and the cards are valid and complete."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import Dinov2ForImageClassification

from hf_nullspace.hub import TRAINING_NAME
from hf_nullspace.hub.model_card import eval_results, render_section
from hf_nullspace.noise_schedule import LOGGED_FIELDS
from hf_nullspace.trainer import EVALUATED_FIELDS


CARDS = Path(__file__).parents[1] / "model_cards"
PAGES = sorted(CARDS.rglob("*.md"))
FINISHED = sorted(path.parent for path in CARDS.rglob(TRAINING_NAME))
README = CARDS.parent / "README.md"
DIFFERENCE = re.compile(r"([+-])(\d+\.\d+) \[([+-])(\d+\.\d+), ([+-])(\d+\.\d+)\]")
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


def json_values(folder: Path) -> list:
    files = sorted(folder.glob("*.json"))
    return [value for path in files for value in values_of(json.loads(path.read_text(encoding="utf-8")))]


def check_page(page: Path) -> None:
    """Every number is in a JSON file beside the page, and every word with a digit that is no number is a name there."""
    values, text = json_values(page.parent), page.read_text(encoding="utf-8")
    assert [number for number in numbers_of(text) if not is_among(number, values)] == []
    words = re.findall(r"[\w.+/-]*\d[\w.+/-]*", NUMBER.sub(" ", prose_of(text)))
    names = " ".join(path.read_text(encoding="utf-8") for path in page.parent.glob("*.json"))
    assert [word for word in words if word not in names] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CARDS)))
def test_every_number_is_in_the_results(page):
    check_page(page)


def differences_of(text: str) -> list[str]:
    """The differences with an interval that a text states."""
    return [match.group() for match in DIFFERENCE.finditer(text)]


def reversed_difference(difference: str) -> str:
    sign, mean, low_sign, low, high_sign, high = DIFFERENCE.match(difference).groups()
    opposite = {"+": "-", "-": "+"}
    return f"{opposite[sign]}{mean} [{opposite[high_sign]}{high}, {opposite[low_sign]}{low}]"


def test_every_difference_in_the_readme_is_on_a_page():
    on_pages = {difference for page in PAGES for difference in differences_of(page.read_text(encoding="utf-8"))}
    stated = differences_of(README.read_text(encoding="utf-8"))
    assert len(stated) > 100
    assert [each for each in stated if not {each, reversed_difference(each)} & on_pages] == []
    assert reversed_difference("+4.39 [-2.73, +5.93]") == "-4.39 [-5.93, +2.73]"


@pytest.mark.parametrize("folder", FINISHED, ids=lambda folder: folder.name)
def test_a_changed_number_is_found(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    page = tmp_path / "copy" / "README.md"
    text = page.read_text(encoding="utf-8")
    for number in ("93.33", "0.04451", "121.6"):
        number = next(found for found in numbers_of(text) if "." in found and len(found) == len(number))
        page.write_text(text.replace(number, number[:-1] + str((int(number[-1]) + 1) % 10)), encoding="utf-8")
        with pytest.raises(AssertionError):
            check_card(page.parent)


def test_a_number_that_was_not_measured_is_found():
    assert numbers_of("Accuracy 93.33 and 1e-08, `12`, [x](y-3.png), step 40.") == ["93.33", "1e-08", "40"]
    values = values_of({"accuracy": [0.93331], "text": "epsilon=1e-08", "step": 40})
    assert all(is_among(number, values) for number in ("93.33", "0.9333", "1e-08", "40"))
    assert not any(is_among(number, values) for number in ("93.34", "41", "0.93", "1e-07") if number != "0.93")


def test_the_code_that_takes_layer_scale_out_changes_no_output(make_vit, examples, tmp_path, monkeypatch):
    vit = make_vit(initializer_range=0.2)
    vit.save_pretrained(tmp_path / "vit")
    (code,) = re.findall(r"<!-- layer scale -->\n```python\n(.*?)```", (CARDS / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    unfolded = Dinov2ForImageClassification.from_pretrained("outputs/dinov2").eval()
    pixels = torch.stack([example["pixel_values"] for example in examples[:4]])
    with torch.no_grad():
        before, after = vit.vit(pixels).last_hidden_state, unfolded.dinov2(pixels).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    sizes = [layer.mlp.fc2.weight.square().mean().sqrt().item() for layer in unfolded.dinov2.encoder.layer]
    assert sizes == pytest.approx([0.02] * len(sizes), rel=1e-4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CARDS)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).is_file()]
    assert missing == []


@pytest.mark.parametrize("folder", FINISHED, ids=lambda folder: folder.name)
def test_finished_cards_have_valid_metadata_and_the_rendered_section(hub, folder):
    check_card(folder)
    ModelCard.load(folder / "README.md").validate()


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


def test_there_is_a_finished_card():
    assert [folder.name for folder in FINISHED] == ["digits"]


def test_pages_say_that_nothing_is_published():
    for page in (CARDS / "README.md", CARDS / "imagenet" / "README.md", CARDS / "digits" / "README.md"):
        assert re.search(
            r"[Nn]othing has been published|None of these has been trained or published", page.read_text()
        )


def test_every_logged_key_is_explained():
    page = (CARDS / "logged_numbers.md").read_text(encoding="utf-8")
    keys = {f"noise/{name}" for name in (*LOGGED_FIELDS, "loss")} | {f"eval_noise_{name}" for name in EVALUATED_FIELDS}
    assert set(re.findall(r"^\| `(\S+)` \|", page, re.MULTILINE)) == keys | {"loss"}
    assert "](model_cards/logged_numbers.md)" in README.read_text(encoding="utf-8")
