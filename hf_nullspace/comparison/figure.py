"""The figure of a comparison: each way of finetuning with its interval."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import numpy as np

from ..utils.figures import MARKERS, MODEL_COLORS, explain, finish, pyplot, save_figure


# Characters of a line of the title.
TITLE_WIDTH = 120


def plot_rows(
    differences: dict[str, dict[str, dict[str, Any]]],
    costs: dict[str, float],
    path: str | os.PathLike,
    note: str = "",
    finding: str | None = None,
) -> None:
    """
    Writes how far each row is from plain finetuning, by group of columns with intervals, and the mean
    difference by the time that training took, as a PNG.

    Args:
        differences (`dict[str, dict[str, dict]]`): For each row and group `difference`, `low` and `high` in points; the
            groups are those of the first, of which the first is the mean.
        costs (`dict[str, float]`): Training time of each row in units of plain finetuning's.
        path (`str` or `os.PathLike`): The picture to write.
        note (`str`, *optional*): What stands under it: of how many images and seeds, and what the intervals are.
        finding (`str`, *optional*): The title, such as that of [`comparison_finding`]; what these differences say alone
            if it is `None`.

    Raises:
        `ImportError`: If matplotlib is missing.
        `ValueError`: If there is no row.
    """
    groups = list(next(iter(differences.values()), {}))
    if not groups:
        raise ValueError("`differences` is empty: there is no row to draw.")
    plt = pyplot()
    height = 1.6 + 0.14 * len(differences) * len(groups)
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
        mean = row[groups[0]]
        color = MODEL_COLORS[number % len(MODEL_COLORS)]
        whiskers = np.abs([[mean["low"] - mean["difference"]], [mean["high"] - mean["difference"]]])
        marker = MARKERS[number % len(MARKERS)]
        right.errorbar(costs[name], mean["difference"], yerr=whiskers, fmt=marker, color=color, capsize=2, label=name)
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="training time / that of plain finetuning", ylabel=f"{groups[0]}, minus plain (points)")
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finish(left, right)
    explain(figure, textwrap.fill(finding or difference_finding(differences), TITLE_WIDTH), note)
    save_figure(plt, figure, path)


def difference_finding(differences: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Which row gains most over plain finetuning in the first group, and whether its interval leaves that open."""
    group = next(iter(next(iter(differences.values()))))
    best = max(differences, key=lambda name: differences[name][group]["difference"])
    row = differences[best][group]
    ends = f"[{row['low']:+.1f}, {row['high']:+.1f}]"
    said = f"{best}, {row['difference']:+.1f} points {ends} against plain finetuning ({group})"
    return f"Most gained {said}" if row["low"] > 0 else f"No sure gain: at best {said}"
