"""Compares the published per-image outcomes with outcomes that are measured again."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..robustness.metrics import wilson_interval
from ..robustness.outcomes import Outcomes
from .claims import Claim, Estimate


# A measurement counts if it would find changes of this share of the images with this confidence.
DETECTABLE_SHARE = 0.1
CONFIDENCE = 0.95
# If this many images all agree, a larger share of differing images is ruled out.
MIN_IMAGES = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - DETECTABLE_SHARE))
# Largest half-length of both intervals together, in points. Closer values cannot be distinguished.
MAX_BLUR = 25.0
# Other hardware changes few answers, and hardly the probabilities of clean images.
CONFIDENCE_TOLERANCE = 0.05
DISTANCE_TOLERANCE = 0.05
CHANGED_SHARE = 0.02
CHANGED_SHARE_UNDER_ATTACK = 0.2


def compare_outcomes(name: str, claimed: Outcomes, measured: Outcomes, is_attacked: bool) -> Claim:
    """
    Compares the published outcomes of a column with those of these weights on the same images.

    Args:
        name (`str`): Name of the claim.
        claimed (`Outcomes`): All published outcomes of the column.
        measured (`Outcomes`): New outcomes of some of these images.
        is_attacked (`bool`): Whether the column is an attack: on other hardware it may end elsewhere, so more images
            may differ.
    """
    row_of = {index: row for row, index in enumerate(claimed.indices.tolist())}
    rows = [row_of[index] for index in measured.indices.tolist()]
    count = len(measured)
    total = len(claimed)
    before = claimed.correct[rows]
    after = measured.correct
    shown = [
        Estimate(100 * each.double().mean().item(), *wilson_interval(int(each.sum()), count))
        for each in (before, after)
    ]
    stated, found = [f"{estimate}{'' if count == total else f', {count} of {total} images'}" for estimate in shown]
    differing = int((before != after).sum())
    if differing > max(1, count // 100):
        return Claim(name, False, stated, found, f"{differing} of the same {count} images differ")
    moved = _moved(claimed, rows, measured, is_attacked)
    if moved > max(1, (CHANGED_SHARE_UNDER_ATTACK if is_attacked else CHANGED_SHARE) * count):
        reason = f"{moved} of the same {count} images have other probabilities or distances"
        return Claim(name, False, stated, found, reason)
    if count < min(MIN_IMAGES, total):
        reason = f"{count} images are too few; {min(MIN_IMAGES, total)} of these can tell"
        return Claim(name, None, stated, found, reason)
    return Claim(name, True, stated, found)


def compare_shares(name: str, claimed: tuple[int, int], measured: tuple[int, int]) -> Claim:
    """
    Compares a claimed accuracy with that on other images; both are given as `(number correct, number of images)`.

    The claim fails if the 95 % intervals do not overlap. It counts as unchecked if they are so long that a wrong claim
    would pass.
    """
    estimates = [Estimate(100 * right / count, *wilson_interval(right, count)) for right, count in (claimed, measured)]
    stated, found = [
        f"{estimate} on {count} images" for estimate, (_, count) in zip(estimates, (claimed, measured), strict=True)
    ]
    if not estimates[0].overlaps(estimates[1]):
        return Claim(name, False, stated, found, "the intervals do not overlap")
    blur = sum(estimate.high - estimate.low for estimate in estimates) / 2
    if blur > MAX_BLUR:
        reason = f"the images are too few: a claim {blur:.0f} points off could pass"
        return Claim(name, None, stated, found, reason)
    return Claim(name, True, stated, found)


def check_labels(name: str, claimed: Outcomes, labels: list[int]) -> Claim | None:
    """Checks which published predictions are correct against the labels; `None` if they agree."""
    truth = torch.tensor([labels[index] for index in claimed.indices.tolist()])
    wrong = int(((claimed.prediction == truth) != claimed.correct).sum())
    return Claim(name, False, reason=f"{wrong} predictions are not what they are counted as") if wrong else None


def choose_places(indices: torch.Tensor, count: int) -> list[int]:
    """Draws `count` images at random: if the publisher could predict the draw, other outcomes could be falsified."""
    chosen = np.random.default_rng().choice(len(indices), size=min(count, len(indices)), replace=False)
    return sorted(indices[chosen].tolist())


def _moved(claimed: Outcomes, rows: list[int], measured: Outcomes, is_attacked: bool) -> int:
    """The number of images whose probability or distance has changed."""
    moved = (claimed.confidence[rows] - measured.confidence).abs() > CONFIDENCE_TOLERANCE
    if not is_attacked:
        return int(moved.sum())
    for before, after in ((claimed.l2, measured.l2), (claimed.linf, measured.linf)):
        moved |= (before[rows] - after).abs() > DISTANCE_TOLERANCE * after.abs() + 1e-4
    same_answer = claimed.correct[rows] == measured.correct  # without the same answer there is nothing to compare
    return int((moved & same_answer).sum())
