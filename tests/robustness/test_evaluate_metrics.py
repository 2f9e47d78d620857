"""`evaluate.Metric` classes give the numbers of the functions, batch by batch, without a network."""

import evaluate
import numpy as np
import pytest

from hf_nullspace.data.imagenet import IMAGENET_C_CORRUPTIONS as CORRUPTIONS
from hf_nullspace.robustness import metrics
from hf_nullspace.robustness.evaluate_metrics import (
    Accuracy,
    AttackSuccess,
    ExpectedCalibrationError,
    MeanCorruptionError,
)


def test_accuracy_in_batches(tmp_path):
    metric = Accuracy(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[1, 2, 3], references=[1, 2, 0])
    metric.add_batch(predictions=[4], references=[4])
    low, high = metrics.wilson_interval(3, 4)
    assert metric.compute() == {"accuracy": 75.0, "accuracy_low": low, "accuracy_high": high}


def test_accuracy_combines(tmp_path):
    both = evaluate.combine([Accuracy(cache_dir=str(tmp_path / "a")), Accuracy(cache_dir=str(tmp_path / "b"))])
    result = both.compute(predictions=[1, 0], references=[1, 1])
    assert [value for name, value in result.items() if name.endswith("accuracy")] == [50.0, 50.0]


def test_calibration_takes_probabilities(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 50)
    labels = np.arange(50) % 3
    metric = ExpectedCalibrationError(cache_dir=str(tmp_path))
    for part in (slice(0, 20), slice(20, 50)):
        metric.add_batch(predictions=probabilities[part], references=labels[part])
    expected = metrics.expected_calibration_error(probabilities, labels)
    assert metric.compute()["expected_calibration_error"] == pytest.approx(expected)


def part_columns():
    names = [name for name in CORRUPTIONS for _ in range(10)]
    severities = [severity for _ in CORRUPTIONS for severity in (1, 2, 3, 4, 5) for _ in range(2)]
    return {"corruption": names, "severity": severities, "references": [0] * 150}


def test_corruption_error_of_each_part(tmp_path):
    columns = part_columns()
    predictions = [int(index % 2 and name == "fog") for index, name in enumerate(columns["corruption"])]
    metric = MeanCorruptionError(cache_dir=str(tmp_path))
    metric.add_batch(predictions=predictions, **columns)
    assert metric.compute(clean_error=0.0) == pytest.approx(
        {
            "plain_corruption_error": 50 / 15,
            "mean_corruption_error": 100 * 50 / metrics.ALEXNET_ERRORS["fog"] / 15,
            "relative_mean_corruption_error": 100
            * 50
            / (metrics.ALEXNET_ERRORS["fog"] - metrics.ALEXNET_CLEAN_ERROR)
            / 15,
        }
    )


def test_corruption_error_of_another_dataset_is_not_normalised(tmp_path):
    columns = {name: values[:10] for name, values in part_columns().items()}
    metric = MeanCorruptionError(cache_dir=str(tmp_path))
    result = metric.compute(predictions=[1, 0] * 5, normalized=False, **columns)
    assert result == {"plain_corruption_error": 50.0}
    with pytest.raises(ValueError, match="missing .*'shot_noise'"):
        metric.compute(predictions=[1, 0] * 5, **columns)
    with pytest.raises(ValueError, match=r"No picture of \['gaussian_noise/5'\]"):
        metric.compute(predictions=[1, 0] * 4, **{name: values[:8] for name, values in columns.items()})


def test_attack_success_is_the_functions(tmp_path):
    columns = {"references": [0, 1, 2], "clean_predictions": [0, 1, 0], "l2": [1.0, 2.0, 9.0], "linf": [0.1, 0.2, 0.9]}
    result = AttackSuccess(cache_dir=str(tmp_path)).compute(predictions=[3, 1, 2], **columns)
    assert result == {"success_rate": 50.0, "mean_l2": 1.0, "mean_linf": pytest.approx(0.1)}
