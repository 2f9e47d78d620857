"""From the outcomes of images to the numbers of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..data.imagenet import IMAGENET_C_CORRUPTIONS, IMAGENET_C_SEVERITIES
from .attacks import ATTACKS
from .metrics import (
    MCE_DATASET,
    PAPER_COLUMNS,
    attack_success,
    calibration_error,
    mean_corruption_error,
    paper_average,
    relative_mean_corruption_error,
    wilson_interval,
)
from .outcomes import NO_ANSWER, Outcomes
from .profiles import Column


# The bar that all generated corruptions share; published ones share that of their dataset.
GENERATED = "corruptions"


def score_columns(columns: Sequence[Column], outcomes: dict[str, Outcomes]) -> dict[str, dict[str, Any]]:
    """The numbers of each column that has outcomes; see [`score_column`]."""
    clean: dict[str, Outcomes] = {}
    for column in columns:
        if column.name in outcomes and column.corruption is None and column.attack is None:
            found = outcomes[column.name]
            clean[column.dataset] = max(clean.get(column.dataset, found), found, key=len)
    return {
        column.name: score_column(
            column, outcomes[column.name], None if column.corruption else clean.get(column.dataset)
        )
        for column in columns
        if column.name in outcomes
    }


def score_column(column: Column, outcomes: Outcomes, clean: Outcomes | None) -> dict[str, Any]:
    """
    The numbers of one column; [`RobustnessReport`] says which.

    Args:
        column ([`Column`]): The column.
        outcomes ([`Outcomes`]): Its images.
        clean ([`Outcomes`] or `None`): Those of the same dataset without corruption or attack, which the success of an
            attack is measured against. It is left out where an attacked image is not among them.
    """
    correct = int(outcomes.correct.sum())
    count = len(outcomes)
    low, high = wilson_interval(correct, count)
    row: dict[str, Any] = {"accuracy": 100 * correct / count, "low": low, "high": high}
    row |= {"correct": correct, "count": count}
    if column.calibration:
        row["ece"] = outcomes_calibration_error(outcomes)
    if column.attack is not None:
        row |= ATTACKS[column.attack].row(column.settings, outcomes.others)
    if lost := int((outcomes.prediction == NO_ANSWER).sum()):
        row["no_answer"] = lost
    if column.attack is None or clean is None:
        return row
    places = {index: place for place, index in enumerate(clean.indices.tolist())}
    if all(index in places for index in outcomes.indices.tolist()):
        before = clean.correct[[places[index] for index in outcomes.indices.tolist()]].int()
        right = torch.ones_like(before)
        success = attack_success(before, outcomes.correct.int(), right, outcomes.l2, outcomes.linf)
        row |= {name: None if math.isnan(value) else value for name, value in success.items()}
    return row


def outcomes_calibration_error(outcomes: Outcomes) -> float:
    """[`calibration_error`] of the images of a column, in per cent."""
    return calibration_error(outcomes.confidence.double().numpy(), outcomes.correct.numpy())


def shared_bar(column: Column) -> str:
    """The bar of the figure that the column of a corruption shares: that of its dataset, or of all generated ones."""
    return GENERATED if column.is_generated else column.dataset


def summarize_columns(
    columns: Sequence[Column], rows: dict[str, dict[str, Any]], outcomes: dict[str, Outcomes]
) -> dict[str, dict[str, float]]:
    """
    Accuracy and 95 % interval of each bar of the figure, in per cent: a column, or all corruptions together.

    The corruptions of one image are right or wrong together, so their interval is taken over images: a normal one, around
    the mean of what share of its corruptions an image survives. Where corruptions have different images it is left out.
    """
    bars: dict[str, dict[str, float]] = {}
    groups: dict[str, list[str]] = {}
    for column in columns:
        if column.name not in rows:
            continue
        if column.corruption is None or column.attack is not None:
            bars[column.name] = {name: rows[column.name][name] for name in ("accuracy", "low", "high")}
        else:
            bars.setdefault(shared_bar(column), {})  # keeps the place of the first of them
            groups.setdefault(shared_bar(column), []).append(column.name)
    for group, names in groups.items():
        parts = [outcomes[name] for name in names]
        accuracy = sum(rows[name]["accuracy"] for name in names) / len(names)
        low = high = None
        if all(torch.equal(part.indices, parts[0].indices) for part in parts) and len(parts[0]) > 1:
            survived = torch.stack([part.correct for part in parts]).double().mean(0)
            half = 100 * 1.959964 * survived.std().item() / math.sqrt(len(survived))
            low = max(0.0, accuracy - half)
            high = min(100.0, accuracy + half)
        bars[group] = {"accuracy": accuracy, "low": low, "high": high}
    return bars


def aggregate_columns(
    columns: Sequence[Column], rows: dict[str, dict[str, Any]], bars: dict[str, dict[str, float]]
) -> dict[str, float]:
    """
    Means in per cent, each only where all of its columns were measured.

    `mean_corruption_error` is the plain mean error under generated corruptions; `mce` is that of the 15 published
    corruptions of ImageNet-C at five severities, relative to AlexNet's, and `relative_mce` that of the errors beyond
    those of `clean`; `average` is the paper's, over its eleven columns; `mean_accuracy` is that of the bars of the figure,
    in which all corruptions are one.
    """
    aggregates = {}
    columns = [column for column in columns if not (column.corruption and column.attack)]
    generated = [column.name for column in columns if column.is_generated]
    if generated and all(name in rows for name in generated):
        aggregates["mean_corruption_error"] = 100 - bars[GENERATED]["accuracy"]
    published = {
        (column.corruption, column.severity): 100 - rows[column.name]["accuracy"]
        for column in columns
        if column.dataset == MCE_DATASET and column.name in rows
    }
    if len(published) == len(IMAGENET_C_CORRUPTIONS) * len(IMAGENET_C_SEVERITIES):
        errors = {
            name: [published[name, severity] for severity in IMAGENET_C_SEVERITIES] for name in IMAGENET_C_CORRUPTIONS
        }
        aggregates["mce"] = mean_corruption_error(errors)
        if "clean" in rows:
            aggregates["relative_mce"] = relative_mean_corruption_error(errors, 100 - rows["clean"]["accuracy"])
        named = {name: rows[name]["accuracy"] for name in PAPER_COLUMNS if name in rows}
        if len(named) == len(PAPER_COLUMNS) - 1:
            aggregates["average"] = paper_average({**named, MCE_DATASET: aggregates["mce"]})
    if bars:
        aggregates["mean_accuracy"] = sum(bar["accuracy"] for bar in bars.values()) / len(bars)
    return aggregates
