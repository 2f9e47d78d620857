"""The metrics as `evaluate.Metric` classes: they accumulate batches, combine, and need no network."""

from __future__ import annotations

from collections import defaultdict

import datasets
import evaluate
import numpy as np

from . import metrics
from .corruptions import SEVERITIES


HENDRYCKS = """@inproceedings{hendrycks2019benchmarking,
  title={Benchmarking Neural Network Robustness to Common Corruptions and Perturbations},
  author={Dan Hendrycks and Thomas Dietterich},
  booktitle={International Conference on Learning Representations},
  year={2019}
}"""
CLASS = datasets.Value("int64")
NUMBER = datasets.Value("float64")


def _info(description: str, inputs: str, citation: str = "", **features) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features({"predictions": CLASS, "references": CLASS, **features}),
    )


class Accuracy(evaluate.Metric):
    """
    `accuracy` in per cent with Wilson's interval, `accuracy_low` and `accuracy_high`.

    Example:

    ```python
    >>> Accuracy().compute(predictions=[1, 0], references=[1, 1])["accuracy"]
    50.0
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(Accuracy.__doc__, "predictions, references: classes. confidence: coverage, 0.95 by default.")

    def _compute(self, predictions, references, confidence: float = 0.95) -> dict[str, float]:
        correct = int(np.sum(np.equal(predictions, references)))
        low, high = metrics.wilson_interval(correct, len(references), confidence)
        return {
            "accuracy": metrics.accuracy(predictions, references),
            "accuracy_low": low,
            "accuracy_high": high,
        }


class ExpectedCalibrationError(evaluate.Metric):
    """`expected_calibration_error` in per cent; see [`~metrics.expected_calibration_error`]."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            ExpectedCalibrationError.__doc__,
            "predictions: probabilities of all classes. references: classes. num_bins: 15 by default.",
            predictions=datasets.Sequence(NUMBER),
        )

    def _compute(self, predictions, references, num_bins: int = 15) -> dict[str, float]:
        error = metrics.expected_calibration_error(np.asarray(predictions), references, num_bins)
        return {"expected_calibration_error": error}


class MeanCorruptionError(evaluate.Metric):
    """
    `plain_corruption_error`, and for the 15 corruptions of ImageNet-C `mean_corruption_error` (mCE, normalised by
    AlexNet) and, where `clean_error` is given, `relative_mean_corruption_error`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            MeanCorruptionError.__doc__,
            "predictions, references: classes. corruption, severity: of each picture. normalized: whether pictures are "
            "ImageNet-C's, True by default. clean_error: in per cent.",
            HENDRYCKS,
            corruption=datasets.Value("string"),
            severity=CLASS,
        )

    def _compute(
        self,
        predictions,
        references,
        corruption,
        severity,
        normalized: bool = True,
        clean_error: float | None = None,
    ) -> dict[str, float]:
        hits = defaultdict(list)
        for part, hit in zip(zip(corruption, severity, strict=True), np.equal(predictions, references), strict=True):
            hits[part].append(hit)
        missing = [f"{name}/{level}" for name in set(corruption) for level in SEVERITIES if (name, level) not in hits]
        if missing:
            raise ValueError(f"No picture of {sorted(missing)[:5]}; every corruption needs severities 1 to 5.")
        errors = {
            name: [100 - 100 * float(np.mean(hits[name, level])) for level in SEVERITIES] for name in set(corruption)
        }
        result = {"plain_corruption_error": metrics.plain_corruption_error(errors)}
        if normalized:
            result["mean_corruption_error"] = metrics.mean_corruption_error(errors)
            if clean_error is not None:
                relative = metrics.relative_mean_corruption_error(errors, clean_error)
                result["relative_mean_corruption_error"] = relative
        return result


class AttackSuccess(evaluate.Metric):
    """`success_rate` in per cent, `mean_l2` and `mean_linf`; see [`~metrics.attack_success`]."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            AttackSuccess.__doc__,
            "predictions: classes under attack. references: true classes. clean_predictions: classes before. l2, linf: "
            "norms of the perturbations.",
            clean_predictions=CLASS,
            l2=NUMBER,
            linf=NUMBER,
        )

    def _compute(self, predictions, references, clean_predictions, l2, linf) -> dict[str, float]:
        return metrics.attack_success(clean_predictions, predictions, references, l2, linf)
