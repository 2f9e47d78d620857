"""Every number of every model card is in a JSON file beside it, and the cards are valid and complete."""

import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from page_checks import CARDS, FINISHED, Values, check_card, check_page, numbers_of, values_of
from transformers import Dinov2ForImageClassification

from hf_nullspace.training.noise_evaluation import EVALUATED_FIELDS
from hf_nullspace.training.noise_schedule import LOGGED_FIELDS


PAGES = sorted(CARDS.rglob("*.md"))
README = CARDS.parent / "README.md"
DIFFERENCE = re.compile(r"([+-])(\d+\.\d+) \[([+-])(\d+\.\d+), ([+-])(\d+\.\d+)\]")


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


def test_every_difference_of_a_summary_is_on_the_page_of_a_comparison():
    summaries = (README, CARDS / "findings.md", CARDS / "removed_options.md")
    pages = [page for page in PAGES if page not in summaries]
    on_pages = {difference for page in pages for difference in differences_of(page.read_text(encoding="utf-8"))}
    stated = [difference for page in summaries for difference in differences_of(page.read_text(encoding="utf-8"))]
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
    values = Values(values_of({"accuracy": [0.93331], "text": "epsilon=1e-08", "step": 40}))
    assert all(number in values for number in ("93.33", "0.9333", "0.93", "1e-08", "40"))
    assert not any(number in values for number in ("93.34", "41", "0.94", "1e-07"))


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


@pytest.mark.parametrize("folder", FINISHED, ids=lambda folder: folder.name)
def test_finished_cards_have_valid_metadata_and_the_rendered_section(hub, folder):
    check_card(folder)
    ModelCard.load(folder / "README.md").validate()


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
