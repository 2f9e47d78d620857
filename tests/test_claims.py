"""Claims against closed forms: intervals, overlap, and the table."""

import math

import pytest

from hf_nullspace.hub.claims import (
    Claim,
    Estimate,
    claims_table,
    compare_certificates,
    compare_columns,
    compare_estimates,
    compare_values,
)


def test_intervals_have_their_closed_forms(make_certificate):
    z = 1.959964
    all_right = Estimate.of_share(1.0, 16)
    assert (all_right.value, all_right.high) == (1.0, 1.0)
    assert all_right.low == pytest.approx(1 / (1 + z**2 / 16), rel=1e-6)
    half = Estimate.of_share(0.5, 100)
    assert half.high - half.value == pytest.approx(half.value - half.low)
    mse = Estimate.of_mse(
        make_certificate(probability_mse=0.02, probability_mse_upper=0.02 + 1.644854e-3, confidence=0.95)
    )
    assert (mse.low, mse.high) == pytest.approx((0.02 - z * 1e-3, 0.02 + z * 1e-3), rel=1e-6)


@pytest.mark.parametrize(("low", "holds"), [(0.3, True), (0.4, True), (0.41, False)])
def test_claims_hold_where_intervals_overlap(low, holds):
    claim = compare_estimates("x", Estimate(0.3, 0.2, 0.4), Estimate(low, low, 0.9))
    assert claim.holds is holds
    assert bool(claim.reason) is not holds


def test_values_may_differ_by_rounding_only():
    assert compare_values("norm", 100.0, 100.0 * (1 + 5e-5)).holds
    assert not compare_values("norm", 100.0, 100.0 * (1 + 5e-4)).holds


def test_certificates_are_compared_by_what_depends_on_images(make_certificate):
    claimed = make_certificate(num_images=1000)
    names = [claim.name for claim in compare_certificates(claimed, claimed)]
    assert names == ["probability_mse", "agreement", "permuted_agreement"]
    worse = make_certificate(num_images=1000, agreement=0.9)
    assert [claim.name for claim in compare_certificates(claimed, worse) if not claim.holds] == ["agreement"]
    unbounded = make_certificate(probability_mse_upper=math.inf)
    assert compare_certificates(claimed, unbounded)[0].holds


@pytest.mark.parametrize(("correct", "same_images", "holds"), [(92, True, True), (93, True, False), (93, False, True)])
def test_on_the_same_images_one_in_a_hundred_may_differ(correct, same_images, holds):
    rows = [
        {"accuracy": c / 2, "low": c / 2 - 4, "high": c / 2 + 4, "correct": c, "count": 200} for c in (90, correct)
    ]
    assert compare_columns("clean", *rows, same_images).holds is holds


def test_table_tells_failed_from_unchecked():
    claims = [Claim("a", True, "1", "2"), Claim("b", False, reason="wrong"), Claim("c", None, reason="no labels")]
    assert claims_table(claims).splitlines()[2:] == [
        "| a | 1 | 2 | holds |",
        "| b |  |  | FAILS: wrong |",
        "| c |  |  | not checked: no labels |",
    ]
