"""Escapes untrusted text for terminals and Markdown pages: names of models, classes, files and columns."""

from __future__ import annotations

import re
import unicodedata
from typing import Any


# Categories of characters that move a cursor, turn the direction of text, end a line, or are not seen at all.
UNSEEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")
# Characters of markup: HTML, table cells, code, emphasis by stars, formulas, and the middle of a link.
MARKUP = re.compile(r"[&<>|`*$\\]|\](?=[(\[])")
# Scripts with letters that are drawn like Latin ones.
LIKE_LATIN = {"ARMENIAN", "CHEROKEE", "CYRILLIC", "GREEK"}
REPLACEMENTS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain_text(value: Any, limit: int | None = None) -> str:
    """
    A value on one line of a terminal: control characters, line ends, and characters that turn text around or are not
    seen are written as Python writes them (`\\x1b`).

    Args:
        value: What is shown by its `str`.
        limit (`int`, *optional*): Shorten what is longer to so many characters.
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(_escaped(each) if unicodedata.category(each) in UNSEEN else each for each in text)


def markdown_text(value: Any, limit: int | None = None) -> str:
    """A value as plain words on a Markdown page or in a table cell: as [`plain_text`], with markup escaped."""
    return MARKUP.sub(lambda match: REPLACEMENTS.get(match[0], "\\" + match[0]), plain_text(value, limit))


def looks_like_another(name: str) -> bool:
    """Whether a name has letters that are drawn like others: of several scripts, or of another width or shape."""
    scripts = {unicodedata.name(each, "?").partition(" ")[0] for each in name if each.isalpha()}
    return unicodedata.normalize("NFKC", name) != name or ("LATIN" in scripts and bool(scripts & LIKE_LATIN))


def escaped_strings(value: Any) -> Any:
    """A JSON value whose strings and names are all [`markdown_text`], before a template shows them."""
    if isinstance(value, dict):
        return {markdown_text(name): escaped_strings(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped_strings(each) for each in value]
    return markdown_text(value) if isinstance(value, str) else value


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
