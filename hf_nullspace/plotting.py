"""Figures from results, never from models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)


# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
MODEL_COLORS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # six of seven colours, so that few pairs repeat


@contextmanager
def optional_figure(name: str | os.PathLike) -> Iterator[None]:
    """Around a drawing: whatever is missing or broken of matplotlib is a warning, and costs no result."""
    try:
        yield
    except Exception as error:  # a broken installation raises what it likes
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        logger.warning(f"{os.path.basename(name)} is not drawn. {reason}")


def plot_noise_history(history: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Writes the norm of the noise by training step, and how far it moves held-out predictions, as a PNG.

    Args:
        history (`list[dict]`): `trainer.noise_history`.
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If the history is empty.
    """
    if not history:
        raise ValueError("`history` is empty: there was no synthesis round to draw.")
    plt = _pyplot()
    steps = [row["step"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(steps, [row["norm"] for row in history], marker="o", color=BLUE)
    left.set(xlabel="training step", ylabel="norm of the noise", ylim=(0, None))
    for name, label, color in (
        ("agreement", "nullspace noise", BLUE),
        ("permuted_agreement", "permuted control", ORANGE),
    ):
        right.plot(steps, [100 * row[name] for row in history], marker="o", color=color, label=label)
    right.set(xlabel="training step", ylabel="unchanged predictions (%)")
    right.legend(frameon=False)
    _finish(left, right)
    _save(plt, figure, path)


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
    plt = _pyplot()
    clean, noisy = np.asarray(clean_logits, dtype=np.float64), np.asarray(noisy_logits, dtype=np.float64)
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
    _save(plt, figure, path)


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
    plt = _pyplot()
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
    _finish(left, middle, right)
    _save(plt, figure, path)


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
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    norms = _column(rows, "norm")
    _with_control(left, norms, rows, "probability_mse", "probability_mse", percent=False)
    _with_control(right, norms, rows, "agreement", "unchanged predictions (%)")
    for axes in (left, right):
        axes.set(xlabel="norm of the scaled noise (embedding units)")
    left.set_ylim(0, None)
    _finish(left, right)
    _save(plt, figure, path)


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
    plt = _pyplot()
    height, width = (1 + max(_column(rows, name)) for name in ("row", "column"))
    norms = np.zeros((height, width))
    for row in rows:
        norms[row["row"], row["column"]] = row["token_norm"]
    figure, axes = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    image = axes.imshow(norms, cmap="cividis", vmin=0)
    axes.set(xlabel="patch column", ylabel="patch row")
    axes.locator_params(integer=True)
    figure.colorbar(image, label="norm of a patch's noise (embedding units)")
    _save(plt, figure, path)


def plot_robustness(bars: dict[str, dict[str, dict[str, float | None]]], path: str | os.PathLike) -> None:
    """
    Writes the accuracy of one or several models by column, with 95 % intervals, as horizontal bars in a PNG.

    Args:
        bars (`dict[str, dict[str, dict]]`): `RobustnessReport.summary` by model; columns are those of the first.
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there is no model or no column.
    """
    columns = list(next(iter(bars.values()), {}))
    if not columns:
        raise ValueError("`bars` is empty: there is no accuracy to draw.")
    plt = _pyplot()
    height = 0.8 / len(bars)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(columns) * max(1, 0.6 * len(bars))), layout="constrained")
    for number, (model, row) in enumerate(bars.items()):
        places = [place + height * (number + 0.5) - 0.4 for place, name in enumerate(columns) if name in row]
        shown = [row[name] for name in columns if name in row]
        accuracies = [bar["accuracy"] for bar in shown]
        # An accuracy without an interval gets a whisker of length zero.
        ends = [[bar["accuracy"] if bar[end] is None else bar[end] for bar in shown] for end in ("low", "high")]
        whiskers = np.abs(np.asarray(ends) - accuracies)
        color = MODEL_COLORS[number % len(MODEL_COLORS)]
        axes.barh(places, accuracies, height, xerr=whiskers, color=color, label=model, ecolor="black", capsize=2)
    axes.set_yticks(range(len(columns)), columns)
    axes.set(xlabel="accuracy (%), with its 95 % interval", xlim=(0, 100))
    axes.invert_yaxis()
    if len(bars) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(bars)))
    else:
        axes.set_title(next(iter(bars)))
    _finish(axes)
    _save(plt, figure, path)


def plot_methods(
    differences: dict[str, dict[str, dict[str, Any]]], costs: dict[str, float], path: str | os.PathLike
) -> None:
    """
    Writes how far each finetuning method is from plain finetuning, by group of columns with intervals, and the mean
    difference by the time that training took, as a PNG.

    Args:
        differences (`dict[str, dict[str, dict]]`): For each method and group `difference`, `low` and `high` in points; the
            groups are those of the first, of which the first is the mean.
        costs (`dict[str, float]`): Training time of each method in units of plain finetuning's.
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there is no method.
    """
    groups = list(next(iter(differences.values()), {}))
    if not groups:
        raise ValueError("`differences` is empty: there is no method to draw.")
    plt = _pyplot()
    height = 1.6 + 0.2 * len(differences) * len(groups)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, max(3.6, height)), layout="constrained")
    for number, (group, color, marker) in enumerate(zip(groups, MODEL_COLORS, MARKERS, strict=False)):
        places = np.arange(len(differences)) + (number + 0.5) / len(groups) * 0.8 - 0.4
        shown = [row[group] for row in differences.values()]
        values = [bar["difference"] for bar in shown]
        whiskers = np.abs([[bar[end] for bar in shown] for end in ("low", "high")] - np.asarray(values))
        left.errorbar(values, places, xerr=whiskers, fmt=marker, color=color, capsize=2, label=group)
    left.axvline(0, color="black", linewidth=1)
    left.set_yticks(range(len(differences)), list(differences))
    left.set_ylim(len(differences) - 0.5, -0.5)
    left.set(xlabel="accuracy minus that of plain finetuning (points)")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(groups))
    for number, (name, row) in enumerate(differences.items()):
        mean, color = row[groups[0]], MODEL_COLORS[number % len(MODEL_COLORS)]
        whiskers = np.abs([[mean["low"] - mean["difference"]], [mean["high"] - mean["difference"]]])
        marker = MARKERS[number % len(MARKERS)]
        right.errorbar(costs[name], mean["difference"], yerr=whiskers, fmt=marker, color=color, capsize=2, label=name)
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="training time / that of plain finetuning", ylabel=f"{groups[0]}, minus plain (points)")
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _finish(left, right)
    _save(plt, figure, path)


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


def _finish(*panels) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)


def _save(plt, figure, path: str | os.PathLike) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Figures need matplotlib: `pip install 'hf_nullspace[plots]'`.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
