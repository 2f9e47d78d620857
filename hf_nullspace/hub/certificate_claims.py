"""Compares a published certificate with a new measurement of its noise."""

from __future__ import annotations

import math
from statistics import NormalDist

from ..noise.certificate import Certificate
from .claims import Claim, Estimate
from .outcome_claims import MIN_IMAGES, compare_shares


# How far apart the claimed and the expected bound or standard error may lie: they depend on the few images with large
# errors, and versions have other bounds.
BOUND_FACTOR = 10.0
# These means hardly depend on the choice of images.
CONTROL_FACTOR = 2.0


def compare_certificates(claimed: Certificate, measured: Certificate) -> list[Claim]:
    """
    Compares the image-dependent numbers of a certificate with a certificate that was measured again.

    Neither the claimed bound nor the claimed standard error says how sure the claimed mean is, since they are claimed too:
    the spread of the images measured now does.
    """
    claims = [_compare_mse(claimed, measured), _compare_bounds(claimed, measured)]
    for name in ("agreement", "permuted_agreement"):
        counts = [(round(getattr(row, name) * row.num_images), row.num_images) for row in (claimed, measured)]
        claims.append(compare_shares(name, *counts))
    claims += [_compare_means(name, claimed, measured) for name in ("permuted_probability_mse", "logit_distance")]
    claims += [_compare_standard_errors(claimed, measured), _compare_exchanged(claimed, measured)]
    return [*(claim.measured_now() for claim in claims), _compare_needed(claimed, measured)]


def _compare_mse(claimed: Certificate, measured: Certificate) -> Claim:
    half = NormalDist().inv_cdf(0.975) * measured.standard_error
    own = half * math.sqrt(measured.num_images / claimed.num_images)
    pairs = ((claimed.probability_mse, own), (measured.probability_mse, half))
    stated, found = [str(Estimate(value, max(0.0, value - reach), value + reach)) for value, reach in pairs]
    name = "probability_mse"
    if measured.num_images < MIN_IMAGES or not math.isfinite(half):
        return Claim(name, None, stated, found, f"{measured.num_images} images are too few; it takes {MIN_IMAGES}")
    if abs(claimed.probability_mse - measured.probability_mse) > own + half + 1e-6:
        return Claim(name, False, stated, found, "the intervals do not overlap")
    if own + half > max(claimed.epsilon, measured.probability_mse):
        return Claim(name, None, stated, found, "the images are too few to tell it from epsilon")
    return Claim(name, True, stated, found)


def _compare_bounds(claimed: Certificate, measured: Certificate) -> Claim:
    gap = claimed.probability_mse_upper - claimed.probability_mse
    expected = measured.probability_mse_upper - measured.probability_mse
    # Of few images a bound comes nearer to the mean with their number, of many with its root.
    ratio = measured.num_images / claimed.num_images
    low, high = sorted((expected * ratio, expected * math.sqrt(ratio)))
    stated, found = [f"{value:.4g}" for value in (claimed.probability_mse_upper, measured.probability_mse_upper)]
    name = "probability_mse_upper"
    if measured.num_images < MIN_IMAGES or not math.isfinite(expected):
        return Claim(name, None, stated, found, f"{measured.num_images} images are too few; it takes {MIN_IMAGES}")
    if gap < 0 or not low / BOUND_FACTOR - 1e-9 <= gap <= high * BOUND_FACTOR + 1e-9:
        return Claim(name, False, stated, found, f"{claimed.num_images} images give no such bound around the mean")
    converged = claimed.probability_mse_upper <= claimed.epsilon
    if claimed.converged and not converged:
        return Claim(name, False, stated, found, "it lies above epsilon, and is called within")
    return Claim(name, True, stated, found)


def _compare_standard_errors(claimed: Certificate, measured: Certificate) -> Claim:
    name = "standard_error"
    if math.isinf(claimed.standard_error):
        return Claim(name, None, reason="another version wrote the certificate, without it")
    expected = measured.standard_error * math.sqrt(measured.num_images / claimed.num_images)
    count = min(claimed.num_images, measured.num_images)
    return _compare_factors(name, claimed.standard_error, expected, count, BOUND_FACTOR)


def _compare_exchanged(claimed: Certificate, measured: Certificate) -> Claim:
    name = "exchanged_probability_mse"
    now = measured.exchanged_probability_mse
    if measured.num_images >= MIN_IMAGES and claimed.converged and now <= claimed.epsilon:
        stated, found = [f"{value:.4g}" for value in (claimed.exchanged_probability_mse, now)]
        return Claim(name, False, stated, found, "within epsilon any image could stand in the place of another")
    if math.isinf(claimed.exchanged_probability_mse):
        return Claim(name, None, reason="another version wrote the certificate, without it")
    return _compare_means(name, claimed, measured)


def _compare_needed(claimed: Certificate, measured: Certificate) -> Claim:
    stated = claimed.num_images_needed
    needed = measured.num_images_needed
    name = "num_images_needed"
    texts = (str(stated), str(needed))
    if claimed.converged and claimed.num_images < needed:
        return Claim(name, False, *texts, f"{claimed.num_images} images were measured, and it is called certified")
    if not stated:
        return Claim(name, None, reason="another version wrote the certificate, without it")
    return Claim(name, stated == needed, *texts, "" if stated == needed else "epsilon and confidence give another")


def _compare_means(name: str, claimed: Certificate, measured: Certificate) -> Claim:
    values = (getattr(claimed, name), getattr(measured, name))
    return _compare_factors(name, *values, min(claimed.num_images, measured.num_images), CONTROL_FACTOR)


def _compare_factors(name: str, claimed: float, measured: float, num_images: int, factor: float) -> Claim:
    stated, found = [f"{value:.4g}" for value in (claimed, measured)]
    if num_images < MIN_IMAGES:
        return Claim(name, None, stated, found, f"{num_images} images are too few; it takes {MIN_IMAGES}")
    values = (claimed, measured)
    holds = min(values) >= 0 and max(values) <= factor * min(values) + 1e-4
    return Claim(name, holds, stated, found, "" if holds else f"they differ by more than a factor of {factor:g}")
