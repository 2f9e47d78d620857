"""Metrics against their closed forms and the paper's own table."""

import math

import numpy as np
import pytest

from hf_nullspace.data.imagenet import IMAGENET_C_CORRUPTIONS as CORRUPTIONS
from hf_nullspace.robustness.metrics import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    PAPER_COLUMNS,
    accuracy,
    attack_success,
    expected_calibration_error,
    mean_corruption_error,
    paired_bootstrap,
    paper_average,
    perturbation_norms,
    plain_corruption_error,
    relative_mean_corruption_error,
    wilson_interval,
)


ALEXNET = {name: [error] * 5 for name, error in ALEXNET_ERRORS.items()}
TABLE = {  # arXiv 2403.10476, table 1: the 11 columns and their average
    "ViT-S": (74.19, 0.68, 4.63, 13.79, 29.82, 16.35, 71.13, 62.51, 34.67, 14.26, 12.15, 26.54),
    "ViT-S + NS": (77.47, 19.10, 9.37, 25.95, 32.43, 20.77, 55.98, 66.50, 41.61, 25.67, 16.02, 34.45),
    "ViT-B": (77.68, 15.92, 12.54, 25.65, 38.69, 23.88, 62.16, 66.05, 41.63, 16.31, 17.97, 34.01),
    "ViT-B + NS": (81.42, 23.52, 14.23, 36.50, 40.44, 24.55, 47.82, 70.25, 44.85, 26.35, 19.02, 39.39),
    "ViT-B + DAT": (81.47, 22.64, 23.59, 48.80, 43.31, 23.83, 45.95, 70.24, 48.68, 36.94, 23.99, 43.41),
    "ViT-B + DAT + NS": (81.33, 24.14, 23.61, 48.98, 43.67, 24.22, 45.91, 70.14, 48.48, 37.25, 23.87, 43.61),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_average_is_the_papers(row):
    assert paper_average(dict(zip(PAPER_COLUMNS, row[:-1], strict=True))) == pytest.approx(row[-1], abs=0.01)


def test_average_needs_its_columns():
    with pytest.raises(ValueError, match=r"missing \['imagenet-stylized'\], unknown \['stylized'\]"):
        paper_average(dict.fromkeys([*PAPER_COLUMNS[:-1], "stylized"], 1.0))


def test_alexnet_has_100():
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS
    assert mean_corruption_error(ALEXNET) == 100.0
    assert relative_mean_corruption_error(ALEXNET, ALEXNET_CLEAN_ERROR) == 100.0
    assert mean_corruption_error(dict(reversed(ALEXNET.items()))) == 100.0


def test_corruption_errors_by_hand():
    errors = {name: [10, 20, 30, 40, 50] for name in CORRUPTIONS}
    assert mean_corruption_error(errors) == pytest.approx(100 * np.mean(30 / np.array(list(ALEXNET_ERRORS.values()))))
    assert plain_corruption_error(errors) == 30.0
    two = {"fog": [10, 20, 30, 40, 50], "snow": [0, 0, 0, 0, 100]}
    assert plain_corruption_error(two) == 25.0
    baseline = {"fog": 60.0, "snow": 80.0}
    assert mean_corruption_error(two, baseline) == pytest.approx(100 * (30 / 60 + 20 / 80) / 2)
    relative = relative_mean_corruption_error(two, 10.0, baseline, 40.0)
    assert relative == pytest.approx(100 * (20 / 20 + 10 / 40) / 2)


def test_incomplete_errors_are_refused():
    with pytest.raises(ValueError, match=r"missing \['fog'\], unknown \['mist'\]"):
        mean_corruption_error({("mist" if name == "fog" else name): row for name, row in ALEXNET.items()})
    for row in ([1.0] * 4, [1, 2, 3, 4, 101], [1, 2, 3, 4, math.nan]):
        with pytest.raises(ValueError, match="fog needs 5 errors from 0 to 100"):
            plain_corruption_error({"fog": row})
    with pytest.raises(ValueError, match="`errors` is empty"):
        plain_corruption_error({})
    with pytest.raises(ValueError, match="clean needs 5 errors"):
        relative_mean_corruption_error(ALEXNET, 120.0)


def test_accuracy_by_hand():
    assert accuracy([1, 2, 3, 4], [1, 2, 3, 0]) == 75.0
    for predictions, labels in ([[1], [1, 2]], [[], []], [[[1]], [[1]]]):
        with pytest.raises(ValueError, match="one predicted class for each label"):
            accuracy(predictions, labels)


def test_calibration_by_hand():
    # Bins of (0.6, 0.667] and (0.867, 0.933]: two of confidence 0.62 with one right, two of 0.9 with both right.
    probabilities = np.array([[0.62, 0.38], [0.62, 0.38], [0.9, 0.1], [0.1, 0.9]])
    error = expected_calibration_error(probabilities, [0, 1, 0, 1])
    assert error == pytest.approx(100 * (2 / 4 * abs(0.5 - 0.62) + 2 / 4 * abs(1 - 0.9)))
    assert expected_calibration_error(probabilities, [0, 1, 0, 1], num_bins=1) == pytest.approx(100 * abs(0.75 - 0.76))
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0.0


def test_calibrated_predictions_have_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    labels = (rng.random(len(confidence)) > confidence).astype(int)
    assert expected_calibration_error(np.stack([confidence, 1 - confidence], 1), labels) < 0.4
    assert expected_calibration_error(np.stack([confidence, 1 - confidence], 1), 0 * labels) == pytest.approx(
        25, abs=0.2
    )


def test_logits_are_no_probabilities():
    with pytest.raises(ValueError, match="Apply softmax"):
        expected_calibration_error(np.array([[3.0, -1.0]]), [0])
    with pytest.raises(ValueError, match="sums from 2 to 2"):
        expected_calibration_error(np.array([[1.0, 1.0]]), [0])


def test_norms_by_hand():
    clean = np.zeros((2, 3, 4, 4))
    attacked = clean.copy()
    attacked[0, 0, 0, :2] = [0.3, -0.4]
    attacked[1] += 0.5
    l2, linf = perturbation_norms(clean, attacked)
    assert l2 == pytest.approx([0.5, 0.5 * math.sqrt(48)])
    assert linf == pytest.approx([0.4, 0.5])
    with pytest.raises(ValueError, match="pass pairs"):
        perturbation_norms(clean, attacked[:1])


def test_attack_success_is_of_what_was_right():
    result = attack_success([0, 1, 2, 9], [5, 1, 7, 9], [0, 1, 2, 3], [1.0, 50.0, 3.0, 70.0], [0.1, 0.9, 0.3, 0.8])
    assert result == pytest.approx({"success_rate": 100 * 2 / 3, "mean_l2": 2.0, "mean_linf": 0.2})
    harmless = attack_success([0, 1], [0, 1], [0, 1], [1.0, 1.0], [0.1, 0.1])
    assert harmless["success_rate"] == 0
    assert math.isnan(harmless["mean_l2"])
    assert math.isnan(attack_success([1], [1], [0], [1.0], [0.1])["success_rate"])
    with pytest.raises(ValueError, match="`linf` must have one value for each of 1 images"):
        attack_success([1], [1], [0], [1.0], [0.1, 0.2])


def test_wilson_solves_its_equation():
    for correct, count in ((0, 10), (3, 10), (50, 100), (199, 200), (7, 7)):
        low, high = wilson_interval(correct, count)
        share = correct / count
        for bound in (low / 100, high / 100):
            # Each bound is the accuracy that lies 1.96 of its own standard errors from what was measured.
            assert (share - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / count, abs=1e-7)
        assert 0 <= low <= 100 * share <= high <= 100
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 100.0


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (0, 0), (1, 2, 1.0), (1, 2, 95)])
def test_impossible_counts_are_refused(arguments):
    with pytest.raises(ValueError, match="correct of at least one|between 0 and 1"):
        wilson_interval(*arguments)


def test_bootstrap_is_that_of_the_mean_difference():
    rng = np.random.default_rng(0)
    first, second = rng.random(2000) < 0.8, rng.random(2000) < 0.75
    difference, low, high = paired_bootstrap(first, second, num_resamples=20_000)
    paired = 100 * (first.astype(int) - second.astype(int))
    assert difference == pytest.approx(paired.mean())
    error = paired.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx(
        (difference - 1.96 * error, difference + 1.96 * error), abs=0.05 * error + 0.05
    )


def test_bootstrap_is_seeded_and_paired():
    first, second = [True] * 60 + [False] * 40, [True] * 50 + [False] * 50
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second)
    assert paired_bootstrap(first, first) == (0.0, 0.0, 0.0)
    wide, narrow = paired_bootstrap(first, second[::-1]), paired_bootstrap(first, second)
    assert wide[0] == narrow[0] == pytest.approx(10)
    assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])
    mirrored = paired_bootstrap(second, first)
    assert mirrored[0] == -narrow[0]
    with pytest.raises(ValueError, match="over the same images"):
        paired_bootstrap(first, second[:-1])
