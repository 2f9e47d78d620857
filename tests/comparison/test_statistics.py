"""Differences over seeds and images: closed forms, the interval for one seed, and how often the truth is inside."""

import numpy as np
import pytest
from made_outcomes import made_outcomes

from hf_nullspace.comparison.statistics import column_groups, mean_accuracies, paired_difference
from hf_nullspace.robustness.metrics import paired_bootstrap
from hf_nullspace.robustness.profiles import QUICK, Column


def random_runs(num_seeds, num_images, seed, accuracy=0.6):
    rng = np.random.default_rng(seed)
    return [
        {name: made_outcomes(rng.random(num_images) < accuracy) for name in ("clean", "fog", "fgsm")}
        for _ in range(num_seeds)
    ]


def test_groups_of_the_quick_profile():
    groups = column_groups(QUICK.columns)
    assert list(groups) == ["mean", "clean", "corruptions", "attacks"]
    assert groups["clean"] == ["clean"] and groups["attacks"] == ["fgsm", "pgd_linf"]
    assert groups["mean"] == [column.name for column in QUICK.columns]
    assert column_groups([Column("a", dataset="imagenet-a")]) == {"mean": ["a"], "datasets": ["a"]}


def test_means_are_plain_means_over_columns():
    runs = [
        {"clean": made_outcomes([1, 1, 0, 1]), "fgsm": made_outcomes([0, 1], [2, 3])},
        {"clean": made_outcomes([0] * 4)},
    ]
    assert mean_accuracies(runs[:1], ["clean", "fgsm"]) == [62.5]
    assert mean_accuracies(runs, ["clean"]) == [75.0, 0.0]


def test_identical_runs_differ_by_exactly_nothing():
    runs = random_runs(3, 50, seed=0)
    found = paired_difference(runs, runs, ["clean", "fog", "fgsm"])
    assert (found.difference, found.low, found.high, found.per_seed) == (0.0, 0.0, 0.0, (0.0, 0.0, 0.0))


def test_what_every_image_gains_has_no_interval():
    wrong, right = [{"clean": made_outcomes([0] * 40)}] * 3, [{"clean": made_outcomes([1] * 40)}] * 3
    found = paired_difference(right, wrong, ["clean"])
    np.testing.assert_allclose([found.difference, found.low, found.high], 100.0)
    found = paired_difference(wrong, right, ["clean"])
    np.testing.assert_allclose([found.difference, found.low, found.high, *found.per_seed], -100.0)


def test_seeds_alone_give_the_quantiles_of_their_mean():
    """No image differs from another, so the distribution is that of the mean of three draws from 0, 0 and 100."""
    wrong, right = {"clean": made_outcomes([0] * 20)}, {"clean": made_outcomes([1] * 20)}
    found = paired_difference([wrong, wrong, right], [wrong] * 3, ["clean"], num_resamples=20_000)
    assert found.per_seed == (0.0, 0.0, pytest.approx(100.0))
    # P(mean = 0) = 8/27 and P(mean = 100) = 1/27, both more than 2.5 %.
    assert (found.low, found.high) == (0.0, pytest.approx(100.0))
    narrow = paired_difference([wrong, wrong, right], [wrong] * 3, ["clean"], confidence=0.9, num_resamples=20_000)
    assert (narrow.low, narrow.high) == (0.0, pytest.approx(200 / 3))


def test_one_seed_and_one_column_agree_with_the_bootstrap_over_images():
    first, second = random_runs(1, 400, seed=1, accuracy=0.7), random_runs(1, 400, seed=2)
    expected = paired_bootstrap(first[0]["clean"].correct, second[0]["clean"].correct, num_resamples=40_000)
    found = paired_difference(first, second, ["clean"], num_resamples=40_000)
    assert found.difference == pytest.approx(expected[0])
    # Steps of 100 / 400 points, of which a quantile may miss one.
    np.testing.assert_allclose([found.low, found.high], expected[1:], atol=0.26)


def test_columns_of_the_same_images_are_not_taken_for_more_images():
    one, other = random_runs(1, 100, seed=3, accuracy=0.8)[0]["clean"], random_runs(1, 100, seed=4)[0]["clean"]
    names = [f"copy{number}" for number in range(8)]
    single = paired_difference([{"copy0": one}], [{"copy0": other}], names[:1], num_resamples=20_000)
    copies = paired_difference([dict.fromkeys(names, one)], [dict.fromkeys(names, other)], names, num_resamples=20_000)
    np.testing.assert_allclose([copies.low, copies.high], [single.low, single.high], atol=1e-9)
    # Of different datasets they are more images.
    apart = paired_difference(
        [dict.fromkeys(names, one)], [dict.fromkeys(names, other)], names, {name: name for name in names}
    )
    assert apart.high - apart.low < 0.5 * (single.high - single.low)


def test_a_column_of_some_images_keeps_its_number_of_images():
    """Half of the images are in both columns; all of `fgsm` differ, so that its part of the mean is always 50 points."""
    some = list(range(0, 40, 2))
    ours = [{"clean": made_outcomes([1] * 40), "fgsm": made_outcomes([1] * 20, some)}]
    theirs = [{"clean": made_outcomes([1] * 40), "fgsm": made_outcomes([0] * 20, some)}]
    found = paired_difference(ours, theirs, ["clean", "fgsm"])
    np.testing.assert_allclose([found.difference, found.low, found.high], 50.0)


def test_same_seed_same_interval_and_order_of_arguments_changes_the_sign():
    first, second = random_runs(3, 80, seed=5, accuracy=0.7), random_runs(3, 80, seed=6)
    names = ["clean", "fgsm"]
    found = paired_difference(first, second, names)
    assert paired_difference(first, second, names) == found
    assert paired_difference(first, second, names, seed=1) != found
    assert paired_difference(second, first, names).difference == pytest.approx(-found.difference)


@pytest.mark.parametrize(("spread", "lowest", "highest"), [(0.0, 0.95, 1.0), (0.05, 0.85, 0.98)])
def test_coverage(spread, lowest, highest):
    """
    Images that are hard for all models, and seeds that differ by `spread`: the interval of three seeds holds the truth as
    often as said or more while chance makes the seeds differ, and somewhat less often where they differ by more.
    """
    rng, truth, num_trials, num_images, inside = np.random.default_rng(0), 0.06, 200, 150, 0
    for _ in range(num_trials):
        difficulty = rng.uniform(0.2, 0.7, num_images)
        shared = rng.random(num_images)  # both ways of training are right on much the same images
        runs = {True: [], False: []}
        for _ in range(3):
            for is_better, of_seed in runs.items():
                chance = difficulty + is_better * truth + rng.normal(0, spread)
                draws = np.where(rng.random(num_images) < 0.5, shared, rng.random(num_images))
                of_seed.append({"clean": made_outcomes(draws < chance)})
        found = paired_difference(runs[True], runs[False], ["clean"], num_resamples=400)
        inside += found.low <= 100 * truth <= found.high
    assert lowest <= inside / num_trials <= highest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other_runs": []}, "as many seeds.*2 and 0"),
        ({"columns": []}, "`columns` is empty"),
        ({"columns": ["clean", "snow"]}, "'snow' was not measured in 4 of 4 runs"),
        ({"confidence": 1.0}, "`confidence`.*1.0"),
        ({"num_resamples": 0}, "`num_resamples`.*0"),
        ({"other_runs": [{"clean": made_outcomes([1, 0], [0, 2])}] * 2}, "different images"),
        (
            {"runs": [{"clean": made_outcomes([], [])}] * 2, "other_runs": [{"clean": made_outcomes([], [])}] * 2},
            "must have",
        ),
    ],
)
def test_bad_input_is_refused(changes, message):
    runs = [{"clean": made_outcomes([1, 0])}] * 2
    with pytest.raises(ValueError, match=message):
        paired_difference(**{"runs": runs, "other_runs": runs, "columns": ["clean"], **changes})
