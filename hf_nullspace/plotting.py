"""Figures from results, never from models."""

from __future__ import annotations

import os
from typing import Any


# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"


def plot_noise_history(history: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Writes the norm of the certified noise by training step, and how far it moves held-out predictions, as a PNG.

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
    left.set(xlabel="training step", ylabel="norm of the certified noise", ylim=(0, None))
    for name, label, color in (
        ("agreement", "nullspace noise", BLUE),
        ("permuted_agreement", "permuted control", ORANGE),
    ):
        right.plot(steps, [100 * row[name] for row in history], marker="o", color=color, label=label)
    right.set(xlabel="training step", ylabel="unchanged predictions (%)")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
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
