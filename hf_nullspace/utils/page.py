"""The frame of `report.html`: one self-contained page of sections, which needs no network and runs no code of others."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .escaping import plain_text
from .figures import optional_figure, svg_text


PAGE_NAME = "report.html"
PAGE_TEMPLATE = "page_template.html"
# Of a colour picture, the least that shows noise; small enough for hundreds of pictures on a page.
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Cell:
    """
    A cell of a table whose text differs from what the table is sorted by.

    Args:
        text (`str`): What is read.
        value (`float`, *optional*): What is sorted by.
    """

    text: str
    value: float | None = None

    @property
    def key(self) -> float | None:
        """What it is sorted by where its text does not say it; a page of thousands of cells need not write it twice."""
        return None if self.value is None or number_cell(self.text).value is not None else self.value


@dataclass(frozen=True)
class PageTable:
    """
    A table, sorted by a click on a heading.

    Args:
        caption (`str`): What it holds.
        rows (`Sequence[Mapping[str, Any]]`): Cells by heading: a [`Cell`], a number or text; the first names the row.
    """

    caption: str
    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def headings(self) -> list[str]:
        """Headings of all rows, in the order in which they come."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether a heading is that of numbers."""
        return [any(row[place].value is not None for row in self.cells) for place in range(len(self.headings))]

    @cached_property
    def cells(self) -> list[list[Cell]]:
        """The rows as cells; one that a row does not have stays empty."""
        return [[as_cell(row.get(name)) for name in self.headings] for row in self.rows]


@dataclass(frozen=True)
class PageFigure:
    """
    A drawn figure.

    Args:
        svg (`str`): From [`drawn`]; empty where it could not be drawn.
        alt (`str`): What it shows, for those who cannot see it.
        caption (`str`): What it is of.
    """

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class PagePicture:
    """
    A small picture with a line under it.

    Args:
        source (`str`): From [`data_uri`].
        alt (`str`): What it shows.
        text (`str`): The line.
        verdict (`str`, *optional*): Words before the line, with a tick or a cross and coloured.
        is_good (`bool`, *optional*): Whether they are good news.
    """

    source: str
    alt: str
    text: str
    verdict: str = ""
    is_good: bool = False


@dataclass
class Section:
    """
    A part of a page.

    Args:
        title (`str`): Its heading.
        texts (`Sequence[str]`): Paragraphs.
        figures (`Sequence[PageFigure]`): Figures.
        pictures (`Mapping[str, Sequence[PagePicture]]`): Rows of pictures by name.
        tables (`Sequence[PageTable]`): Tables.
        lines (`Sequence[str]`): A list of points.
        code (`str`, *optional*): A command.
    """

    title: str
    texts: Sequence[str] = ()
    figures: Sequence[PageFigure] = ()
    pictures: Mapping[str, Sequence[PagePicture]] = field(default_factory=dict)
    tables: Sequence[PageTable] = ()
    lines: Sequence[str] = ()
    code: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing under the heading."""
        return not any((self.texts, self.figures, self.pictures, self.tables, self.lines, self.code))


def render_report_page(
    title: str, finding: str, tiles: Mapping[str, tuple[str, str]], sections: Sequence[Section]
) -> str:
    """
    A report as one HTML page. All text is escaped.

    Args:
        title (`str`): Its title.
        finding (`str`): The result in a sentence.
        tiles (`Mapping[str, tuple[str, str]]`): The numbers of the first screen: name, number and what it is of.
        sections (`Sequence[Section]`): What follows; those without content are left out.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain_text(value),
    )
    shown = [part for part in sections if not part.is_empty]
    return environment.get_template(PAGE_TEMPLATE).render(title=title, finding=finding, tiles=tiles, sections=shown)


def settings_table(
    caption: str, settings: Mapping[str, Any], versions: Mapping[str, str], hashes: Mapping[str, str]
) -> PageTable:
    """
    What numbers came about with, as one table.

    Args:
        caption (`str`): What it holds.
        settings (`Mapping[str, Any]`): Settings by name.
        versions (`Mapping[str, str]`): Versions by package.
        hashes (`Mapping[str, str]`): SHA-256 by what it is of; empty ones are left out.
    """
    rows = {
        **settings,
        **{f"version of {name}": value for name, value in versions.items()},
        **{f"SHA-256 of {name}": value for name, value in hashes.items() if value},
    }
    return PageTable(caption, [{"what": name, "value": str(value)} for name, value in rows.items()])


def made_by_section(command: str | None, otherwise: str) -> Section:
    """The command that made a page, or in other words what did."""
    return Section("Made by", [otherwise if command is None else "The command:"], code=command)


def drawn(name: str, alt: str, caption: str, draw: Callable[..., None], *args, **kwargs) -> PageFigure:
    """
    A figure of a page, by a function that takes `path`; where matplotlib is missing the page says so.

    Args:
        name (`str`): Its name in a warning.
        alt, caption (`str`): See [`PageFigure`].
        draw (`Callable`): Called with the other arguments.
    """
    svg = ""
    with optional_figure(name):
        svg = svg_text(lambda path: draw(*args, path=path, **kwargs), name)
    return PageFigure(svg, alt, caption)


def data_uri(pixels: np.ndarray, lossless: bool = False) -> str:
    """
    A picture as a `data:` address.

    Args:
        pixels (`np.ndarray` of shape `(height, width, channels)` and dtype `uint8`): One channel or three.
        lossless (`bool`, *optional*, defaults to `False`): Whether it is a PNG, several times as large as the JPEG.
    """
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if lossless:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def as_cell(value: Any) -> Cell:
    """A value as a [`Cell`]: floats with four digits, whole numbers as they are, `None` as an empty cell."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(f"{value:.4g}" if isinstance(value, float) else str(value), float(value))
    return Cell(str(value))


def number_cell(text: str) -> Cell:
    """A cell that is sorted by the number that it shows, or as text where it shows none."""
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text)
