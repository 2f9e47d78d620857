"""One claim of a published checkpoint with the result of its check, and a table of claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..robustness.metrics import wilson_interval
from ..utils.escaping import plain_text


# If more claims than this are unchecked for the same reason, they share a row.
MAX_ROWS_OF_A_REASON = 5
VERDICTS = {True: "holds", False: "FAILS: ", None: "not checked: "}


@dataclass(frozen=True)
class Claim:
    """
    A claim and its check.

    Args:
        name (`str`): What is claimed.
        holds (`bool` or `None`): Whether the check confirmed the claim; `None` if it could not be checked.
        claimed, measured (`str`): Both values, with their intervals where they have one.
        reason (`str`): Why the claim does not hold or could not be checked; empty if it holds.
        is_measurement (`bool`): Whether the check is a measurement with the published weights.
    """

    name: str
    holds: bool | None
    claimed: str = ""
    measured: str = ""
    reason: str = ""
    is_measurement: bool = False

    def measured_now(self) -> Claim:
        """A copy of the claim that is marked as a measurement."""
        return replace(self, is_measurement=True)


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

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals overlap."""
        return self.low <= other.high and other.low <= self.high


def compare_estimates(name: str, claimed: Estimate, measured: Estimate) -> Claim:
    """A claim that holds if both intervals overlap. Both numbers were measured on a sample of images."""
    holds = claimed.overlaps(measured)
    return Claim(name, holds, str(claimed), str(measured), "" if holds else "the intervals do not overlap")


def compare_values(name: str, claimed: float, measured: float, tolerance: float = 1e-4) -> Claim:
    """A claim about a number without sampling error, up to the relative `tolerance` of float32 sums."""
    holds = math.isclose(claimed, measured, rel_tol=tolerance, abs_tol=1e-9)
    reason = "" if holds else "the published tensor has another value"
    return Claim(name, holds, f"{claimed:.6g}", f"{measured:.6g}", reason)


def claims_table(claims: Sequence[Claim]) -> str:
    """
    The claims as a Markdown table, each with its 95 % interval in brackets. If many claims are unchecked for the same
    reason, they share a row.
    """
    lines = ["| claim | claimed | measured | |", "|---|---:|---:|---|"]
    for claim in _joined(claims):
        cells = [claim.name, claim.claimed, claim.measured, f"{VERDICTS[claim.holds]}{claim.reason}"]
        lines.append("| " + " | ".join(plain_text(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _joined(claims: Sequence[Claim]) -> list[Claim]:
    by_reason: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.holds is None:
            by_reason.setdefault(claim.reason, []).append(claim)
    joined = []
    for claim in claims:
        group = by_reason.get(claim.reason, []) if claim.holds is None else []
        if len(group) <= MAX_ROWS_OF_A_REASON:
            joined.append(claim)
        elif claim is group[0]:
            joined.append(replace(claim, name=f"{claim.name} to {group[-1].name} ({len(group)} claims)"))
    return joined
