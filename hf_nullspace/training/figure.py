"""The figure of a finetuning: norm and agreement of each round's noise."""

from __future__ import annotations

import os
from typing import Any

from ..utils.figures import BLUE, ORANGE, finish, pyplot, save_figure


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
    plt = pyplot()
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
    finish(left, right)
    save_figure(plt, figure, path)
