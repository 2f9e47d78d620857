"""The pages: short where they should be, without dead links, and true where code can say so."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments
from wings import PACKAGE, REPOSITORY, WINGS

from hf_nullspace import NullspaceTrainingArguments


FOLDERS = (".github", "examples", "hf_nullspace", "model_cards", "tests")
PAGES = sorted(
    path
    for path in (*REPOSITORY.glob("*.md"), *(path for name in FOLDERS for path in (REPOSITORY / name).rglob("*.md")))
    if "template" not in path.name
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def dead_links(page: Path) -> list[str]:
    dead = []
    for match in LINK.finditer(prose_of(page)):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Scale & faults, `now`\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#scale--faults-now) [b](other.md#no) ![c](no.png) [d](https://x.y/z)\n")
    assert dead_links(page) == ["other.md#no", "no.png"]


def test_the_readme_is_short():
    assert len(text_of(REPOSITORY / "README.md").split()) <= 1500


@pytest.mark.parametrize("wing", WINGS)
def test_every_wing_has_a_page(wing):
    page = PACKAGE / wing / "README.md"
    assert text_of(page).startswith(f"# {wing}: ")
    words = "\n".join(line for line in prose_of(page).splitlines() if not line.startswith("|")).split()
    assert len(words) <= 700, "at most a page"
    assert "ay import" in text_of(page) or "imports no other wing" in text_of(page)
    assert f"hf_nullspace/{wing}/README.md" in text_of(REPOSITORY / "README.md")


def test_every_argument_of_the_trainer_is_in_the_table():
    own = [field.name for field in fields(NullspaceTrainingArguments)]
    own = {name for name in own if name not in {field.name for field in fields(TrainingArguments)}}
    table = text_of(PACKAGE / "training" / "arguments.md")
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == own
