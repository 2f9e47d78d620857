"""The results of a model card: the model and its controls, taken from their robustness reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..robustness.metrics import paired_bootstrap
from ..robustness.profiles import EVALUATION_SET
from ..robustness.report import RobustnessReport


MODEL_NAME = "nullspace"
CONTROL_NAME = "plain"


def card_results(reports: Mapping[str, RobustnessReport]) -> dict[str, Any]:
    """
    The robustness results for a card: `trainer.card_extras.update(card_results(reports))`.

    Args:
        reports (`Mapping[str, RobustnessReport]`):
            Reports of one profile on the same images by model: `"nullspace"` is the published one, and `"plain"`, where
            there is one, its control that was finetuned for as many steps without noise.

    Returns:
        `dict[str, Any]`, JSON-serialisable, all in per cent: `results` (accuracy by column for each model), `intervals`
        (low and high end of each one's 95 % Wilson interval), `differences` (by column: nullspace minus plain with the
        ends of a 95 % bootstrap interval over images, which takes both answers to an image together; `None` without a
        control), `result_images` (how many images), `result_logits` (among how many of the model's logits
        a prediction is made) and `correct` (for each other model and column which images it gets
        right, as [`pack_correct`] writes it: the differences follow from it).

    Raises:
        `KeyError`: If there is no report `"nullspace"`.
    """
    ours = reports[MODEL_NAME]
    control = reports.get(CONTROL_NAME)
    differences = None
    if control is not None:
        differences = paired_differences(
            {name: outcomes.correct.numpy() for name, outcomes in ours.outcomes.items()},
            {name: outcomes.correct.numpy() for name, outcomes in control.outcomes.items()},
            ours.profile.seed,
        )
    return {
        "results": {name: report.accuracies for name, report in reports.items()},
        "intervals": {
            name: {column: [row["low"], row["high"]] for column, row in report.columns.items()}
            for name, report in reports.items()
        },
        "differences": differences,
        "result_images": ours.run["num_images"][EVALUATION_SET],
        "result_logits": ours.run.get("logits", {}).get(EVALUATION_SET),
        "correct": {
            name: {column: pack_correct(outcomes.correct) for column, outcomes in report.outcomes.items()}
            for name, report in reports.items()
            if name != MODEL_NAME and report.outcomes is not None
        },
    }


def paired_differences(
    ours: Mapping[str, np.ndarray], control: Mapping[str, np.ndarray], seed: int
) -> dict[str, list[float]]:
    """The difference of two models in percentage points for each shared column, with the ends of its interval."""
    return {
        name: list(paired_bootstrap(correct, control[name], seed=seed))
        for name, correct in ours.items()
        if name in control
    }


def pack_correct(correct: torch.Tensor) -> str:
    """The number of images, then one bit per image in hexadecimal: 1 if the image is classified correctly."""
    return f"{len(correct)}:{np.packbits(correct.numpy().astype(np.uint8)).tobytes().hex()}"


def unpack_correct(text: str) -> np.ndarray:
    """
    Inverse of [`pack_correct`]: an array with 0 or 1 for each image.

    Raises:
        `ValueError`: If the text was not written by [`pack_correct`].
    """
    count, _, digits = text.partition(":")
    if not count.isdecimal() or len(digits) != 2 * math.ceil(int(count) / 8):
        raise ValueError(f"{text[:20]!r} has not one bit for each image")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count))


def undecided(differences: Mapping[str, list[float]]) -> list[str]:
    """The columns whose interval contains 0: the images do not distinguish the two models there."""
    return [name for name, (_, low, high) in differences.items() if low <= 0 <= high]
