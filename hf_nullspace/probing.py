"""Measures what a noise does to a model: the numbers of a certificate, on any images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn

from .certificate import (
    Certificate,
    agreement,
    logit_distance,
    probability_mse,
    remove_hidden_mean,
    token_norms,
    upper_confidence_bound,
)
from .configuration import NullspaceConfig
from .frozen import FrozenClassifier, FrozenImages, frozen, read_images
from .image_noise import ImageNoise
from .noise import NullspaceNoise
from .objectives import Objective
from .randomness import keyed_generator


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
    Measures the numbers of a certificate on the given images; of a bank, those of its worst noise.

    Args:
        model (`nn.Module`): The classifier; frozen meanwhile, and put back as it was.
        noise ([`NullspaceNoise`] or `torch.Tensor` of shape `(bank_size, num_patches, hidden_size)`): The noise.
        dataloader (iterable of `dict`): Yields batches with `pixel_values`; all of it is read.
        config ([`NullspaceConfig`], *optional*): Gives epsilon, confidence and the seed of the permuted control.
            Defaults to the noise's own.
        accelerator (`Accelerator`, *optional*): For several processes, devices and autocast.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        objective (`Callable`, *optional*): As in [`synthesize_noise`].

    Returns:
        [`Certificate`]: With `steps` and `seconds` 0, since nothing is synthesised.
    """
    is_bank = isinstance(noise, NullspaceNoise)
    config = config or (noise.config if is_bank else NullspaceConfig())
    tensor = noise.tensor if is_bank else noise
    with frozen(model):
        classifier = FrozenClassifier(model, patch_projection, accelerator, objective)
        images = read_images(classifier, dataloader, max_images=2**62)
        draws = noise.image_noise(classifier.device) if is_bank else None
        certificates = [
            certify(classifier, images, row, config, keyed_generator("permutation", config.seed, index), draws=draws)
            for index, row in enumerate(tensor.to(classifier.device).split(1))
        ]
    return max(certificates, key=lambda certificate: certificate.probability_mse)


def permute_elements(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    The control: all elements of `noise` in a random order. Same norm, direction destroyed (paper, figure 2).

    Args:
        noise (`torch.Tensor`): Noise of any shape.
        generator (`torch.Generator`): A CPU generator.
    """
    return noise.flatten()[torch.randperm(noise.numel(), generator=generator).to(noise.device)].view_as(noise)


@torch.no_grad()
def measure_probability_mse(
    classifier: FrozenClassifier, images: FrozenImages, noise: torch.Tensor | ImageNoise, confidence: float
) -> tuple[float, float]:
    """Mean `probability_mse` of `noise` over the images of all processes, and its upper confidence bound."""
    return _measure(classifier, images, noise, confidence)[:2]


@torch.no_grad()
def certify(
    classifier: FrozenClassifier,
    images: FrozenImages,
    noise: torch.Tensor,
    config: NullspaceConfig,
    generator: torch.Generator,
    steps: int = 0,
    seconds: float = 0.0,
    draws: ImageNoise | None = None,
) -> Certificate:
    """
    The certificate of one noise of shape `(1, num_patches, hidden_size)` on the given images.

    Args:
        generator (`torch.Generator`): Draws the permuted control.
        steps (`int`, *optional*, defaults to 0): Optimizer steps that made the noise.
        seconds (`float`, *optional*, defaults to 0.0): Time that took.
        draws ([`ImageNoise`], *optional*): Measure the noise that this gives each image; `noise` is then one of the same
            kind, and gives the norms.
    """
    centred = remove_hidden_mean(noise)
    order = torch.randperm(noise.numel(), generator=generator).to(noise.device)

    # Centring the control as well would change its norm.
    def permuted(positions: torch.Tensor) -> torch.Tensor:
        own = centred if draws is None else draws(positions)
        return own.flatten(1)[:, order].view_as(own)

    mse, mse_upper, distance, agrees = _measure(classifier, images, draws or centred, config.confidence)
    permuted_mse, _, _, permuted_agrees = _measure(classifier, images, permuted, config.confidence)
    spread = token_norms(noise)
    return Certificate(
        epsilon=config.epsilon,
        confidence=config.confidence,
        probability_mse=mse,
        probability_mse_upper=mse_upper,
        logit_distance=distance,
        agreement=agrees,
        permuted_probability_mse=permuted_mse,
        permuted_agreement=permuted_agrees,
        norm=centred.norm().item(),
        raw_norm=noise.norm().item(),
        token_norm_min=spread.min().item(),
        token_norm_median=spread.median().item(),
        token_norm_max=spread.max().item(),
        # Noise that changes nothing at all says that the model ignores its input, not that the noise is harmless.
        converged=mse_upper <= config.epsilon and distance > 0,
        num_images=len(images),
        steps=steps,
        seconds=seconds,
    )


def _measure(
    classifier: FrozenClassifier,
    images: FrozenImages,
    noise: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
    confidence: float,
) -> tuple[float, float, float, float]:
    """`probability_mse`, its upper bound, `logit_distance` and `agreement`, as means over all processes' images."""
    sums = torch.zeros(4, dtype=torch.float64, device=classifier.device)
    for batch in images.batches():
        if not len(batch):
            continue
        own = noise(batch.positions) if callable(noise) else noise
        clean_logits, noisy_logits = batch.clean_logits, classifier.logits(batch.inputs, own, batch.embeddings)
        mse = probability_mse(clean_logits, noisy_logits).double()
        distance = logit_distance(clean_logits, noisy_logits).double()
        agrees = agreement(clean_logits, noisy_logits).double()
        sums += torch.stack([mse.sum(), mse.square().sum(), distance.sum(), agrees.sum()])
    mse, squares, distance, agrees = classifier.sum_over_processes(sums).tolist()
    count = len(images)
    return mse / count, upper_confidence_bound(mse, squares, count, confidence), distance / count, agrees / count
