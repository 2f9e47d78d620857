"""The figures of a robustness report."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..utils.figures import BLUE, GREY, MODEL_COLORS, explain, finish, pyplot, save_figure


def plot_robustness(
    bars: dict[str, dict[str, dict[str, float | None]]], path: str | os.PathLike, note: str = ""
) -> None:
    """
    Writes the accuracy of one or several models by column, with 95 % intervals, as horizontal bars in a PNG.

    Args:
        bars (`dict[str, dict[str, dict]]`): `RobustnessReport.summary` by model; columns are those of the first.
        path (`str` or `os.PathLike`): The picture to write.
        note (`str`, *optional*): What stands under it: of how many pictures, and what the whiskers are.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there is no model or no column.
    """
    columns = list(next(iter(bars.values()), {}))
    if not columns:
        raise ValueError("`bars` is empty: there is no accuracy to draw.")
    plt = pyplot()
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
    axes.set(xlabel="accuracy (%)", xlim=(0, 100))
    axes.invert_yaxis()
    if len(bars) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(bars)))
    finish(axes)
    explain(figure, _finding(bars), note)
    save_figure(plt, figure, path)


def _finding(bars: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """What the bars say: of one model its first and its lowest, of several their means over the bars that all have."""
    if len(bars) == 1:
        [(model, row)] = bars.items()
        first = next(iter(row))
        lowest = min(row, key=lambda name: row[name]["accuracy"])
        said = f"{model} is right on {row[first]['accuracy']:.1f} % ({first})"
        return said if lowest == first else f"{said}, down to {row[lowest]['accuracy']:.1f} % ({lowest})"
    shared = set.intersection(*(set(row) for row in bars.values()))
    means = {model: sum(row[name]["accuracy"] for name in shared) / max(1, len(shared)) for model, row in bars.items()}
    ranked = sorted(means, key=lambda model: -means[model])
    return "Mean accuracy: " + ", ".join(f"{model} {means[model]:.1f} %" for model in ranked[:4])


def plot_reliability(bins: Sequence[dict[str, float]], path: str | os.PathLike) -> None:
    """
    Writes accuracy by confidence, with 95 % intervals, beside the diagonal of a calibrated model, and below it how many
    pictures there are.

    Args:
        bins (`Sequence[dict]`): From [`calibration_bins`].
        path (`str` or `os.PathLike`): The picture to write.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there is no picture.
    """
    shown = [row for row in bins if row["count"]]
    if not shown:
        raise ValueError("`bins` hold no pictures: there is no calibration to draw.")
    total = sum(row["count"] for row in shown)
    ece = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in shown) / total
    mean = {name: sum(row["count"] * row[name] for row in shown) / total for name in ("confidence", "accuracy")}
    above = mean["confidence"] - mean["accuracy"]
    plt = pyplot()
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(5, 5.2), layout="constrained", height_ratios=(4, 1), sharex=True
    )
    values = [row["accuracy"] for row in shown]
    whiskers = np.abs(np.asarray([[row[end] for row in shown] for end in ("low", "high")]) - values)
    upper.plot((0, 100), (0, 100), color=GREY, linestyle="--", label="calibrated")
    confidences = [row["confidence"] for row in shown]
    upper.errorbar(confidences, values, yerr=whiskers, fmt="o-", color=BLUE, capsize=2, label="this model")
    upper.set(ylabel="accuracy (%)", ylim=(-2, 102), xlim=(0, 100))
    kind = "more" if above > 0 else "less"
    upper.legend(frameon=False)
    width = shown[0]["to"] - shown[0]["from"]
    lower.bar([row["from"] for row in shown], [row["count"] for row in shown], width, align="edge", color=BLUE)
    lower.set(xlabel="confidence (%)", ylabel="pictures")
    finish(upper, lower)
    finding = f"{abs(above):.1f} points {kind} confident than right\non average (ECE {ece:.1f} %)"
    explain(figure, finding, f"n = {total} pictures; whiskers are 95 % Wilson intervals")
    save_figure(plt, figure, path)
