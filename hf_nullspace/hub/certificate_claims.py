"""A certificate beside what its noise does now."""

from __future__ import annotations

import math
from statistics import NormalDist

from ..certificate import Certificate
from .claims import Claim, Estimate
from .outcome_claims import MIN_IMAGES, compare_shares


# How far apart the claimed and the expected distance of bound and mean may lie: versions have other bounds.
BOUND_FACTOR = 10.0
# The permuted control hardly depends on which images it is measured on.
CONTROL_FACTOR = 2.0


def compare_certificates(claimed: Certificate, measured: Certificate) -> list[Claim]:
    """
    The numbers of a certificate that depend on images, against a certificate measured now.

    The claimed bound does not say how sure the claimed mean is, since it is claimed too: the spread of the images measured
    now does.
    """
    claims = [_compare_mse(claimed, measured), _compare_bounds(claimed, measured)]
    for name in ("agreement", "permuted_agreement"):
        counts = [(round(getattr(row, name) * row.num_images), row.num_images) for row in (claimed, measured)]
        claims.append(compare_shares(name, *counts))
    claims.append(_compare_control(claimed, measured))
    return [claim.measured_now() for claim in claims]


def _spread(certificate: Certificate) -> float:
    """Half the length of the 95 % interval of the mean, by the bound."""
    gap = certificate.probability_mse_upper - certificate.probability_mse
    return gap * NormalDist().inv_cdf(0.975) / NormalDist().inv_cdf(certificate.confidence)


def _compare_mse(claimed: Certificate, measured: Certificate) -> Claim:
    half = _spread(measured)
    own = half * math.sqrt(measured.num_images / claimed.num_images)
    pairs = ((claimed.probability_mse, own), (measured.probability_mse, half))
    texts = [str(Estimate(value, max(0.0, value - reach), value + reach)) for value, reach in pairs]
    name = "probability_mse"
    if measured.num_images < MIN_IMAGES or not math.isfinite(half):
        return Claim(name, None, *texts, f"{measured.num_images} images are too few; it takes {MIN_IMAGES}")
    if abs(claimed.probability_mse - measured.probability_mse) > own + half + 1e-6:
        return Claim(name, False, *texts, "the intervals do not overlap")
    if own + half > max(claimed.epsilon, measured.probability_mse):
        return Claim(name, None, *texts, "the images are too few to tell it from epsilon")
    return Claim(name, True, *texts)


def _compare_bounds(claimed: Certificate, measured: Certificate) -> Claim:
    gap = claimed.probability_mse_upper - claimed.probability_mse
    expected = measured.probability_mse_upper - measured.probability_mse
    expected *= math.sqrt(measured.num_images / claimed.num_images)
    texts = [f"{value:.4g}" for value in (claimed.probability_mse_upper, measured.probability_mse_upper)]
    name = "probability_mse_upper"
    if measured.num_images < MIN_IMAGES or not math.isfinite(expected):
        return Claim(name, None, *texts, f"{measured.num_images} images are too few; it takes {MIN_IMAGES}")
    if gap < 0 or not expected / BOUND_FACTOR - 1e-9 <= gap <= expected * BOUND_FACTOR + 1e-9:
        return Claim(name, False, *texts, f"{claimed.num_images} images give no such bound around the mean")
    converged = claimed.probability_mse_upper <= claimed.epsilon
    if claimed.converged and not converged:
        return Claim(name, False, *texts, "it lies above epsilon, and is called within")
    return Claim(name, True, *texts)


def _compare_control(claimed: Certificate, measured: Certificate) -> Claim:
    values = (claimed.permuted_probability_mse, measured.permuted_probability_mse)
    texts = [f"{value:.4g}" for value in values]
    name = "permuted_probability_mse"
    if measured.num_images < MIN_IMAGES:
        return Claim(name, None, *texts, f"{measured.num_images} images are too few; it takes {MIN_IMAGES}")
    holds = max(values) <= CONTROL_FACTOR * min(values) + 1e-4
    return Claim(name, holds, *texts, "" if holds else f"they differ by more than a factor of {CONTROL_FACTOR:g}")
