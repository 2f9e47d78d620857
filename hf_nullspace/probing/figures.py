"""The figures of a probe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..utils.figures import BLUE, ORANGE, explain, finish, pyplot, save_figure
from .noisy_pictures import NoisyPictures


# Share of unchanged predictions from which a noise counts as harmless in a title.
HARMLESS = 0.98


def plot_noisy_pictures(rows: Sequence[NoisyPictures], path: str | os.PathLike) -> None:
    """
    Writes pictures, the same under noise and under the noise permuted, with the most probable classes under each.

    The PNG has 256 colours, since noise cannot be compressed.

    Args:
        rows (`Sequence[NoisyPictures]`): The rows of the figure.
        path (`str` or `os.PathLike`): The PNG to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there are no rows.
    """
    if not rows:
        raise ValueError("`rows` is empty: there is no result to draw.")
    plt = pyplot()
    figure = plt.figure(figsize=(8.4, 3.55 * len(rows)), layout="constrained")
    grid = figure.subplots(2 * len(rows), 3, height_ratios=(3.6, 1) * len(rows), squeeze=False)
    for row, cells, bars in zip(rows, grid[::2], grid[1::2], strict=True):
        titles = [
            "picture",
            f"with {row.noise}:\n{_moves(row.largest_change(1))}",
            f"with the same noise, permuted:\n{_moves(row.largest_change(2))}",
        ]
        shown = row.pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
        for cell, pixels, title in zip(cells, shown, titles, strict=True):
            cell.imshow(pixels, interpolation="nearest")
            cell.set_title(title, fontsize=9)
            cell.set_axis_off()
        known = {name for name, _ in row.top_classes(0)}
        for index, cell in enumerate(bars):
            _draw_classes(cell, row.top_classes(index), known, row.probabilities.max().item())
    figure.savefig(path, dpi=150)
    plt.close(figure)
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(256)
    reduced.save(path, optimize=True)


def _moves(largest: float) -> str:
    """How far probabilities move, in percentage points."""
    if largest < 1e-5:
        return "no probability moves by 0.001 points"
    return f"probabilities move by up to {100 * largest:.2g} points"


def _draw_classes(cell: Any, classes: list[tuple[str, float]], known: set[str], widest: float) -> None:
    """Bars of probabilities with the classes' names on them; of another colour where a class is not among the known."""
    for place, (name, share) in enumerate(classes):
        cell.barh(place, share, height=0.85, color=BLUE if name in known else ORANGE, alpha=0.4)
        # Class names are anybody's: no formulas.
        cell.text(0.02 * widest, place, f"{name} {100 * share:.1f} %", fontsize=9, va="center", parse_math=False)
    cell.set(xlim=(0, widest), ylim=(len(classes) - 0.5, -0.5))
    cell.set_axis_off()


def plot_lambda_sweep(rows: list[dict[str, float]], path: str | os.PathLike) -> None:
    """
    Writes figure 2 of the paper as a PNG: norm of the noise by lambda, and unchanged predictions and change of
    confidence by lambda, each beside the permuted control.

    Args:
        rows (`list[dict]`): `EncoderProbe.sweep`.
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there are no rows.
    """
    plt = pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    lambdas = _column(rows, "lambda")
    left.plot(lambdas, _column(rows, "norm"), marker="o", color=BLUE)
    left.set(ylabel="noise norm (embedding units)", ylim=(0, None))
    _with_control(middle, lambdas, rows, "agreement", "unchanged predictions (%)")
    _with_control(right, lambdas, rows, "confidence_change", "change of confidence (points)")
    for axes in (left, middle, right):
        axes.set(xlabel="lambda (logits)", xscale="log")
        axes.set_xticks(lambdas, [f"{value:g}" for value in lambdas])
        axes.minorticks_off()
    finish(left, middle, right)
    explain(figure, sweep_finding(rows), _note(rows))
    save_figure(plt, figure, path)


def plot_dose_response(rows: list[dict[str, float]], path: str | os.PathLike) -> None:
    """
    Writes the error of one noise by its scale, and the predictions that it leaves unchanged, as a PNG.

    Args:
        rows (`list[dict]`): `EncoderProbe.dose_response`.
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there are no rows.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    norms = _column(rows, "norm")
    _with_control(left, norms, rows, "probability_mse", "probability_mse (of 2 at most)", percent=False)
    _with_control(right, norms, rows, "agreement", "unchanged predictions (%)")
    for axes in (left, right):
        axes.set(xlabel="norm of the scaled noise (embedding units)")
    left.set_ylim(0, None)
    finish(left, right)
    largest = max(rows, key=lambda row: row["norm"])
    smallest = min(rows, key=lambda row: row["norm"])
    finding = f"{_kept(largest)} at norm {largest['norm']:.3g}; {_kept(smallest)} at {smallest['norm']:.3g}"
    explain(figure, finding, _note(rows))
    save_figure(plt, figure, path)


def plot_token_norms(rows: list[dict[str, float]], path: str | os.PathLike) -> None:
    """
    Writes how the norm of a noise spreads over the patches, as a heat map in a PNG.

    Args:
        rows (`list[dict]`): `EncoderProbe.token_norms`.
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there are no rows.
    """
    plt = pyplot()
    height, width = (1 + max(_column(rows, name)) for name in ("row", "column"))
    norms = np.zeros((height, width))
    for row in rows:
        norms[row["row"], row["column"]] = row["token_norm"]
    figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    image = axes.imshow(norms, cmap="cividis", vmin=0)
    axes.set(xlabel="patch column", ylabel="patch row")
    axes.locator_params(integer=True)
    figure.colorbar(image, label="norm of a patch's noise (embedding units)")
    spread = norms.max() / np.median(norms) if np.median(norms) else np.inf
    explain(figure, f"The largest patch has {spread:.1f} times the median's noise", f"{norms.size} patches")
    save_figure(plt, figure, path)


def sweep_finding(rows: list[dict[str, float]]) -> str:
    """What the largest noise of a sweep that leaves at least 98 % of predictions unchanged does, beside its control."""
    harmless = [row for row in rows if row["agreement"] >= HARMLESS]
    row = max(harmless, key=lambda row: row["norm"]) if harmless else max(rows, key=lambda row: row["agreement"])
    return f"Noise of norm {row['norm']:.3g} (lambda {row['lambda']:g}): {_kept(row)}"


def _kept(row: dict[str, float]) -> str:
    return f"{100 * row['agreement']:.0f} % unchanged, permuted {100 * row['permuted_agreement']:.0f} %"


def _note(rows: list[dict[str, float]]) -> str:
    counts = sorted({row["num_images"] for row in rows if "num_images" in row})
    known = f"n = {' to '.join(f'{count:g}' for count in counts)} pictures; " if counts else ""
    return f"{known}the control has the same elements in another order"


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    if not rows:
        raise ValueError("`rows` is empty: there is no result to draw.")
    return [row[name] for row in rows]


def _with_control(axes, x: list[float], rows: list[dict[str, float]], name: str, label: str, percent: bool = True):
    """The noise's line and the control's, in per cent of shares or as they are."""
    factor = 100 if percent else 1
    for prefix, title, color, marker in (("", "noise", BLUE, "o"), ("permuted_", "permuted control", ORANGE, "s")):
        values = [factor * value for value in _column(rows, prefix + name)]
        axes.plot(x, values, marker=marker, color=color, label=title)
    axes.set_ylabel(label)
    axes.legend(frameon=False)
