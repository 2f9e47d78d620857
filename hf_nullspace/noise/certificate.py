"""What is claimed of a noise, and the formulas behind each claim."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch


def remove_hidden_mean(noise: torch.Tensor) -> torch.Tensor:
    """
    Subtracts each token's mean over the hidden axis.

    Every LayerNorm of a pre-norm encoder removes that mean, so it changes no logit, however large it is. A norm that
    includes it would overstate the size of the noise.
    """
    mean = noise.mean(-1, keepdim=True, dtype=torch.float64)
    return (noise - mean).to(noise.dtype)


@dataclass(frozen=True)
class Certificate:
    """
    What one noise does to one model, measured on images that its synthesis did not see.

    It is a statement about the mean over images of the same distribution: with the given confidence, the mean
    `probability_mse` over all such images is at most `probability_mse_upper`. It says nothing about the worst image,
    about images of another distribution, or about other weights.

    Args:
        epsilon (`float`): The bound that was asked for.
        confidence (`float`): One-sided confidence of `probability_mse_upper`.
        probability_mse (`float`): Mean over images of [`probability_mse`].
        probability_mse_upper (`float`): Its upper confidence bound, [`~confidence.betting_upper_bound`].
        logit_distance (`float`): Mean over images of [`logit_distance`].
        agreement (`float`): Share of images whose prediction is unchanged.
        permuted_probability_mse (`float`): The control: the same for the noise with its elements permuted.
        permuted_agreement (`float`): The control's agreement.
        norm (`float`): Euclidean norm of the noise over all tokens, hidden-axis mean excluded.
        raw_norm (`float`): The same with the mean included, as it was given.
        token_norm_min, token_norm_median, token_norm_max (`float`): How the norm spreads over the tokens.
        converged (`bool`): Whether the noise is certified: [`~Certificate.is_certified`] at the time of measurement.
        num_images (`int`): Images measured on.
        steps (`int`): Optimizer steps that made the noise.
        seconds (`float`): Wall-clock time of its synthesis: reading its images, the search, and this measurement.
        num_images_needed (`int`): Fewest images that can show `epsilon` at this confidence, whatever the bound; 0 in
            certificates of earlier versions.
        exchanged_probability_mse (`float`): Mean `probability_mse` between two different clean images, as if noise
            exchanged the images. Infinite where it was not measured (earlier versions).
        standard_error (`float`): Of `probability_mse`; infinite where it was not measured (earlier versions).
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
    num_images_needed: int = 0
    exchanged_probability_mse: float = math.inf
    standard_error: float = math.inf

    @property
    def is_within_epsilon(self) -> bool:
        """Whether the mean measured on these images is within epsilon, without a confidence bound for others."""
        return self.probability_mse <= self.epsilon and self.logit_distance > 0

    @property
    def is_certified(self) -> bool:
        """Whether these numbers certify the noise: [`~Certificate.obstacle`] is `None`."""
        return self.obstacle is None

    @property
    def obstacle(self) -> str | None:
        """Why the noise is not certified, in words; `None` if it is."""
        if not self.logit_distance > 0:
            return "it moves no logit at all, which says that the model ignores its patch embeddings"
        if self.num_images < self.num_images_needed:
            return (
                f"{self.num_images} images were measured, but no fewer than {self.num_images_needed} can show a mean of "
                f"{self.epsilon:g} with a confidence of {100 * self.confidence:g} %"
            )
        if self.exchanged_probability_mse <= self.epsilon:
            return (
                f"the model tells its images apart by {self.exchanged_probability_mse:.3g} only, so that within epsilon "
                f"{self.epsilon:g} any image could stand in the place of another: an untrained head, or an epsilon "
                "too large"
            )
        if not self.probability_mse_upper <= self.epsilon:
            return f"the upper bound {self.probability_mse_upper:.4g} is above epsilon {self.epsilon:g}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a JSON-serialisable `dict`; an infinite bound becomes `None`."""
        values = dataclasses.asdict(self)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        """Inverse of [`Certificate.to_dict`]; fields that an earlier version did not write get their defaults."""
        names = {field.name for field in dataclasses.fields(cls)}
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if not required <= set(values) <= names:
            raise ValueError(
                f"A certificate has the fields {sorted(names)}, but this one lacks {sorted(required - set(values))} and "
                f"adds {sorted(set(values) - names)}."
            )
        fields: dict[str, Any] = {key: math.inf if value is None else value for key, value in values.items()}
        return cls(**fields)


def token_norms(noise: torch.Tensor) -> torch.Tensor:
    """Norm of each token, of shape `(noises, num_patches)`, with the hidden-axis mean excluded."""
    return torch.linalg.vector_norm(remove_hidden_mean(noise), dim=-1)
