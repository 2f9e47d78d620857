"""Colours, files and error handling of figures."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GREY = "#7F7F7F"
NOTE = "#4D4D4D"  # dark enough for small letters
MODEL_COLORS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # six of seven colours, so that few pairs repeat


@contextmanager
def optional_figure(name: str | os.PathLike) -> Iterator[None]:
    """Wraps the drawing of a figure: if matplotlib is missing or broken, a warning is logged and no result is lost."""
    try:
        yield
    except Exception as error:  # a broken installation may raise anything
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        logger.warning(f"{os.path.basename(name)} is not drawn. {reason}")


def finish(*panels) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)


def explain(figure, finding: str, note: str = "") -> None:
    """
    What a figure says, as its title, and what it is of, under it.

    Args:
        figure: The figure, whose layout is constrained.
        finding (`str`): The result in a sentence, computed from what is drawn.
        note (`str`, *optional*): Number of pictures, kind of interval, and what the control is.
    """
    # Names of models and rows are anybody's: no formulas.
    figure.suptitle(finding, fontsize=11, parse_math=False)
    if note:
        figure.supxlabel(note, fontsize=8, color=NOTE, parse_math=False)


def save_figure(plt, figure, path: Any) -> None:
    """Writes a figure as its path ends; into an open file as SVG, always the same bytes for the same figure."""
    if isinstance(path, io.IOBase):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    else:
        figure.savefig(path, dpi=150)
    plt.close(figure)


def svg_text(draw: Callable[[Any], None], name: str) -> str:
    """
    A figure as an `<svg>` element for a page.

    Args:
        draw (`Callable`): Writes the figure into the open file that it is called with.
        name (`str`): Keeps its ids apart from those of other figures of the page.
    """
    buffer = io.BytesIO()
    with pyplot().rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw(buffer)
    text = buffer.getvalue().decode("utf-8")
    # Groups are named alike in every figure, and nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])


def pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Figures need matplotlib: `pip install 'hf_nullspace[plots]'`.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
