"""The upper bound on a mean: closed forms, and how often it misses on skewed values."""

import math

import pytest
import torch

from hf_nullspace.noise.confidence import DESIGNED_STAKE, betting_upper_bound, is_bounded_by, min_images


@pytest.mark.parametrize(
    "epsilon, largest, confidence, expected",
    [
        (0.03, 2, 0.95, 199),
        (0.01, 2, 0.95, 598),
        (0.1, 2, 0.95, 59),
        (0.03, 10, 0.95, 998),
        (0.5, 1, 0.75, 2),
        (3, 2, 0.9, 1),
    ],
)
def test_fewest_images(epsilon, largest, confidence, expected):
    assert min_images(epsilon / largest, confidence) == expected


@pytest.mark.parametrize(
    "count, confidence, largest", [(1, 0.95, 2.0), (199, 0.95, 2.0), (512, 0.9, 1.0), (30, 0.99, 7.0)]
)
def test_bound_of_zeros_is_the_smallest_there_is(count, confidence, largest):
    bound = betting_upper_bound(torch.zeros(count), confidence, largest)
    assert bound == pytest.approx(largest * (1 - (1 - confidence) ** (1 / count)), rel=1e-9)


def test_fewest_images_are_those_whose_zeros_show_epsilon():
    for epsilon in (0.01, 0.03, 0.1, 0.7):
        count = min_images(epsilon / 2, 0.95)
        assert betting_upper_bound(torch.zeros(count), 0.95, 2.0) <= epsilon
        assert betting_upper_bound(torch.zeros(count - 1), 0.95, 2.0) > epsilon


@pytest.mark.parametrize("ones, count", [(1, 512), (3, 200), (40, 64), (63, 64)])
def test_bound_of_zeros_and_ones_is_near_that_of_chernoff(ones, count):
    """At the bound, the divergence of the share of ones is the logarithm of what the larger stake has to reach."""
    bound, share = betting_upper_bound((torch.arange(count) < ones).float(), 0.95), ones / count

    def divergence(mean):
        return share * math.log(share / mean) + (1 - share) * math.log((1 - share) / (1 - mean))

    assert math.log(20) <= count * divergence(bound) <= 1.25 * math.log(20 / DESIGNED_STAKE)


def test_all_values_are_the_largest():
    assert betting_upper_bound(torch.full((50,), 2.0), 0.95, 2.0) == 2.0
    assert betting_upper_bound(torch.full((50,), 2.0 + 1e-6), 0.95, 2.0) == 2.0  # rounding of a sum of squares


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_bound_without_finite_values(value):
    assert betting_upper_bound(torch.tensor([0.1, value]), 0.95) == math.inf
    assert betting_upper_bound(torch.zeros(0), 0.95) == math.inf


def test_no_order_of_the_values_changes_a_bit_of_it():
    values = torch.rand(301, generator=torch.Generator().manual_seed(0)) ** 8
    bounds = {betting_upper_bound(values[torch.randperm(301)], 0.95) for _ in range(5)}
    assert bounds == {betting_upper_bound(values.flip(0), 0.95)}


def test_bound_grows_with_every_value_and_with_confidence():
    values = torch.rand(100, generator=torch.Generator().manual_seed(1)) ** 6
    bounds = [betting_upper_bound(scale * values, 0.95) for scale in (0.0, 1e-6, 0.1, 0.5, 0.9, 1.0)]
    assert bounds == sorted(bounds) and len(set(bounds)) == len(bounds)
    for place in (0, 50, 99):
        larger = values.clone()
        larger[place] += 0.05
        assert betting_upper_bound(larger, 0.95) > bounds[-1]
    by_confidence = [betting_upper_bound(values, confidence) for confidence in (0.5, 0.9, 0.95, 0.999)]
    assert by_confidence == sorted(by_confidence)


def test_bound_nears_the_mean():
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(2)) ** 4
    assert 0.2 < betting_upper_bound(values, 0.95) < 0.21


def two_values(count, generator):
    return (torch.rand(count, generator=generator) < 0.012).double() * 2, 0.024


def lognormal(count, generator):
    values = (
        torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).mul(2.5).sub(7).exp()
    )
    values = values.clamp_max(2)
    return values[torch.randint(len(values), (count,), generator=generator)], values.mean().item()


def mostly_zero_else_uniform(count, generator):
    hit = torch.rand(count, generator=generator) < 0.03
    return hit * 2 * torch.rand(count, generator=generator, dtype=torch.float64), 0.03


@pytest.mark.parametrize("count", [pytest.param(30, marks=pytest.mark.slow), 200])
@pytest.mark.parametrize("draw", [two_values, lognormal, mostly_zero_else_uniform])
def test_bound_misses_a_skewed_mean_no_more_often_than_claimed(draw, count):
    """A normal bound misses the same means in 15 to 70 % of the draws."""
    generator, misses, normal_misses, draws = torch.Generator().manual_seed(count), 0, 0, 400
    for _ in range(draws):
        values, mean = draw(count, generator)
        misses += betting_upper_bound(values, 0.9, 2.0) < mean
        normal_misses += (values.mean() + 1.2816 * values.std() / math.sqrt(count)).item() < mean
    # 0.1 plus three standard errors of the simulation.
    assert misses / draws <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / draws)
    assert normal_misses / draws > 0.1 + 3 * math.sqrt(0.1 * 0.9 / draws)


def test_comparing_with_the_bound_takes_no_search_for_it():
    values = 2 * torch.rand(6, 90, generator=torch.Generator().manual_seed(3)) ** torch.arange(1, 7)[:, None]
    bounds = [betting_upper_bound(row, 0.95, 2.0) for row in values]
    for bound in bounds:
        expected = [other <= bound + 1e-9 for other in bounds]
        assert is_bounded_by(values, bound + 1e-9, 0.95, 2.0).tolist() == expected
