"""What is claimed of a noise, and the formulas behind each claim."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from .objectives import decisions, probabilities


def probability_mse(clean_logits: torch.Tensor, noisy_logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """
    Squared change of the predicted probabilities, summed over classes: the eps criterion (paper, section 4).

    Args:
        clean_logits (`torch.Tensor` of shape `(batch_size, num_labels)` or `(batch_size, positions, num_labels)`):
            Logits of `f(u)`; with positions (the pixels of a segmentation), all quantities are means over them.
        noisy_logits (`torch.Tensor` of the same shape): Logits of `f(u + v)`.
        multi_label (`bool`, *optional*, defaults to `False`): Whether each label has a probability of its own (a
            sigmoid) instead of its share of one softmax; see [`~objectives.is_multi_label`].

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, each value in [0, 2], or in [0, num_labels] for a multi-label model.
    """
    change = probabilities(noisy_logits, multi_label) - probabilities(clean_logits, multi_label)
    return _mean_over_positions(change.square().sum(-1))


def logit_distance(clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of the logits, of shape `(batch_size,)`: the synthesis objective (paper, equation 5)."""
    return _mean_over_positions(torch.linalg.vector_norm(noisy_logits - clean_logits, dim=-1))


def agreement(clean_logits: torch.Tensor, noisy_logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """
    1 where the predicted class is unchanged and 0 elsewhere, of shape `(batch_size,)` (paper, figure 2).

    Of a multi-label model, 1 where the answer to every label is unchanged: its probability stays on its side of 1/2.
    """
    same = decisions(clean_logits, multi_label) == decisions(noisy_logits, multi_label)
    same = same.all(-1) if multi_label else same
    return _mean_over_positions(same.to(clean_logits.dtype))


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


@dataclass(frozen=True)
class Certificate:
    """
    What one noise does to one model, measured on images that its synthesis did not see.

    It is a statement about images like those measured, and about their mean: with the confidence given, the mean
    `probability_mse` over all such images is at most `probability_mse_upper`. It says nothing about the worst image, about
    images of another kind, nor about other weights.

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
        converged (`bool`): Whether the noise is certified: [`~Certificate.is_certified`] as it was measured.
        num_images (`int`): Images measured on.
        steps (`int`): Optimizer steps that made the noise.
        seconds (`float`): Wall-clock time of its synthesis: reading its images, the search, and this measurement.
        num_images_needed (`int`): Fewest images that can show `epsilon` at this confidence, whatever the bound; 0 in
            certificates of earlier versions.
        exchanged_probability_mse (`float`): Mean `probability_mse` between two different clean images: what noise does
            that puts another image in the place of each. Infinite where it was not measured (earlier versions).
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
        """Whether the measured mean is within epsilon: of these images, and without confidence about others."""
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
        return cls(**{key: math.inf if value is None else value for key, value in values.items()})


def token_norms(noise: torch.Tensor) -> torch.Tensor:
    """Norm of each token, of shape `(noises, num_patches)`, with the hidden-axis mean excluded."""
    return torch.linalg.vector_norm(remove_hidden_mean(noise), dim=-1)
