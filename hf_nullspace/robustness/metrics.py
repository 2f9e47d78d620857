"""Robustness as numbers: pure functions of predictions, errors and pictures. All shares are in per cent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from ..data.imagenet import IMAGENET_C_CORRUPTIONS
from ..utils.random import keyed_generator
from .corruptions import SEVERITIES


# The dataset that mCE is of.
MCE_DATASET = "imagenet-c"
# Top-1 errors of AlexNet under the fifteen corruptions of ImageNet-C, each the mean of 5 severities, and on clean ImageNet (arXiv 1903.12261).
ALEXNET_ERRORS = dict(
    zip(
        IMAGENET_C_CORRUPTIONS,
        (
            *(88.6428, 89.4468, 92.2640),
            *(81.9880, 82.6268, 78.5948, 79.8360),
            *(86.6816, 82.6572, 81.9324),
            *(56.4592, 85.3204, 64.6056, 71.7840, 60.6500),
        ),
        strict=True,
    )
)
ALEXNET_CLEAN_ERROR = 43.5
PAPER_COLUMNS = (
    "clean",
    "patchfool",
    "cw",
    "fgsm",
    "damagenet",
    "imagenet-a",
    MCE_DATASET,
    "imagenet-v2",
    "imagenet-r",
    "imagenet-sketch",
    "imagenet-stylized",
)


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """
    Share of predictions that equal their label, in per cent.

    Raises:
        `ValueError`: If there is none, or the two differ in length.
    """
    return 100 * float(_hits(predictions, labels).mean())


def plain_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """
    Mean error over corruptions and severities, in per cent: for datasets without errors of AlexNet.

    Args:
        errors (`Mapping[str, Sequence[float]]`): Errors in per cent at the 5 severities, by corruption; any corruptions.

    Raises:
        `ValueError`: If there is none, or a corruption has not 5 errors from 0 to 100.
    """
    if not errors:
        raise ValueError("`errors` is empty; expected errors at 5 severities for at least one corruption.")
    return _mean([_mean(_severities(name, values)) for name, values in errors.items()])


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], baseline_errors: Mapping[str, float] = ALEXNET_ERRORS
) -> float:
    """
    mCE of Hendrycks and Dietterich (2019): the error of each corruption as a share of a baseline's, averaged, times 100.

    Args:
        errors (`Mapping[str, Sequence[float]]`): Errors in per cent at the 5 severities, for exactly the baseline's
            corruptions.
        baseline_errors (`Mapping[str, float]`, *optional*): The baseline's error on each corruption, in per cent, averaged
            over severities. AlexNet's on ImageNet-C by default; they mean nothing on another dataset.

    Returns:
        `float`: 100 for the baseline itself; lower is better.

    Raises:
        `ValueError`: If corruptions are missing or unknown, or errors are not 5 numbers from 0 to 100.
    """
    means = _corruption_means(errors, baseline_errors)
    return 100 * _mean([means[name] / baseline_errors[name] for name in baseline_errors])


def relative_mean_corruption_error(
    errors: Mapping[str, Sequence[float]],
    clean_error: float,
    baseline_errors: Mapping[str, float] = ALEXNET_ERRORS,
    baseline_clean_error: float = ALEXNET_CLEAN_ERROR,
) -> float:
    """
    Relative mCE: as [`mean_corruption_error`], of the errors that corruption adds to the clean error.

    Args:
        errors (`Mapping[str, Sequence[float]]`): Errors in per cent at the 5 severities, by corruption.
        clean_error (`float`): Error on clean pictures, in per cent.
        baseline_errors, baseline_clean_error (*optional*): The same of the baseline; AlexNet's by default.
    """
    _severities("clean", [clean_error] * len(SEVERITIES))
    means = _corruption_means(errors, baseline_errors)
    return 100 * _mean(
        [(means[name] - clean_error) / (baseline_errors[name] - baseline_clean_error) for name in baseline_errors]
    )


def paper_average(columns: Mapping[str, float]) -> float:
    """
    The column Average of arXiv 2403.10476: the plain mean of its 11 columns, ImageNet-C as `100 - mCE`.

    Args:
        columns (`Mapping[str, float]`): [`PAPER_COLUMNS`]: accuracies in per cent, and `"imagenet-c"` as mCE.

    Raises:
        `ValueError`: If a column is missing or unknown.
    """
    if set(columns) != set(PAPER_COLUMNS):
        raise ValueError(
            f"The average is over the 11 columns {list(PAPER_COLUMNS)}; missing "
            f"{[name for name in PAPER_COLUMNS if name not in columns]}, unknown "
            f"{[name for name in columns if name not in PAPER_COLUMNS]}."
        )
    return _mean([100 - value if name == MCE_DATASET else value for name, value in columns.items()])


def expected_calibration_error(probabilities: np.ndarray, labels: Sequence[int], num_bins: int = 15) -> float:
    """
    ECE of Guo et al. (2017): the gap between confidence and accuracy, averaged over equal bins of confidence.

    Args:
        probabilities (`np.ndarray` of shape `(num_images, num_labels)`): Probabilities, not logits.
        labels (`Sequence[int]`): True classes.
        num_bins (`int`, *optional*, defaults to 15): Bins of (0, 1], closed above.

    Returns:
        `float`: In per cent; 0 is perfect calibration.

    Raises:
        `ValueError`: If rows are not probabilities.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2:
        raise ValueError(f"`probabilities` must have shape (num_images, num_labels), but got {probabilities.shape}.")
    sums = probabilities.sum(1)
    if probabilities.size and (not (probabilities >= 0).all() or np.abs(sums - 1).max() > 1e-2):
        raise ValueError(
            f"Rows of `probabilities` must be at least 0 and sum to 1, but range from {probabilities.min():.4g} with sums "
            f"from {sums.min():.4g} to {sums.max():.4g}. Apply softmax to logits first."
        )
    return calibration_error(probabilities.max(1), _hits(probabilities.argmax(1), labels), num_bins)


def calibration_error(confidence: np.ndarray, hits: np.ndarray, num_bins: int = 15) -> float:
    """
    [`expected_calibration_error`] from the largest probability of each image and whether its class was right.

    Args:
        confidence (`np.ndarray` of shape `(num_images,)`): Largest probabilities.
        hits (`np.ndarray` of shape `(num_images,)`): 1 for right, 0 for wrong.
        num_bins (`int`, *optional*, defaults to 15): Bins of (0, 1], closed above.
    """
    gaps = np.bincount(_bins(confidence, num_bins), weights=hits - confidence, minlength=num_bins)
    return 100 * float(np.abs(gaps).sum() / len(hits))


def calibration_bins(confidence: np.ndarray, hits: np.ndarray, num_bins: int = 15) -> list[dict[str, float]]:
    """
    The bins of [`calibration_error`]: `from` and `to` of the confidence, `count` of images, and of these `confidence`,
    `accuracy` and the ends of its 95 % Wilson interval `low` and `high`, all in per cent; NaN in bins without images.

    Args:
        confidence, hits (`np.ndarray` of shape `(num_images,)`), num_bins (`int`, *optional*): See
            [`calibration_error`].
    """
    bins = _bins(confidence, num_bins)
    rows = []
    for place in range(num_bins):
        inside = bins == place
        count = int(inside.sum())
        row = {"from": 100 * place / num_bins, "to": 100 * (place + 1) / num_bins, "count": count}
        correct = int(np.asarray(hits)[inside].sum())
        low, high = wilson_interval(correct, count) if count else (math.nan, math.nan)
        row["confidence"] = 100 * float(confidence[inside].mean()) if count else math.nan
        row["accuracy"] = 100 * correct / count if count else math.nan
        rows.append({**row, "low": low, "high": high})
    return rows


def _bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    if num_bins < 1:
        raise ValueError(f"`num_bins` must be at least 1, but got {num_bins}.")
    return (np.ceil(confidence * num_bins).astype(int) - 1).clip(0, num_bins - 1)


def perturbation_norms(clean: np.ndarray, attacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    How far each picture was moved.

    Args:
        clean, attacked (`np.ndarray` of shape `(num_images, channels, height, width)`): Pixels in [0, 1].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: L2 and Linf norms, each of shape `(num_images,)`, in pixel units.
    """
    clean = np.asarray(clean, dtype=np.float64)
    attacked = np.asarray(attacked, dtype=np.float64)
    if clean.shape != attacked.shape:
        raise ValueError(f"Clean pictures have shape {clean.shape}, attacked ones {attacked.shape}; pass pairs.")
    moved = (attacked - clean).reshape(len(clean), -1)
    return np.sqrt((moved**2).sum(1)), np.abs(moved).max(1, initial=0)


def attack_success(
    clean_predictions: Sequence[int],
    attacked_predictions: Sequence[int],
    labels: Sequence[int],
    l2: Sequence[float],
    linf: Sequence[float],
) -> dict[str, float]:
    """
    How often an attack turns a right prediction into a wrong one, and how far it moves those pictures.

    Args:
        clean_predictions, attacked_predictions, labels (`Sequence[int]`): Classes before, after, and true.
        l2, linf (`Sequence[float]`): From [`perturbation_norms`].

    Returns:
        `dict[str, float]`: `success_rate` in per cent of the pictures that were right before; `mean_l2` and `mean_linf`
        in pixel units over the successful attacks; NaN where there is nothing to divide by.
    """
    right: np.ndarray = _hits(clean_predictions, labels).astype(bool)
    fooled = right & ~_hits(attacked_predictions, labels).astype(bool)
    norms = {"mean_l2": np.asarray(l2, dtype=np.float64), "mean_linf": np.asarray(linf, dtype=np.float64)}
    for name, values in norms.items():
        if values.shape != right.shape:
            raise ValueError(f"`{name[5:]}` must have one value for each of {len(right)} images, not {values.shape}.")
    means = {name: float(values[fooled].mean()) if fooled.any() else math.nan for name, values in norms.items()}
    return {"success_rate": 100 * float(fooled.sum() / right.sum()) if right.any() else math.nan, **means}


def wilson_interval(num_correct: float, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson's score interval of an accuracy, in per cent; sensible also near 0 and 100 and for few images.

    Args:
        num_correct, num_images (`int`): Counts; the first may be a sum of shares.
        confidence (`float`, *optional*, defaults to 0.95): Coverage.

    Raises:
        `ValueError`: If the counts or the confidence are impossible.
    """
    if not 0 <= num_correct <= num_images or num_images == 0:
        raise ValueError(f"Expected 0 to `num_images` correct of at least one, but got {num_correct} of {num_images}.")
    z = _normal_quantile(confidence)
    share = num_correct / num_images
    middle = share + z**2 / (2 * num_images)
    reach = z * math.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2))
    low, high = ((middle + sign * reach) / (1 + z**2 / num_images) for sign in (-1, 1))
    # Rounding alone keeps these two from being exact.
    return 0.0 if num_correct == 0 else 100 * low, 100.0 if num_correct == num_images else 100 * high


def paired_bootstrap(
    hits: Sequence[bool] | np.ndarray,
    other_hits: Sequence[bool] | np.ndarray,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 42,
) -> tuple[float, float, float]:
    """
    The difference of two models' accuracies on the same images, with a percentile bootstrap interval over images.

    Args:
        hits, other_hits (`Sequence[bool]` or `np.ndarray`): Whether each model is right, image by image in the same order.
        confidence (`float`, *optional*, defaults to 0.95): Coverage.
        num_resamples (`int`, *optional*, defaults to 10000): Bootstrap samples.
        seed (`int`, *optional*, defaults to 42): Their seed.

    Returns:
        `tuple[float, float, float]`: Difference (first minus second), low and high, in percentage points.
    """
    ours = np.asarray(hits, dtype=np.int64)
    others = np.asarray(other_hits, dtype=np.int64)
    if ours.shape != others.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"Expected two lists over the same images, but got {ours.shape} and {others.shape}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, but got {num_resamples}.")
    _normal_quantile(confidence)
    # Images with the same difference are interchangeable, so resampling images is a draw of three counts.
    difference = ours - others
    shares = [np.mean(difference == value) for value in (-1, 0, 1)]
    rng = np.random.default_rng(keyed_generator("paired-bootstrap", seed).initial_seed())
    counts = rng.multinomial(len(ours), shares, size=num_resamples)
    differences = 100 * (counts[:, 2] - counts[:, 0]) / len(ours)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return 100 * float(difference.mean()), float(low), float(high)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, but got {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _hits(predictions: Sequence[int], labels: Sequence[int]) -> np.ndarray:
    predicted = np.asarray(predictions)
    true = np.asarray(labels)
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise ValueError(
            f"Expected one predicted class for each label and at least one, but got shapes {predicted.shape} and "
            f"{true.shape}."
        )
    return np.equal(predicted, true).astype(np.float64)


def _mean(values: Sequence[float]) -> float:
    # fsum rounds once, so that equal values average to themselves.
    return math.fsum(values) / len(values)


def _severities(name: str, values: Sequence[float]) -> list[float]:
    values = [float(value) for value in values]
    if len(values) != len(SEVERITIES) or not all(0 <= value <= 100 for value in values):
        raise ValueError(f"{name} needs {len(SEVERITIES)} errors from 0 to 100 per cent, but got {values}.")
    return values


def _corruption_means(errors: Mapping[str, Sequence[float]], baseline: Mapping[str, float]) -> dict[str, float]:
    if set(errors) != set(baseline):
        raise ValueError(
            f"Expected errors for the {len(baseline)} corruptions {list(baseline)}; missing "
            f"{[name for name in baseline if name not in errors]}, unknown "
            f"{[name for name in errors if name not in baseline]}. `plain_corruption_error` takes any."
        )
    return {name: _mean(_severities(name, values)) for name, values in errors.items()}
