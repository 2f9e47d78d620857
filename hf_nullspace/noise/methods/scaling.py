"""The largest scale of a noise at which a bound still holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...models.frozen import FrozenClassifier
from ..images import FrozenImages
from .steps import batch_means


# A bisection gives up on scales below this.
MIN_SCALE = 1e-6
# Largest norm of a noise, as a multiple of the norm of the patch embeddings. Only models whose outputs hardly depend on
# their input, such as one with a new head, reach it: their boundary of epsilon lies beyond any sensible noise.
MAX_RELATIVE_NORM = 10.0


def boundary_scale(
    error_at: Callable[[float], float],
    epsilon: float,
    max_scale: float = 1.0,
    tolerance: float = 0.02,
    start: float = 1.0,
) -> float:
    """
    The largest scale found at which `error_at(scale) <= epsilon`, assuming that the error grows with the scale.

    Brackets the boundary and closes in on it by interpolating in logarithms, where the error is nearly a straight line.

    Args:
        error_at (`Callable[[float], float]`): The error of the noise at a scale.
        epsilon (`float`): The bound.
        max_scale (`float`, *optional*, defaults to 1.0): Largest scale to try.
        tolerance (`float`, *optional*, defaults to 0.02): The search ends when the scale is known to this relative
            width, or the error is this near below epsilon.
        start (`float`, *optional*, defaults to 1.0): The scale to try first.

    Returns:
        `float`: The scale, or 0 if even a millionth of the noise exceeds epsilon.
    """
    inside, inside_error = 0.0, 0.0
    outside, outside_error = math.inf, math.inf
    scale = min(start, max_scale)
    while outside > inside * (1 + tolerance) and scale >= MIN_SCALE:
        error = error_at(scale)
        if error <= epsilon:
            inside, inside_error = scale, error
            if scale >= max_scale or error >= epsilon * (1 - tolerance) > 0:
                return scale
        else:
            outside, outside_error = scale, error
        if inside == 0.0:
            scale = outside * _step_towards(epsilon, outside_error, largest=1 / (1 + tolerance))
        elif outside == math.inf:
            scale = min(inside / _step_towards(inside_error, epsilon, largest=1 / (1 + tolerance)), max_scale)
        else:
            scale = _interpolate(inside, inside_error, outside, outside_error, epsilon)
    return inside


def _step_towards(smaller: float, larger: float, largest: float) -> float:
    """Ratio of scales whose errors are `smaller` and `larger` if the error is quadratic, between 1/4 and `largest`."""
    ratio = math.sqrt(smaller / larger) if math.isfinite(larger) and larger > 0 else 0.25
    return min(max(ratio, 0.25), largest)


def _interpolate(inside: float, inside_error: float, outside: float, outside_error: float, epsilon: float) -> float:
    """Where a straight line in logarithms meets epsilon, kept off the ends so that the bracket always shrinks."""
    share = 0.5
    if inside_error > 0 and math.isfinite(outside_error):
        share = math.log(epsilon / inside_error) / math.log(outside_error / inside_error)
    return inside * (outside / inside) ** min(max(share, 0.1), 0.9)


def scaled_to_boundary(
    classifier: FrozenClassifier, images: FrozenImages, direction: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The direction at the norm where the first batch's error is about epsilon, tried from the embeddings' own norm."""
    batch = next(images.batches())
    direction = direction * (images.embedding_norm / direction.norm())

    @torch.no_grad()
    def error_at(scale: float) -> float:
        return batch_means(classifier, batch, scale * direction)[0].item()

    scale = boundary_scale(error_at, epsilon, MAX_RELATIVE_NORM, tolerance=0.25)
    return direction * max(scale, MIN_SCALE)
