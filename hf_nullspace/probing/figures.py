"""The figures of a probe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..utils.figures import BLUE, ORANGE, finish, pyplot, save_figure


def plot_exact_noise(
    picture: np.ndarray,
    noisy_picture: np.ndarray,
    clean_logits: Sequence[float],
    noisy_logits: Sequence[float],
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    max_classes: int = 5,
) -> None:
    """
    Writes a picture, its exact-nullspace noise and the noisy picture side by side, with the model's logits under them.

    Args:
        picture, noisy_picture (`np.ndarray` of shape `(height, width, channels)`): Pixels in [0, 1].
        clean_logits, noisy_logits (`Sequence[float]`): Logits of the two.
        path (`str` or `os.PathLike`): The PNG to write.
        class_names (`Sequence[str]`, *optional*): Names of the classes; their numbers by default.
        max_classes (`int`, *optional*, defaults to 5): Classes shown, those with the largest clean logits.

    Raises:
        `ImportError`: If matplotlib is missing.
    """
    plt = pyplot()
    clean = np.asarray(clean_logits, dtype=np.float64)
    noisy = np.asarray(noisy_logits, dtype=np.float64)
    top = np.argsort(-clean, kind="stable")[:max_classes]
    names = [class_names[index] if class_names is not None else f"class {index}" for index in top]
    figure, axes = plt.subplots(
        2, 3, figsize=(9, 4.6), layout="constrained", height_ratios=(3, 1.6), sharex="row", squeeze=False
    )
    noise = noisy_picture - picture
    # A few pixels reach far; shown up to those, all others would look grey.
    contrast = max(2 * np.sqrt(np.square(noise).mean()), 1e-12)
    pictures = (picture, (noise / contrast + 1) / 2, noisy_picture)
    titles = ("picture", f"exact nullspace noise (largest {np.abs(noise).max():.2f} of 1)", "noisy picture")
    for cell, pixels, title in zip(axes[0], pictures, titles, strict=True):
        cell.imshow(pixels.clip(0, 1), interpolation="nearest")
        cell.set_title(title, fontsize=10)
        cell.set_axis_off()
    for cell, logits, color in ((axes[1, 0], clean, BLUE), (axes[1, 2], noisy, ORANGE)):
        cell.barh(range(len(top)), logits[top], color=color)
        cell.set_yticks(range(len(top)), names, fontsize=8)
        cell.invert_yaxis()
        cell.set_xlabel("logit")
        cell.spines[["top", "right"]].set_visible(False)
    change = np.abs(noisy - clean).max() / np.linalg.norm(clean)
    axes[1, 1].set_axis_off()
    axes[1, 1].text(
        0.5,
        0.5,
        f"largest change of a logit:\n{change:.1e} of the logits' norm",
        ha="center",
        va="center",
        transform=axes[1, 1].transAxes,
    )
    save_figure(plt, figure, path)


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
    left.set(ylabel="norm of the noise (embedding units)", ylim=(0, None))
    _with_control(middle, lambdas, rows, "agreement", "unchanged predictions (%)")
    _with_control(right, lambdas, rows, "confidence_change", "change of confidence (points)")
    for axes in (left, middle, right):
        axes.set(xlabel="lambda (logits)", xscale="log")
        axes.set_xticks(lambdas, [f"{value:g}" for value in lambdas])
        axes.minorticks_off()
    finish(left, middle, right)
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
    _with_control(left, norms, rows, "probability_mse", "probability_mse", percent=False)
    _with_control(right, norms, rows, "agreement", "unchanged predictions (%)")
    for axes in (left, right):
        axes.set(xlabel="norm of the scaled noise (embedding units)")
    left.set_ylim(0, None)
    finish(left, right)
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
    save_figure(plt, figure, path)


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
