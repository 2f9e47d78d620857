"""What is claimed of a noise, and the formulas behind each claim."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch


def probability_mse(clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
    """
    Squared change of the predicted probabilities, summed over classes: the eps criterion (paper, section 4).

    Args:
        clean_logits (`torch.Tensor` of shape `(batch_size, num_labels)` or `(batch_size, positions, num_labels)`):
            Logits of `f(u)`; with positions (the pixels of a segmentation), all quantities are means over them.
        noisy_logits (`torch.Tensor` of the same shape): Logits of `f(u + v)`.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, each value in [0, 2].
    """
    return _mean_over_positions((noisy_logits.softmax(-1) - clean_logits.softmax(-1)).square().sum(-1))


def logit_distance(clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of the logits, of shape `(batch_size,)`: the synthesis objective (paper, equation 5)."""
    return _mean_over_positions(torch.linalg.vector_norm(noisy_logits - clean_logits, dim=-1))


def agreement(clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
    """1 where the predicted class is unchanged and 0 elsewhere, of shape `(batch_size,)` (paper, figure 2)."""
    return _mean_over_positions((clean_logits.argmax(-1) == noisy_logits.argmax(-1)).to(clean_logits.dtype))


def _mean_over_positions(values: torch.Tensor) -> torch.Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(1)


def remove_hidden_mean(noise: torch.Tensor) -> torch.Tensor:
    """
    Subtracts each token's mean over the hidden axis.

    Every LayerNorm of a pre-norm encoder removes that mean, so it moves no logit at all however large it is. A norm
    that counted it would claim a large noise at no cost.
    """
    mean = noise.mean(-1, keepdim=True, dtype=torch.float64)
    return (noise - mean).to(noise.dtype)


def upper_confidence_bound(total: float, total_of_squares: float, count: int, confidence: float) -> float:
    """
    One-sided normal upper bound on a mean, from the sum and the sum of squares of `count` values.

    With a single value there is no spread to bound, and the result is infinite.
    """
    if count < 2:
        return math.inf
    mean = total / count
    variance = max(total_of_squares - count * mean**2, 0.0) / (count - 1)
    return mean + NormalDist().inv_cdf(confidence) * math.sqrt(variance / count)


@dataclass(frozen=True)
class Certificate:
    """
    What one noise does to one model, measured on images that its synthesis did not see.

    Args:
        epsilon (`float`): The bound that was asked for.
        confidence (`float`): One-sided confidence of `probability_mse_upper`.
        probability_mse (`float`): Mean over images of [`probability_mse`].
        probability_mse_upper (`float`): Its upper confidence bound.
        logit_distance (`float`): Mean over images of [`logit_distance`].
        agreement (`float`): Share of images whose predicted class is unchanged.
        permuted_probability_mse (`float`): The control: the same for the noise with its elements permuted.
        permuted_agreement (`float`): The control's agreement.
        norm (`float`): Euclidean norm of the noise over all tokens, hidden-axis mean excluded.
        raw_norm (`float`): The same with the mean included, as it was given.
        token_norm_min, token_norm_median, token_norm_max (`float`): How the norm spreads over the tokens.
        converged (`bool`): Whether `probability_mse_upper <= epsilon`, and the noise moves the logits at all.
        num_images (`int`): Images measured on.
        steps (`int`): Optimizer steps that made the noise.
        seconds (`float`): Wall-clock time of its synthesis.
    """

    epsilon: float
    confidence: float
    probability_mse: float
    probability_mse_upper: float
    logit_distance: float
    agreement: float
    permuted_probability_mse: float
    permuted_agreement: float
    norm: float
    raw_norm: float
    token_norm_min: float
    token_norm_median: float
    token_norm_max: float
    converged: bool
    num_images: int
    steps: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-serialisable `dict`; an infinite bound becomes `None`."""
        values = dataclasses.asdict(self)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        """Inverse of [`Certificate.to_dict`]."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"A certificate has the fields {sorted(names)}, but this one lacks {sorted(names - set(values))} and "
                f"adds {sorted(set(values) - names)}."
            )
        return cls(**{key: math.inf if value is None else value for key, value in values.items()})


def token_norms(noise: torch.Tensor) -> torch.Tensor:
    """Norm of each token, of shape `(noises, num_patches)`, with the hidden-axis mean excluded."""
    return torch.linalg.vector_norm(remove_hidden_mean(noise), dim=-1)
