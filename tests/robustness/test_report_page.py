"""`report.html`: what was measured and nothing else, escaped, small, and the same from saved results."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from made_reports import made_report

from hf_nullspace import RobustnessReport
from hf_nullspace.robustness.examples import Examples, thumbnails
from hf_nullspace.robustness.profiles import Column


ATTACK = "<script>alert('name')</script>"
MAX_BYTES = 2_000_000


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def small_report() -> RobustnessReport:
    """Four columns of three classes, one with a name that attacks the page."""
    columns = [
        Column("clean"),
        Column("fog_1", corruption="fog", severity=1),
        Column("fog_3", corruption="fog", severity=3),
        Column("fgsm", attack="fgsm", settings={"epsilon": "4/255"}),
    ]
    return made_report(columns, ["cat", "dog", ATTACK], torch.arange(12) % 3)


@pytest.fixture
def report():
    return small_report()


@pytest.fixture(scope="module")
def page():
    return small_report().to_html()


def test_holds_the_numbers_the_settings_and_the_command(report, page):
    page = html.unescape(page)
    for text in (
        "50.0 % of clean pictures are classified correctly, 50.0 % under corruptions, 50.0 % under fgsm.",
        "fog, severity 3",
        "epsilon 4/255",
        "a prediction is the largest of all 3 logits of the model",
        "size: {'height': 16}",
        report.profile.hash,
        "a" * 64,
        "b" * 64,
        "<pre><code>hf-nullspace evaluate</code></pre>",
        "version of torch",
    ):
        assert text in page, text
    assert "1.5" not in re.findall(r"<td.*", page), "timing differs between equal reports"


def test_accuracy_by_class_is_that_of_the_labels(page):
    # Classes by turns and every second picture right: 2 of 4 pictures of each class.
    assert page.count('<tr><th scope="row">cat</th><td class="number">4</td>') == 2  # worst and all
    lines = [line for line in page.splitlines() if '<th scope="row">cat</th>' in line]
    assert all('<td class="number">50.0</td>' in line for line in lines)
    assert "15.0 to 85.0" in lines[0]


def test_corruptions_under_attack_are_not_in_the_mean_over_corruptions():
    fog = {"corruption": "fog", "severity": 3}
    columns = [Column("clean"), Column("fog_3", **fog), Column("fog_fgsm", attack="fgsm", **fog)]
    report = made_report(columns, ["cat", "dog", "bird"], torch.arange(12) % 3)
    report.outcomes["fog_fgsm"].correct = torch.zeros(12, dtype=torch.bool)
    line = next(line for line in report.to_html().splitlines() if '<th scope="row">cat</th>' in line)
    assert re.findall(r">([\d.]+)</td>", line)[:4] == ["4", "50.0", "50.0", "0.0"], "clean, corruptions, fog_fgsm"


def test_needs_no_network_and_no_code_of_others(page):
    elements = Elements(page)
    assert elements.of("html") == [{"lang": "en"}]
    assert len(elements.of("script")) == 1 and elements.of("script") == [{}]
    assert elements.of("link") == [] and elements.of("iframe") == []
    policy = [each["content"] for each in elements.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]
    for attributes in (attributes for _, attributes in elements.found):
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    assert not re.search(r"url\((?!#)", page)


def test_is_accessible(page):
    elements = Elements(page)
    assert len(elements.of("img")) == 3 * 4 and all(each["alt"] for each in elements.of("img"))
    assert len(elements.of("svg")) == 2, "bars and calibration"
    drawings = [each for each in elements.of("div") if each.get("class") == "drawing"]
    assert all(each["role"] == "img" and each["aria-label"] for each in drawings) and len(drawings) == 2
    assert all(each["scope"] in ("row", "col") for each in elements.of("th"))
    assert len(elements.of("caption")) == len(elements.of("table")) >= 4
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_are_escaped(report):
    report.model_name = ATTACK
    report.examples.command = f"hf-nullspace evaluate {ATTACK} \x1b[31m"
    page = report.to_html()
    assert ATTACK not in page and page.count("<script") == 1
    assert html.escape(ATTACK).replace("&#x27;", "&#39;") in page and "\x1b" not in page


def test_saved_results_give_the_same_page(report, tmp_path):
    report.save(tmp_path)
    assert (tmp_path / "report.html").read_text() == report.to_html()
    RobustnessReport.load(tmp_path).save(tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_results_without_pictures_and_labels_say_so(report, tmp_path):
    for outcomes in report.outcomes.values():
        outcomes.label = None
    report.examples = None
    page = report.to_html()
    assert "The results hold no pictures" in page and "do not say which class each picture is of" in page
    report.outcomes = None
    assert "The results hold no probabilities" in report.to_html()


def test_without_matplotlib_the_page_says_so(report, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    page = report.to_html()
    assert page.count("Not drawn: matplotlib is missing") == 2 and "<svg" not in page
    assert "robustness.svg is not drawn" in caplog.text


def test_twenty_columns_of_imagenet_stay_under_two_megabytes():
    kinds = ("fog", "contrast", "jpeg_compression", "gaussian_noise", "defocus_blur")
    columns = [Column("clean"), *(Column(f"fgsm_{index}", attack="fgsm") for index in range(14))]
    columns += [Column(f"{kind}_3", corruption=kind, severity=3) for kind in kinds]
    classes = [f"a class of a long name, number {index}" for index in range(1000)]
    page = made_report(columns, classes, torch.arange(5000) % 1000, side=96).to_html()
    assert len(columns) == 20 and page.count("data:image/jpeg") == 60
    assert 500_000 < len(page.encode()) < MAX_BYTES


def test_examples_are_made_smaller_and_damaged_files_refused(tmp_path):
    assert thumbnails(torch.ones(2, 3, 224, 448)).shape == (2, 3, 48, 96)
    small = thumbnails(torch.full((1, 1, 8, 8), 0.5))
    assert small.shape == (1, 1, 8, 8) and small.dtype == torch.uint8 and np.unique(small).tolist() == [128]
    (tmp_path / "examples.safetensors").write_bytes(b"no such file")
    with pytest.raises(ValueError, match="examples.safetensors is damaged"):
        Examples.load(tmp_path / "examples.safetensors")
