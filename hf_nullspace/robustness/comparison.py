"""Compares the reports of several models image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .metrics import paired_bootstrap
from .report import RobustnessReport
from .report_markdown import accuracy_text, table


def compare_reports(reports: Sequence[RobustnessReport]) -> str:
    """
    A Markdown table of the accuracies of several models on the same images, and of how far each is from the first.

    The interval of a difference is a bootstrap over images that takes both models' answers to one image together, so it is
    narrower than the intervals of the two accuracies suggest.

    Args:
        reports (`Sequence[RobustnessReport]`): At least two, of one profile and the same images. Each needs its outcomes,
            which [`RobustnessReport.load`] finds beside the report.

    Returns:
        `str`: Markdown.

    Raises:
        `ValueError`: If the reports cannot be compared image by image.
    """
    if len(reports) < 2:
        raise ValueError(f"A comparison needs two reports or more, but got {len(reports)}.")
    first, *others = reports
    names = [report.model_name for report in reports]
    if len(set(names)) < len(names):
        raise ValueError(f"The reports must be of models with different names, but got {names}. Pass `model_name`.")
    for report in reports:
        _check(first, report)
    rows = []
    seed = first.profile.seed
    shared = [name for name in first.columns if all(name in other.columns for other in others)]
    for name in shared:
        row = {"column": name, first.model_name: accuracy_text(first.columns[name])}
        ours = first.outcomes[name]
        for other in others:
            theirs = other.outcomes[name]
            if not torch.equal(ours.indices, theirs.indices):
                raise ValueError(f"Column {name!r} of the reports is of different images. Evaluate again.")
            difference, low, high = paired_bootstrap(theirs.correct, ours.correct, seed=seed)
            row[other.model_name] = accuracy_text(other.columns[name])
            row[f"{other.model_name} - {first.model_name}"] = f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"
        rows.append(row)
    means = [
        {"mean": name} | {report.model_name: f"{report.aggregates[name]:.2f}" for report in reports}
        for name in first.aggregates
        if all(name in other.aggregates for other in others)
    ]
    heading = f"Accuracy in per cent with its 95 % interval, and paired differences. Profile `{first.profile.name}`"
    parts = [f"{heading} ({first.profile.hash[:12]}), seed {seed}.", table(rows)]
    return "\n\n".join([*parts, table(means)] if means else parts)


def _check(first: RobustnessReport, report: RobustnessReport) -> None:
    if report.profile.hash != first.profile.hash:
        raise ValueError(
            f"{report.model_name!r} was measured with the profile {report.profile.name!r} ({report.profile.hash[:12]}), "
            f"but {first.model_name!r} with {first.profile.name!r} ({first.profile.hash[:12]}). Evaluate both with one."
        )
    if report.run["datasets"] != first.run["datasets"]:
        raise ValueError(
            f"{report.model_name!r} and {first.model_name!r} were measured on different images, or number their classes "
            "differently. Evaluate both on the same dataset, with the same `id2label`."
        )
    if report.outcomes is None:
        raise ValueError(
            f"The report of {report.model_name!r} has no outcomes of single images. Load it with "
            "`RobustnessReport.load` from the folder that holds them."
        )
