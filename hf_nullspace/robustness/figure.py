"""The figure of a robustness report."""

from __future__ import annotations

import os

import numpy as np

from ..utils.figures import MODEL_COLORS, finish, pyplot, save_figure


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
    axes.set(xlabel="accuracy (%), with its 95 % interval", xlim=(0, 100))
    axes.invert_yaxis()
    if len(bars) > 1:
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(bars)))
    else:
        axes.set_title(next(iter(bars)))
    finish(axes)
    save_figure(plt, figure, path)
