"""An upper confidence bound on a mean, valid for any distribution of bounded values, and the images it needs."""

from __future__ import annotations

import math

import torch


# Halvings of an interval: what is left of one of length 1 is about the rounding of double precision.
HALVINGS = 50
# Share of the stake that is bet at the rate designed for values that are 0 or the largest possible. The rest is bet at
# the highest rate.
DESIGNED_STAKE = 0.7


def min_images(bound: float, confidence: float) -> int:
    """
    The fewest values that can bound a mean by `bound`, given as a share of their range, whatever the method.

    If a share `bound` of all images had the largest value and the others none, so many images would all show nothing
    with probability `1 - confidence`. 199 images for epsilon 0.03 of a range of 2, at 95 %.

    Args:
        bound (`float`): The bound to be shown, divided by the largest possible value.
        confidence (`float`): One-sided confidence.

    Returns:
        `int`: `ln(1 - confidence) / ln(1 - bound)`, rounded up; 1 where the bound is the whole range.
    """
    if bound >= 1:
        return 1
    exact = math.log1p(-confidence) / math.log1p(-bound)
    # A whole number that rounding moved up a little is that number.
    return max(1, math.ceil(exact * (1 - 1e-12)))


def betting_upper_bound(values: torch.Tensor, confidence: float, largest: float = 1.0) -> float:
    """
    One-sided upper confidence bound on the mean of independent values in `[0, largest]`, without any other assumption.

    Testing by betting (Waudby-Smith and Ramdas, 2024, "Estimating means of bounded random variables by betting"): if
    the mean were at least `m`, the capital of a player who bets on smaller values,

        capital(m) = product over i of (1 + bet * (m - values[i])),    0 <= bet <= 1 / (1 - m),

    would not grow in expectation, so it would reach `1 / (1 - confidence)` with probability at most `1 - confidence`. The
    bound is the smallest `m` at and above which the capital reaches that threshold. For every `m` the stake is split
    before a value is seen. 70 % are bet at the rate that is best against values of 0 or `largest` (see `_rates`): a few
    images with a changed prediction and large errors give about such values. 30 % are bet at the highest rate, which is
    best if all values are small. No bet depends on a value, so the capital is a sum of two products and independent of
    the order of the images. It decreases in every value, so larger errors give a larger bound, and the scale of a noise
    can be searched for with it.

    Args:
        values (`torch.Tensor` of shape `(count,)`): The values; rounding errors outside the range are clamped.
        confidence (`float`): In (0, 1).
        largest (`float`, *optional*, defaults to 1.0): The largest possible value.

    Returns:
        `float`: The bound, at most `largest`. If all values are 0 it is `largest * (1 - (1 - confidence) ** (1 / count))`.
        Infinite if a value is not finite, or there is none.
    """
    values = values.detach().to("cpu", torch.float64).flatten() / largest
    if not len(values) or not torch.isfinite(values).all():
        return math.inf
    # Sorted, so that rounding does not depend on the order of the images either.
    values = values.clamp(0.0, 1.0).sort().values
    threshold = -math.log1p(-confidence)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        mean = 0.5 * (low + high)
        low, high = (low, mean) if _log_capital(values, mean, confidence).item() >= threshold else (mean, high)
    return high * largest


def is_bounded_by(values: torch.Tensor, bound: float, confidence: float, largest: float = 1.0) -> torch.Tensor:
    """
    Whether [`betting_upper_bound`] is at most `bound`, for many sets of values at once and without finding it.

    Args:
        values (`torch.Tensor` of shape `(..., count)`): Finite values.
        bound (`float`): Below `largest`.
        confidence, largest (`float`): As in [`betting_upper_bound`].

    Returns:
        `torch.Tensor` of shape `(...)`, boolean.
    """
    values = (values.double() / largest).clamp(0.0, 1.0)
    return _log_capital(values, bound / largest, confidence) >= -math.log1p(-confidence)


def _log_capital(values: torch.Tensor, mean: float, confidence: float) -> torch.Tensor:
    """Logarithm of the capital that a stake of 1 against `mean` becomes over the last axis of `values` in [0, 1]."""
    at_zero, at_largest = _rates(mean, -math.log1p(-confidence) / values.shape[-1])
    # Sums of logarithms, since products of many small factors would underflow.
    designed = torch.log(at_zero * (1 - values) + at_largest * values).sum(-1)
    highest = torch.log1p(-values).sum(-1) - values.shape[-1] * math.log1p(-mean)
    return torch.logaddexp(designed + math.log(DESIGNED_STAKE), highest + math.log1p(-DESIGNED_STAKE))


def _rates(mean: float, evidence: float) -> tuple[float, float]:
    """
    What the capital is multiplied by at a value of 0 and at the largest: `(1 - p) / (1 - mean)` and `p / mean`.

    `p < mean` is the share of largest values at which a test of values that are 0 or largest just reaches its threshold:
    the divergence of `p` from `mean` is `evidence` (the logarithm of the threshold, per value), and `p` is 0 where no
    share reaches it. Both rates grow with `mean`.
    """
    if -math.log1p(-mean) <= evidence:
        return 1 / (1 - mean), 0.0
    low, high = 0.0, mean
    for _ in range(HALVINGS):
        share = 0.5 * (low + high)
        # The larger divergence belongs to the smaller share.
        low, high = (share, high) if _divergence(share, mean) > evidence else (low, share)
    return (1 - high) / (1 - mean), high / mean


def _divergence(share: float, mean: float) -> float:
    """Kullback-Leibler divergence of a coin of `share` from one of `mean`."""
    at_largest = share * math.log(share / mean) if share > 0 else 0.0
    return at_largest + (1 - share) * (math.log1p(-share) - math.log1p(-mean))
