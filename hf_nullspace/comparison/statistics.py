"""Two ways of training, each run with several seeds, compared on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..robustness.outcomes import Outcomes
from ..robustness.profiles import EVALUATION_SET, Column
from ..utils.random import keyed_generator


# Groups of columns that a mean is taken over; the first contains all columns.
MEAN = "mean"
CLEAN = "clean"
CORRUPTIONS = "corruptions"
ATTACKS = "attacks"
DATASETS = "datasets"
# Coverage of the intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """
    How much more accurate one way of training is than another, in percentage points.

    Args:
        difference (`float`): Mean over seeds of the difference of the mean accuracies over columns.
        low, high (`float`): Ends of its interval.
        per_seed (`tuple[float, ...]`): The difference of each seed.
    """

    difference: float
    low: float
    high: float
    per_seed: tuple[float, ...]


def column_groups(columns: Sequence[Column]) -> dict[str, list[str]]:
    """
    Names of the columns that belong together: `mean` (all), `clean`, `corruptions`, `attacks` and `datasets` (other images
    than those of the evaluation, as they are); groups without columns are left out.
    """
    groups: dict[str, list[str]] = {MEAN: [], CLEAN: [], CORRUPTIONS: [], ATTACKS: [], DATASETS: []}
    for column in columns:
        groups[MEAN].append(column.name)
        if column.attack is not None:
            groups[ATTACKS].append(column.name)
        elif column.corruption is not None:
            groups[CORRUPTIONS].append(column.name)
        else:
            groups[CLEAN if column.dataset == EVALUATION_SET else DATASETS].append(column.name)
    return {group: names for group, names in groups.items() if names}


def mean_accuracies(runs: Sequence[Mapping[str, Outcomes]], columns: Sequence[str]) -> list[float]:
    """
    The plain mean over columns of the accuracies, in per cent, for each seed.

    Args:
        runs (`Sequence[Mapping[str, Outcomes]]`): For each seed the outcomes by column.
        columns (`Sequence[str]`): The columns that count.
    """
    return [100 * float(np.mean([run[name].correct.double().mean().item() for name in columns])) for run in runs]


def paired_difference(
    runs: Sequence[Mapping[str, Outcomes]],
    other_runs: Sequence[Mapping[str, Outcomes]],
    columns: Sequence[str],
    datasets: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
    num_resamples: int = 2_000,
    seed: int = 42,
) -> PairedDifference:
    """
    The difference of two ways of training, with a percentile bootstrap interval over seeds and images.

    Each resample draws seeds with replacement and, for all of them, images with replacement. An image keeps its outcomes
    in all columns that it is part of and under both ways of training, since these go together. Images that are part of
    the same columns are drawn among themselves, so that every column keeps its number of images.

    This is the pigeonhole bootstrap ([Owen, 2007](https://arxiv.org/abs/0712.1111)): where the gains of an image differ
    from seed to seed for no reason but chance, it is conservative, with an interval up to the square root of 3 too wide.

    Few seeds say little of other seeds. With three of them, which differ by more than the images explain, the interval
    reaches from the lowest to the highest, and holds the true difference in three cases of four only: read `per_seed` too.
    With one seed the interval is over images alone.

    Args:
        runs, other_runs (`Sequence[Mapping[str, Outcomes]]`):
            For each seed the outcomes by column; the seeds of both in the same order.
        columns (`Sequence[str]`):
            The columns whose accuracies are averaged.
        datasets (`Mapping[str, str]`, *optional*):
            The dataset of each column; images are the same if dataset and place in it are. By default there is one.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage.
        num_resamples (`int`, *optional*, defaults to 2000):
            Bootstrap samples.
        seed (`int`, *optional*, defaults to 42):
            Their seed.

    Returns:
        [`PairedDifference`]: `runs` minus `other_runs`.

    Raises:
        `ValueError`: If the two have not as many seeds, a column is missing or its images differ, or a number is out of
            range.
    """
    if len(runs) != len(other_runs) or not runs:
        raise ValueError(
            f"Expected as many seeds of both, and at least one, but got {len(runs)} and {len(other_runs)}."
        )
    if not columns:
        raise ValueError("`columns` is empty: there is no accuracy to compare.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, but got {confidence}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, but got {num_resamples}.")
    parts, strata = _image_parts(runs, other_runs, columns, datasets or {})
    rng = np.random.default_rng(keyed_generator("paired-seeds", seed).initial_seed())
    num_seeds = len(runs)
    totals = np.zeros((num_resamples, num_seeds))
    for stratum in np.unique(strata):
        # Images with the same parts are interchangeable, so resampling images is a draw of how often each kind comes.
        kinds, counts = np.unique(parts[strata == stratum], axis=0, return_counts=True)
        totals += rng.multinomial(counts.sum(), counts / counts.sum(), size=num_resamples) @ kinds
    seed_shares = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples) / num_seeds
    low, high = np.quantile((totals * seed_shares).sum(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    per_seed = parts.sum(0)
    return PairedDifference(float(per_seed.mean()), float(low), float(high), tuple(per_seed.tolist()))


def _image_parts(
    runs: Sequence[Mapping[str, Outcomes]],
    other_runs: Sequence[Mapping[str, Outcomes]],
    columns: Sequence[str],
    datasets: Mapping[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """
    What each image adds to the difference of each seed, of shape `(num_images, num_seeds)`, and for each image a number
    that it shares with the images of the same columns.
    """
    places = {name: _places(name, [*runs, *other_runs]) for name in columns}
    first_of = {}
    total = 0
    for dataset in dict.fromkeys(datasets.get(name, "") for name in columns):
        first_of[dataset] = total
        total += 1 + max(places[name].max() for name in columns if datasets.get(name, "") == dataset)
    parts: np.ndarray = np.zeros((total, len(runs)))
    membership: np.ndarray = np.zeros((total, len(columns)), dtype=bool)
    for number, name in enumerate(columns):
        rows: np.ndarray = first_of[datasets.get(name, "")] + places[name]
        membership[rows, number] = True
        for index, (run, other) in enumerate(zip(runs, other_runs, strict=True)):
            gained = run[name].correct.int() - other[name].correct.int()
            parts[rows, index] += 100 * gained.numpy() / (len(rows) * len(columns))
    used = membership.any(1)
    _, strata = np.unique(membership[used], axis=0, return_inverse=True)
    return parts[used], strata.reshape(-1)


def _places(name: str, runs: Sequence[Mapping[str, Outcomes]]) -> np.ndarray:
    """Places of a column's images in its dataset, the same for all runs."""
    missing = [number for number, run in enumerate(runs) if name not in run]
    if missing:
        raise ValueError(
            f"Column {name!r} was not measured in {len(missing)} of {len(runs)} runs. Measure them alike."
        )
    first = runs[0][name].indices
    if any(not first.equal(run[name].indices) for run in runs):
        raise ValueError(f"Column {name!r} of the runs is of different images. Evaluate all on the same.")
    if len(first) == 0 or len(first.unique()) < len(first):
        raise ValueError(f"Column {name!r} must have images, each once, but has the places {first.tolist()}.")
    return first.numpy()
