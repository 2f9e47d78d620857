"""Claims against closed forms: intervals, overlap, and the table."""

import pytest
import torch
from made_outcomes import made_outcomes

from hf_nullspace.hub.certificate_claims import compare_certificates
from hf_nullspace.hub.claims import Claim, Estimate, claims_table, compare_estimates, compare_values
from hf_nullspace.hub.outcome_claims import MIN_IMAGES, compare_outcomes, compare_shares
from hf_nullspace.noise.confidence import betting_upper_bound
from hf_nullspace.robustness.outcomes import Outcomes


def test_intervals_have_their_closed_forms():
    z = 1.959964
    all_right = Estimate.of_share(1.0, 16)
    assert (all_right.value, all_right.high) == (1.0, 1.0)
    assert all_right.low == pytest.approx(1 / (1 + z**2 / 16), rel=1e-6)
    half = Estimate.of_share(0.5, 100)
    assert half.high - half.value == pytest.approx(half.value - half.low)


@pytest.mark.parametrize(("low", "holds"), [(0.3, True), (0.4, True), (0.41, False)])
def test_claims_hold_where_intervals_overlap(low, holds):
    claim = compare_estimates("x", Estimate(0.3, 0.2, 0.4), Estimate(low, low, 0.9))
    assert claim.holds is holds
    assert bool(claim.reason) is not holds


def test_values_may_differ_by_rounding_only():
    assert compare_values("norm", 100.0, 100.0 * (1 + 5e-5)).holds
    assert not compare_values("norm", 100.0, 100.0 * (1 + 5e-4)).holds


NEW_FIELDS = {"standard_error": 0.001, "exchanged_probability_mse": 1.2, "num_images_needed": 199}


def failing(claimed, measured):
    return [claim.name for claim in compare_certificates(claimed, measured) if claim.holds is False]


def test_certificates_are_compared_by_what_depends_on_images(make_certificate):
    def make(**fields):
        return make_certificate(**{"num_images": 1000, **NEW_FIELDS, **fields})

    claimed = make()
    names = ["probability_mse", "probability_mse_upper", "agreement", "permuted_agreement"]
    names += [
        "permuted_probability_mse",
        "logit_distance",
        "standard_error",
        "exchanged_probability_mse",
        "num_images_needed",
    ]
    assert [claim.name for claim in compare_certificates(claimed, claimed)] == names
    assert all(claim.holds for claim in compare_certificates(claimed, claimed))
    # The last follows from epsilon, confidence and the kind of the model alone.
    assert [claim.is_measurement for claim in compare_certificates(claimed, claimed)] == 8 * [True] + [False]
    assert failing(claimed, make(agreement=0.9)) == ["agreement"]
    # Two means of standard error 0.001 are 3.92 of them apart where their 95 % intervals end.
    assert failing(make(probability_mse=0.0161), claimed) == []
    assert failing(make(probability_mse=0.016), claimed) == ["probability_mse"]
    # A bound or a standard error that is claimed far away does not make the claimed mean any vaguer.
    lax = make(probability_mse=0.1, probability_mse_upper=1.9, standard_error=1.0)
    assert failing(lax, claimed) == ["probability_mse", "probability_mse_upper", "standard_error"]
    assert failing(make(probability_mse_upper=0.0201), claimed) == ["probability_mse_upper"]
    for name, value in (("permuted_probability_mse", 0.9), ("exchanged_probability_mse", 0.5)):
        assert failing(make(**{name: value}), claimed) == [name]
    assert failing(make(standard_error=1e-5), make(standard_error=0.002)) == ["standard_error"]
    few = make(num_images=3)
    assert all(claim.holds is None for claim in compare_certificates(claimed, few)[:-1])


def test_what_a_certificate_leaves_out_does_not_certify_it(make_certificate):
    old, now = make_certificate(num_images=1000), make_certificate(num_images=1000, **NEW_FIELDS)
    assert failing(old, now) == []
    unknown = [claim.name for claim in compare_certificates(old, now) if claim.holds is None]
    assert unknown == list(NEW_FIELDS)
    assert failing(make_certificate(num_images=198), now) == ["num_images_needed"]
    assert failing(make_certificate(num_images=1000, **{**NEW_FIELDS, "num_images_needed": 9}), now) == [
        "num_images_needed"
    ]
    blind = make_certificate(num_images=1000, **{**NEW_FIELDS, "exchanged_probability_mse": 0.02})
    assert failing(old, blind) == ["exchanged_probability_mse"]


@pytest.mark.parametrize("error", [0.0, 0.01])
def test_bounds_of_few_and_of_many_images_are_compared(make_certificate, error):
    def certificate(count):
        generator = torch.Generator().manual_seed(count)
        errors = error * torch.rand(count, generator=generator)
        return make_certificate(
            probability_mse=errors.mean().item(),
            probability_mse_upper=betting_upper_bound(errors, 0.95, 2.0),
            num_images=count,
            converged=False,
            **{**NEW_FIELDS, "standard_error": errors.std().item() / count**0.5},
        )

    few, many = certificate(40), certificate(10_000)
    assert failing(many, few) == failing(few, many) == []


def outcomes_of(correct: torch.Tensor, confidence: float = 0.8, linf: float = 0.03) -> Outcomes:
    constants = {"confidence": confidence, "l2": 10 * linf, "linf": linf}
    return made_outcomes(correct, **{name: torch.full((len(correct),), value) for name, value in constants.items()})


@pytest.mark.parametrize(("differing", "holds"), [(0, True), (2, True), (3, False)])
def test_on_the_same_images_one_in_a_hundred_may_differ(differing, holds):
    right = torch.ones(200, dtype=torch.bool)
    now = right.clone()
    now[:differing] = False
    claim = compare_outcomes("clean", outcomes_of(right), outcomes_of(now), is_attacked=False)
    assert claim.holds is holds
    assert (f"{differing} of the same 200 images differ" == claim.reason) is not holds


def test_other_probabilities_or_distances_are_other_outcomes():
    right = torch.ones(200, dtype=torch.bool)
    claimed = outcomes_of(right)
    assert not compare_outcomes("clean", claimed, outcomes_of(right, confidence=0.7), is_attacked=False).holds
    assert not compare_outcomes("fgsm", claimed, outcomes_of(right, linf=0.02), is_attacked=True).holds
    assert compare_outcomes("clean", claimed, outcomes_of(right, confidence=0.79), is_attacked=False).holds


def test_few_images_can_refute_and_cannot_confirm():
    right = torch.ones(200, dtype=torch.bool)
    some = outcomes_of(right[:3])
    assert compare_outcomes("clean", outcomes_of(right), some, is_attacked=False).holds is None
    assert compare_outcomes("clean", outcomes_of(~right), some, is_attacked=False).holds is False
    assert compare_outcomes("clean", some, some, is_attacked=False).holds is True, "all images of the claim"
    # Of 29 images one in ten of which were changed, one at least shows it in 95 of 100 cases.
    assert 0.9**MIN_IMAGES <= 0.05 < 0.9 ** (MIN_IMAGES - 1)


@pytest.mark.parametrize(
    ("claimed", "measured", "holds"),
    [((90, 100), (180, 200), True), ((98, 100), (100, 200), False), ((2, 3), (2, 3), None), ((98, 100), (3, 3), None)],
)
def test_samples_of_other_images(claimed, measured, holds):
    assert compare_shares("clean", claimed, measured).holds is holds


def test_table_tells_failed_from_unchecked():
    claims = [Claim("a", True, "1", "2"), Claim("b", False, reason="wrong"), Claim("c", None, reason="no labels")]
    assert claims_table(claims).splitlines()[2:] == [
        "| a | 1 | 2 | holds |",
        "| b |  |  | FAILS: wrong |",
        "| c |  |  | not checked: no labels |",
    ]


def test_means_that_few_images_were_claimed_of_refute_nothing(make_certificate):
    def make(**fields):
        return make_certificate(**{"num_images": 1000, **NEW_FIELDS, **fields})

    means = ["permuted_probability_mse", "logit_distance", "standard_error"]
    few = make(num_images=MIN_IMAGES - 1, permuted_probability_mse=0.16, logit_distance=0.5)
    measured = make(permuted_probability_mse=0.07, logit_distance=0.2)
    found = {claim.name: claim.holds for claim in compare_certificates(few, measured)}
    assert [found[name] for name in means] == [None, None, None]
    assert {"permuted_probability_mse", "logit_distance"} <= set(
        failing(make(permuted_probability_mse=0.16, logit_distance=0.5), measured)
    )
