"""Measures what a noise does to a model: the numbers of a certificate, on any images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from ..models.frozen import FrozenClassifier, frozen_classifier
from ..models.injection import check_noise_tensor
from ..models.objectives import Objective, logit_distance, probabilities
from ..utils.random import keyed_generator
from .certificate import Certificate, remove_hidden_mean, token_norms
from .confidence import betting_upper_bound
from .config import NullspaceConfig
from .controls import permuted_control
from .images import FrozenImages, read_images
from .kinds import Noise, SharedNoise
from .nullspace_noise import NullspaceNoise


def measure_noise(
    model: nn.Module,
    noise: NullspaceNoise | torch.Tensor,
    dataloader: Iterable[dict[str, torch.Tensor]],
    config: NullspaceConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    patch_projection: str | None = None,
    objective: Objective | None = None,
) -> Certificate:
    """
    Measures the numbers of a certificate on the given images.

    It measures exactly what [`inject_noise`] adds. A tensor is used in full, including its mean over the hidden axis.

    Args:
        model (`nn.Module`): The classifier; frozen and in eval mode during the call, and restored afterwards.
        noise ([`NullspaceNoise`] or `torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise.
        dataloader (iterable of `dict`): Yields batches with `pixel_values`; all of it is read.
        config ([`NullspaceConfig`], *optional*): Gives epsilon, confidence and the seed of the permuted control.
            Defaults to the noise's own.
        accelerator (`Accelerator`, *optional*): For several processes, devices and autocast.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        objective (`Callable`, *optional*): As in [`synthesize_noise`].

    Returns:
        [`Certificate`]: With `steps` and `seconds` 0, since nothing is synthesised.
    """
    is_saved = isinstance(noise, NullspaceNoise)
    config = check_config(config) or (noise.config if is_saved else NullspaceConfig())
    measured = noise.noise if is_saved else SharedNoise(check_noise_tensor(noise))
    if len(measured.tensor) > 1:
        raise ValueError(
            f"`noise` must be one noise of shape (1, num_patches, hidden_size), but has shape {tuple(measured.tensor.shape)}. Measure "
            "one at a time: `noise[index : index + 1]`."
        )
    with frozen_classifier(model, patch_projection, accelerator, objective) as classifier:
        images = read_images(classifier, dataloader, min_images=2)
        check_epsilon(config, classifier.largest_error)
        if is_saved and noise.grid and images.grid and noise.grid != images.grid:
            raise ValueError(
                f"The noise is of a grid of {noise.grid[0]} x {noise.grid[1]} patches, but these images have one of "
                f"{images.grid[0]} x {images.grid[1]}. Resize it first: `resize_noise(noise.tensor, {images.grid}, "
                f"{noise.grid})`."
            )
        generator = keyed_generator("permutation", config.seed, 0)
        return certify(classifier, images, measured.to(classifier.device), config, generator)


def check_config(config: NullspaceConfig | None) -> NullspaceConfig | None:
    """
    Raises:
        `TypeError`: If `config` is neither a [`NullspaceConfig`] nor `None`.
    """
    if config is not None and not isinstance(config, NullspaceConfig):
        raise TypeError(f"`config` must be a `NullspaceConfig`, but got a `{type(config).__name__}`.")
    return config


def check_epsilon(config: NullspaceConfig, largest: float) -> None:
    """
    Args:
        config ([`NullspaceConfig`]): Gives epsilon.
        largest (`float`): The largest possible `probability_mse` of an image; see [`~objectives.largest_probability_mse`].

    Raises:
        `ValueError`: If every noise is within epsilon, since no change of this model's probabilities is larger.
    """
    if config.epsilon >= largest:
        raise ValueError(
            f"`epsilon` is {config.epsilon:g}, but no noise can change this model's probabilities by more than "
            f"{largest:g} (summed squares over the labels), so that it would exclude none. Give a "
            f"smaller one; {NullspaceConfig.epsilon} is the default."
        )


@torch.no_grad()
def measure_probability_mse(
    classifier: FrozenClassifier, images: FrozenImages, noise: Noise, confidence: float
) -> tuple[float, float]:
    """Mean `probability_mse` of `noise` over the images of all processes, and its upper confidence bound."""
    errors = measure_errors(classifier, images, noise)
    return errors.mean().item(), betting_upper_bound(errors, confidence, classifier.largest_error)


@torch.no_grad()
def measure_errors(classifier: FrozenClassifier, images: FrozenImages, noise: Noise) -> torch.Tensor:
    """`probability_mse` of `noise` on each image of all processes, in the order of their places, in float64 on the CPU."""
    return measure_outcomes(classifier, images, noise.at).probability_mse


@torch.no_grad()
def certify(
    classifier: FrozenClassifier,
    images: FrozenImages,
    noise: Noise,
    config: NullspaceConfig,
    generator: torch.Generator,
    steps: int = 0,
    seconds: float = 0.0,
    measured: Outcomes | None = None,
) -> Certificate:
    """
    The certificate of a noise on the given images.

    Args:
        classifier ([`FrozenClassifier`]): The model.
        images ([`FrozenImages`]): The images.
        noise ([`Noise`]): The noise, on the device of the model. Its `tensor` gives the norms.
        config ([`NullspaceConfig`]): Gives epsilon and confidence.
        generator (`torch.Generator`): Draws the permuted control.
        steps (`int`, *optional*, defaults to 0): Optimizer steps that made the noise.
        seconds (`float`, *optional*, defaults to 0.0): Time that took.
        measured ([`Outcomes`], *optional*): What the noise does to the images, where that has been measured.
    """

    def permuted(positions: torch.Tensor) -> torch.Tensor:
        # The same order for every batch.
        return permuted_control(noise.at(positions), generator.clone_state())

    measured = measure_outcomes(classifier, images, noise.at) if measured is None else measured
    control = measure_outcomes(classifier, images, permuted)
    spread = token_norms(noise.tensor)
    certificate = Certificate(
        epsilon=config.epsilon,
        confidence=config.confidence,
        probability_mse=measured.probability_mse.mean().item(),
        probability_mse_upper=betting_upper_bound(
            measured.probability_mse, config.confidence, classifier.largest_error
        ),
        logit_distance=measured.logit_distance.mean().item(),
        agreement=measured.agreement.mean().item(),
        permuted_probability_mse=control.probability_mse.mean().item(),
        permuted_agreement=control.agreement.mean().item(),
        norm=remove_hidden_mean(noise.tensor).norm().item(),
        raw_norm=noise.tensor.norm().item(),
        token_norm_min=spread.min().item(),
        token_norm_median=spread.median().item(),
        token_norm_max=spread.max().item(),
        converged=False,
        num_images=len(images),
        steps=steps,
        seconds=seconds,
        num_images_needed=config.fewest_certificate_images(classifier.largest_error),
        exchanged_probability_mse=_exchanged_probability_mse(classifier, images),
        standard_error=measured.probability_mse.std().item() / math.sqrt(len(images)) if len(images) > 1 else math.inf,
    )
    return dataclasses.replace(certificate, converged=certificate.is_certified)


class Outcomes(NamedTuple):
    """
    What a noise does to each of some images, in float64 on the CPU, in the order of their places.

    Args:
        probability_mse, logit_distance, agreement (`torch.Tensor` of shape `(num_images,)`): See `models/objectives.py`.
        confidence_change (`torch.Tensor` of shape `(num_images,)`): Absolute change of the probability of the class that
            the clean image gets (its most probable label of several).
    """

    probability_mse: torch.Tensor
    logit_distance: torch.Tensor
    agreement: torch.Tensor
    confidence_change: torch.Tensor


@torch.no_grad()
def measure_outcomes(
    classifier: FrozenClassifier, images: FrozenImages, noise_at: Callable[[torch.Tensor], torch.Tensor]
) -> Outcomes:
    """
    Runs the images of all processes under noise. The results are the same on every process and for any number of them.

    Args:
        classifier ([`FrozenClassifier`]): The model.
        images ([`FrozenImages`]): The images.
        noise_at (`Callable`): From places of images to their noise: [`Noise.at`].
    """
    values = torch.zeros(len(Outcomes._fields), len(images), device=classifier.device)
    for batch in images.batches():
        if not len(batch):
            continue
        clean = batch.clean_logits
        noisy = classifier.logits(batch.inputs, noise_at(batch.positions), batch.embeddings)
        before, after = (probabilities(logits, classifier.multi_label) for logits in (clean, noisy))
        top = clean.argmax(-1, keepdim=True)
        rows = [
            classifier.probability_mse(clean, noisy),
            logit_distance(clean, noisy),
            classifier.agreement(clean, noisy),
            (after - before).gather(-1, top).abs().flatten(1).mean(1),
        ]
        values[:, batch.positions.to(classifier.device)] = torch.stack([row.float() for row in rows])
    # Each image is filled in by one process and zero on the others, so the sums are exact.
    return Outcomes(*classifier.sum_over_processes(values).cpu().double())


def _exchanged_probability_mse(classifier: FrozenClassifier, images: FrozenImages) -> float:
    """Mean `probability_mse` between two different clean images: twice the variance of their probabilities."""
    count = len(images)
    if count < 2:
        return 0.0
    own = probabilities(images.clean_logits, classifier.multi_label)
    mean = classifier.sum_over_processes(own.sum(0)) / count
    deviations = (own - mean).square().sum(-1)
    positions = deviations[0].numel() if len(deviations) else 1
    variance = classifier.sum_over_processes(deviations.sum()) / (count * positions)
    return 2 * variance.item() * count / (count - 1)
