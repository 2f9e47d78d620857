"""The figure of a finetuning: norm and agreement of each round's noise."""

from __future__ import annotations

import os
from typing import Any

from ..utils.figures import BLUE, ORANGE, explain, finish, pyplot, save_figure


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
    left.set(xlabel="training step", ylabel="noise norm (embedding units)", ylim=(0, None))
    for name, label, color, marker in (
        ("agreement", "nullspace noise", BLUE, "o"),
        ("permuted_agreement", "permuted control", ORANGE, "s"),
    ):
        right.plot(steps, [100 * row[name] for row in history], marker=marker, color=color, label=label)
    right.set(xlabel="training step", ylabel="unchanged predictions (%)", ylim=(0, 103))
    right.legend(frameon=False)
    finish(left, right)
    counts = sorted({row["num_images"] for row in history})
    explain(figure, noise_finding(history), f"n = {' to '.join(map(str, counts))} pictures at each round")
    save_figure(plt, figure, path)


def noise_finding(history: list[dict[str, Any]]) -> str:
    """What came of the norm of the noise from the first round to the last, and what the last noise leaves unchanged."""
    first, last = history[0], history[-1]
    grown = (
        f"Noise {last['norm'] / first['norm']:.1f} times as large as at first" if first["norm"] else "The last noise"
    )
    subject = grown if len(history) > 1 else f"Noise of norm {last['norm']:.3g}"
    return (
        f"{subject} keeps {100 * last['agreement']:.0f} % of predictions, permuted "
        f"{100 * last['permuted_agreement']:.0f} %"
    )
