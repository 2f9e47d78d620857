"""Compares a published page with the page that is rendered from its numbers."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from ..utils.escaping import plain_text
from ..utils.strict_json import DamagedFileError
from .claims import Claim


MAX_BYTES = 4 * 2**20
FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
# The comment that `Trainer` puts on top; it is not rendered.
UNSEEN_COMMENT = re.compile(r"\A\s*<!-- This model card has been generated automatically [\w\s,.]*? -->")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")


def read_page(path: Path) -> tuple[dict[str, Any], str]:
    """
    The metadata and the text of a Markdown page.

    Raises:
        [`DamagedFileError`]: If the file is not a Markdown page with metadata.
    """
    if not path.is_file():
        raise DamagedFileError(f"There is no {path.name}.")
    if path.stat().st_size > MAX_BYTES:
        raise DamagedFileError(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_BYTES} are read.")
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        match = FRONT_MATTER.match(text)
        return (_metadata(match[1]) if match else {}), text[match.end() :] if match else text
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise DamagedFileError(f"{path.name} is damaged: {plain_text(error, 200)}.") from None


def compare_pages(name: str, path: Path, expected: str, values: Any, is_old: bool) -> Claim:
    """
    The claim that the text of a page is `expected`.

    An old page may have other words, which this version of the package does not know. Its numbers must be in `values`.
    """
    try:
        _, found = read_page(path)
    except DamagedFileError as error:
        return Claim(name, False, reason=str(error))
    return compare_texts(name, found, expected, values, is_old)


def compare_texts(name: str, found: str, expected: str, values: Any, is_old: bool) -> Claim:
    """As [`compare_pages`], for texts."""
    difference = first_difference(found, expected)
    if not difference:
        return Claim(name, True)
    if is_old:
        foreign = [number for number in NUMBER.findall(found) if not _is_among(number, expected, values)]
        if not foreign:
            return Claim(name, None, reason="another version wrote it; its numbers are those of the files")
        difference = f"the number {plain_text(foreign[0], 40)} is in no file; {difference}"
    return Claim(name, False, reason=difference)


def first_difference(found: str, expected: str) -> str:
    """The first visible difference of two pages; empty if there is none."""
    for ours, theirs in zip_longest(_lines(expected), _lines(found)):
        if ours != theirs:
            if theirs is None:
                return f"it lacks: {plain_text(ours, 100)}"
            if ours is None:
                return f"it adds: {plain_text(theirs, 100)}"
            at = next(
                (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            start = max(0, at - 30)
            return f"it says {plain_text(theirs[start:], 80)!r} where the files give {plain_text(ours[start:], 80)!r}"
    return ""


def _lines(text: str) -> list[str]:
    """The lines that are not empty, without trailing blanks."""
    return [line.rstrip() for line in UNSEEN_COMMENT.sub("", text).split("\n") if line.strip()]


def _metadata(text: str) -> dict[str, Any]:
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
            raise ValueError("its metadata repeats itself by reference")
    content = yaml.load(text, Loader=_OnceLoader)
    if not isinstance(content, dict):
        raise ValueError(f"its metadata is a {type(content).__name__}")
    return content


class _OnceLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which parsers keep one or the other."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len({repr(name) for name in names}) < len(names):
            raise ValueError("its metadata has a name twice")
        return super().construct_mapping(node, deep)


def _is_among(number: str, expected: str, values: Any) -> bool:
    """Whether a number is on the expected page, or a rounded value of the files."""
    if number in NUMBER.findall(expected):
        return True
    decimals = len(number.partition(".")[2])
    for value in _leaves(values):
        if isinstance(value, str) and number in NUMBER.findall(value):
            return True
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            shown = {f"{abs(scaled):.{decimals}f}" for scaled in (value, 100 * value)}
            if number in shown | {f"{abs(value):.4g}", str(abs(value))}:
                return True
    return False


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for name, each in value.items() for leaf in (name, *_leaves(each))]
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, (list, tuple)) else [value]
