"""One claim of a published checkpoint beside what was measured now, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from ..certificate import Certificate
from ..robustness.metrics import wilson_interval


VERDICTS = {True: "holds", False: "FAILS: ", None: "not checked: "}


@dataclass(frozen=True)
class Claim:
    """
    A claim and its check.

    Args:
        name (`str`): What is claimed.
        holds (`bool` or `None`): Whether the check found it so; `None` where it could not be checked.
        claimed, measured (`str`): Both values, with their intervals where they have one.
        reason (`str`): Why it does not hold; empty where it does.
    """

    name: str
    holds: bool | None
    claimed: str = ""
    measured: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean over images with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @classmethod
    def of_share(cls, share: float, count: int) -> Estimate:
        """A share of `count` images, with the interval of Wilson (1927)."""
        low, high = wilson_interval(share * count, count)
        return cls(share, low / 100, high / 100)

    @classmethod
    def of_mse(cls, certificate: Certificate) -> Estimate:
        """The `probability_mse` of a certificate, whose upper bound gives its standard error."""
        value = certificate.probability_mse
        error = (certificate.probability_mse_upper - value) / NormalDist().inv_cdf(certificate.confidence)
        half = NormalDist().inv_cdf(0.975) * error
        return cls(value, max(0.0, value - half), value + half)

    def overlaps(self, other: Estimate) -> bool:
        """Whether the intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def compare_estimates(name: str, claimed: Estimate, measured: Estimate) -> Claim:
    """A claim that holds where both intervals overlap: both numbers were measured on a sample of images."""
    holds = claimed.overlaps(measured)
    return Claim(name, holds, str(claimed), str(measured), "" if holds else "the intervals do not overlap")


def compare_values(name: str, claimed: float, measured: float, tolerance: float = 1e-4) -> Claim:
    """A claim of a number that no sample enters, up to the relative `tolerance` of float32 sums."""
    holds = math.isclose(claimed, measured, rel_tol=tolerance, abs_tol=1e-9)
    reason = "" if holds else "the published tensor has another value"
    return Claim(name, holds, f"{claimed:.6g}", f"{measured:.6g}", reason)


def compare_certificates(claimed: Certificate, measured: Certificate) -> list[Claim]:
    """The claims of a certificate that depend on images, against a certificate measured now."""
    claims = [compare_estimates("probability_mse", Estimate.of_mse(claimed), Estimate.of_mse(measured))]
    for name in ("agreement", "permuted_agreement"):
        shares = [Estimate.of_share(getattr(row, name), row.num_images) for row in (claimed, measured)]
        claims.append(compare_estimates(name, *shares))
    return claims


def compare_columns(name: str, claimed: dict[str, Any], measured: dict[str, Any], same_images: bool) -> Claim:
    """
    One column of a robustness report, claimed and measured.

    Args:
        name (`str`): What to call it.
        claimed, measured (`dict`): Its rows: `accuracy`, `low` and `high` in per cent, `correct` and `count`.
        same_images (`bool`): Whether both are of the very same images; other hardware may then change a few of them.
    """
    claim = compare_estimates(
        name, *(Estimate(row["accuracy"], row["low"], row["high"]) for row in (claimed, measured))
    )
    if not claim.holds or not same_images or claimed["count"] != measured["count"]:
        return claim
    differing = abs(claimed["correct"] - measured["correct"])
    if differing <= max(1, measured["count"] // 100):
        return claim
    return replace(claim, holds=False, reason=f"{differing} of the same {measured['count']} images differ")


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table, each with its 95 % interval in brackets."""
    lines = ["| claim | claimed | measured | |", "|---|---:|---:|---|"]
    lines += [
        f"| {claim.name} | {claim.claimed} | {claim.measured} | {VERDICTS[claim.holds]}{claim.reason} |"
        for claim in claims
    ]
    return "\n".join(lines)
