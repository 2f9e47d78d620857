"""What a model card says of a model beside its controls, from their robustness reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..robustness import RobustnessReport
from ..robustness.metrics import paired_bootstrap
from ..robustness.profiles import EVALUATION_SET


MODEL_NAME, CONTROL_NAME = "nullspace", "plain"


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
        control) and `result_images` (how many images).

    Raises:
        `KeyError`: If there is no report `"nullspace"`.
    """
    ours, control = reports[MODEL_NAME], reports.get(CONTROL_NAME)
    differences = None
    if control is not None:
        differences = {
            name: paired_bootstrap(ours.outcomes[name].correct, control.outcomes[name].correct, seed=ours.profile.seed)
            for name in ours.columns
            if name in control.columns
        }
    return {
        "results": {name: report.accuracies for name, report in reports.items()},
        "intervals": {
            name: {column: [row["low"], row["high"]] for column, row in report.columns.items()}
            for name, report in reports.items()
        },
        "differences": differences and {name: list(values) for name, values in differences.items()},
        "result_images": ours.run["num_images"][EVALUATION_SET],
    }


def undecided(differences: Mapping[str, list[float]]) -> list[str]:
    """The columns whose interval contains 0, so that the images do not tell the two models apart."""
    return [name for name, (_, low, high) in differences.items() if low <= 0 <= high]
