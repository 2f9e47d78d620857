"""Pictures under noise that a model hardly sees, each beside the same noise with its elements permuted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..exact_nullspace.patch_matrix import PatchMatrix
from ..exact_nullspace.patch_nullspace import PatchNullspace
from ..models.class_names import class_names
from ..models.frozen import frozen_classifier
from ..models.objectives import is_multi_label, probabilities, probability_mse
from ..models.preprocessing import Preprocessing
from ..noise.config import NullspaceConfig
from ..noise.controls import permute_elements, permuted_control
from ..noise.images import read_images
from ..noise.methods import NOISE_METHODS, BoundaryMethod
from ..noise.methods.base import SearchInputs
from ..noise.methods.scaling import boundary_scale
from ..utils.escaping import plain_text
from ..utils.random import keyed_generator
from .exact import predict


# Classes named under a picture.
TOP_CLASSES = 3
# Longest name of a class under a picture; ImageNet's are lists of synonyms, of which the first is shown.
NAME_LENGTH = 24


@dataclass(frozen=True)
class NoisyPictures:
    """
    A picture, the same picture under a noise, and under that noise permuted, exactly as the model read all three.

    Args:
        noise (`str`): What noise it is, in words.
        pixels (`torch.Tensor` of shape `(3, channels, height, width)`): The three pictures, in [0, 1].
        probabilities (`torch.Tensor` of shape `(3, num_labels)`): What the model gives each class.
        class_names (`Sequence[str]`): Names of the classes.
        probability_mse (`tuple[float, float]`): [`~objectives.probability_mse`] of the noise and of its control.
        residual (`float` or `None`): For encoder noise, the share of its norm that no pixels in [0, 1] can give.
    """

    noise: str
    pixels: torch.Tensor
    probabilities: torch.Tensor
    class_names: Sequence[str]
    probability_mse: tuple[float, float]
    residual: float | None = None

    def top_classes(self, index: int, count: int = TOP_CLASSES) -> list[tuple[str, float]]:
        """Names and probabilities of the most probable classes of one of the three pictures, the largest first."""
        return top_classes(self.probabilities[index], self.class_names, count)

    def largest_change(self, index: int) -> float:
        """Largest change of a class' probability from the picture without noise."""
        return (self.probabilities[index] - self.probabilities[0]).abs().max().item()

    def rms(self, index: int) -> float:
        """Root mean square of what was added to the picture, where black is 0 and white is 1."""
        return (self.pixels[index] - self.pixels[0]).square().mean().sqrt().item()

    def to_dict(self) -> dict[str, Any]:
        """The numbers under the figure as one row of a table."""
        row: dict[str, Any] = {"noise": self.noise, "residual": self.residual}
        for prefix, index in (("", 1), ("permuted_", 2)):
            row[f"{prefix}noise_rms"] = self.rms(index)
            row[f"{prefix}probability_mse"] = self.probability_mse[index - 1]
            row[f"{prefix}largest_probability_change"] = self.largest_change(index)
        for prefix, index in (("", 0), ("noisy_", 1), ("permuted_", 2)):
            row[f"{prefix}classes"] = ", ".join(
                f"{name} {100 * share:.1f} %" for name, share in self.top_classes(index)
            )
        return row


def top_classes(
    probabilities: torch.Tensor, class_names: Sequence[str], count: int = TOP_CLASSES
) -> list[tuple[str, float]]:
    """
    Names and probabilities of the most probable classes, the largest first.

    Args:
        probabilities (`torch.Tensor` of shape `(num_labels,)`): Of one picture.
        class_names (`Sequence[str]`): Names of all classes.
        count (`int`, *optional*, defaults to 3): How many are returned.
    """
    values, places = probabilities.sort(descending=True, stable=True)
    names = [short_name(class_names[place]) for place in places[:count].tolist()]
    return list(zip(names, values[:count].tolist(), strict=True))


def short_name(name: str) -> str:
    """A class' name as it fits under a picture: the first of its synonyms, on one line."""
    return plain_text(name.split(",")[0].strip(), NAME_LENGTH)


def show_noise(
    model: nn.Module,
    preprocessing: Preprocessing,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    control: torch.Tensor,
    title: str,
    residual: float | None = None,
) -> NoisyPictures:
    """
    Runs a model on a picture without noise, with it, and with its control. What leaves [0, 1] is cut off before the model
    reads it, so that each of the three is a picture; exact noise made by [`PatchNullspace.sample_within`] never leaves it,
    and its control gets smaller by the cut.

    Args:
        model (`nn.Module`): The classifier.
        preprocessing ([`Preprocessing`]): Of its image processor.
        pixel_values (`torch.Tensor` of shape `(1, channels, height, width)`): The normalised picture.
        noise, control (`torch.Tensor` of the same shape): Normalised pixel noise.
        title (`str`): What noise it is, in words.
        residual (`float`, *optional*): See [`NoisyPictures`].
    """
    read = preprocessing.into_box(torch.cat([pixel_values, pixel_values + noise, pixel_values + control]))
    logits = predict(model, read)
    multi_label = is_multi_label(model)
    errors = probability_mse(logits[:1].expand(2, -1), logits[1:], multi_label).tolist()
    return NoisyPictures(
        title,
        preprocessing.denormalize(read).clamp(0, 1),
        probabilities(logits, multi_label),
        class_names(model, logits.shape[1]),
        (errors[0], errors[1]),
        residual,
    )


def show_exact_noise(
    model: nn.Module, preprocessing: Preprocessing, pixel_values: torch.Tensor, noise: torch.Tensor, seed: int = 42
) -> NoisyPictures:
    """A picture under exact nullspace noise that [`PatchNullspace.sample_within`] made for it; see [`show_noise`]."""
    control = permute_elements(noise, keyed_generator("shown control", seed))
    return show_noise(model, preprocessing, pixel_values, noise, control, "exact nullspace noise")


@dataclass(frozen=True)
class RealizedNoise:
    """
    Pixels that stand for a noise of the patch embeddings on one picture.

    Args:
        noise, control (`torch.Tensor` of shape `(1, channels, height, width)`): Normalised pixel noise for the noise, and
            for the same noise with its elements permuted.
        residual (`float`): Share of the noise's norm that no pixels in [0, 1] can give.
        scale (`float`): The part of the noise that was taken.
    """

    noise: torch.Tensor
    control: torch.Tensor
    residual: float
    scale: float


def realize_at_epsilon(
    model: nn.Module,
    preprocessing: Preprocessing,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    matrix: PatchMatrix,
    epsilon: float = NullspaceConfig.epsilon,
    seed: int = 42,
    max_steps: int = 200,
) -> RealizedNoise | None:
    """
    As much of a noise of the patch embeddings, put into pixels, as keeps a picture's `probability_mse` within epsilon.

    Pixels in [0, 1] cannot give every noise. Those whose embedding comes nearest are taken
    ([`PatchMatrix.realize_within`]), for the noise and for its control alike, and the error is measured on them.

    Args:
        model (`nn.Module`): The classifier.
        preprocessing ([`Preprocessing`]): Of its image processor.
        pixel_values (`torch.Tensor` of shape `(1, channels, height, width)`): The normalised picture.
        noise (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise, in units of the patch embeddings.
        matrix ([`PatchMatrix`]): The model's patch projection.
        epsilon (`float`, *optional*, defaults to 0.03): Largest `probability_mse`.
        seed (`int`, *optional*, defaults to 42): Seed of the permutation.
        max_steps (`int`, *optional*, defaults to 200): See [`PatchMatrix.realize_within`].

    Returns:
        [`RealizedNoise`], or `None` if no part of the noise is within epsilon.
    """
    clean = predict(model, pixel_values)
    multi_label = is_multi_label(model)

    def realized(noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return matrix.realize_within(noise, pixel_values, preprocessing.mean, preprocessing.std, max_steps)

    def error_at(scale: float) -> float:
        noisy = predict(model, pixel_values + realized(scale * noise)[0])
        return probability_mse(clean, noisy, multi_label).item()

    scale = boundary_scale(error_at, epsilon)
    if not scale:
        return None
    pixels, residual = realized(scale * noise)
    control, _ = realized(permuted_control(scale * noise, keyed_generator("permutation", seed)))
    return RealizedNoise(pixels, control, residual.item(), scale)


def search_encoder_noise(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    seed: int = 42,
    accelerator: Accelerator | None = None,
    patch_projection: str | None = None,
) -> torch.Tensor:
    """
    The largest noise of the patch embeddings that [`BoundaryMethod`] finds within epsilon on a few images; searched on
    them alone, so it says nothing about others.

    Args:
        model (`nn.Module`): The classifier.
        inputs (`dict[str, torch.Tensor]`): Model inputs, `pixel_values` among them.
        seed, accelerator, patch_projection (*optional*): As in [`synthesize_noise`].

    Returns:
        `torch.Tensor` of shape `(1, num_patches, hidden_size)` on the CPU.
    """
    config = NullspaceConfig(method=BoundaryMethod.name, seed=seed)
    with frozen_classifier(model, patch_projection, accelerator) as classifier:
        images = read_images(classifier, [inputs], min_images=1)
        generator = keyed_generator("shown noise", seed)
        searched = SearchInputs(classifier, images, config, generator, lambda: None)
        noise, _ = NOISE_METHODS[config.method].search(searched)
    return noise.tensor.cpu()


def show_both_noises(
    model: nn.Module,
    preprocessing: Preprocessing,
    inputs: dict[str, torch.Tensor],
    exact_noise: torch.Tensor | None,
    nullspace: PatchNullspace,
    seed: int = 42,
    **options: Any,
) -> list[NoisyPictures]:
    """
    The rows of the figure: exact noise on the first picture, and encoder noise, searched on all of them, on the last.

    Args:
        model, preprocessing: As in [`show_noise`].
        inputs (`dict[str, torch.Tensor]`): Model inputs of the pictures.
        exact_noise (`torch.Tensor` of the shape of their `pixel_values`, *optional*): Exact noise for them; without it the
            first row is left out.
        nullspace ([`PatchNullspace`]): The model's.
        seed (`int`, *optional*, defaults to 42): Seed of every random choice.
        options: `accelerator` and `patch_projection`, as in [`search_encoder_noise`].
    """
    values = inputs["pixel_values"]
    rows = []
    if exact_noise is not None:
        rows.append(show_exact_noise(model, preprocessing, values[:1], exact_noise[:1], seed))
    searched = search_encoder_noise(model, inputs, seed, **options)
    found = realize_at_epsilon(model, preprocessing, values[-1:], searched, nullspace, seed=seed)
    if found is not None:
        title = f"encoder noise at epsilon {NullspaceConfig.epsilon:g}"
        shown = (found.noise, found.control, title, found.residual)
        rows.append(show_noise(model, preprocessing, values[-1:], *shown))
    return rows
