"""Finds large noise in the approximate nullspace of a frozen classifier (paper, algorithm 1, lines 3 to 9)."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from .certificate import Certificate
from .configuration import NullspaceConfig
from .frozen import FrozenClassifier, FrozenImages, frozen, read_images
from .image_noise import ImageNoise
from .noise import NullspaceNoise
from .noise_search import MAX_RELATIVE_NORM, SEARCHES, boundary_scale
from .objectives import Objective
from .probing import certify, measure_probability_mse
from .randomness import keyed_generator, preserved_random_state


logger = logging.get_logger(__name__)


# Relative width to which the largest certified scale is found: each halving costs another pass over the held-out images.
SCALE_TOLERANCE = 0.05


class NoiseNotConvergedError(RuntimeError):
    """Raised under `on_failure="error"` when a noise cannot be certified within epsilon."""


def synthesize_noise(
    model: nn.Module,
    dataloader: Iterable[dict[str, torch.Tensor]],
    config: NullspaceConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    round_index: int = 0,
    patch_projection: str | None = None,
    objective: Objective | None = None,
    disable_tqdm: bool = False,
) -> NullspaceNoise:
    """
    Synthesises a bank of noises that move the outputs of `model` by at most epsilon, and certifies them.

    The model is frozen and in evaluation mode meanwhile and comes back as it was; no global random state is touched.
    Images are split in two: the noise is optimised on some and certified on the others.

    Args:
        model (`nn.Module`):
            A classifier whose output has `logits` of shape `(batch_size, num_labels)`, a semantic segmentation, or any
            model together with `objective`. Not wrapped in DDP.
        dataloader (iterable of `dict`):
            Yields batches with `pixel_values` of shape `(batch_size, channels, height, width)`; labels are not needed.
        config ([`NullspaceConfig`], *optional*):
            The settings; the defaults if not given.
        accelerator (`Accelerator`, *optional*):
            For several processes, devices and autocast. N processes find the noise that one process finds on the same
            batches.
        round_index (`int`, *optional*, defaults to 0):
            Combined with `config.seed`, so that every round draws afresh and repeats exactly.
        patch_projection (`str`, *optional*):
            Name of the projection module where the rule does not find it.
        objective (`Callable`, *optional*):
            From the model's output to logits of shape `(batch_size, num_labels)`, for models without a head; see
            [`similarity_objective`]. Epsilon bounds the change of their softmax. It is not saved: pass it to
            [`measure_noise`] again.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        [`NullspaceNoise`]: The bank with one certificate for each noise.

    Raises:
        `ValueError`: If there are fewer images than one batch, or the model's logits are not finite.
        [`NoiseNotConvergedError`]: If a noise exceeds epsilon and `config.on_failure` is `"error"`.

    Example:

    ```python
    >>> noise = synthesize_noise(model, dataloader, NullspaceConfig(epsilon=0.03))  # doctest: +SKIP
    >>> noise.certificate.norm, noise.certificate.probability_mse  # doctest: +SKIP
    (11.3, 0.028)
    ```
    """
    config = config or NullspaceConfig()
    with frozen(model):
        classifier = FrozenClassifier(model, patch_projection, accelerator, objective)
        with preserved_random_state():  # even an unshuffled DataLoader draws a seed for its workers
            images = read_images(classifier, dataloader, config.num_images + config.num_certificate_images)
        held_out, training = images.split(num_held_out(len(images), config))
        progress = logging.tqdm(
            total=config.bank_size * config.max_steps,
            desc="Synthesising noise",
            leave=False,
            disable=disable_tqdm or not classifier.accelerator.is_local_main_process,
        )
        noises, certificates = [], []
        with progress:
            for index in range(config.bank_size):
                generator = keyed_generator("synthesis", config.seed, round_index, index)
                start = time.perf_counter()
                noise, steps, axes = SEARCHES[config.method](classifier, training, config, generator, progress.update)
                draws = None
                if axes is not None:
                    draws = ImageNoise(axes, noise.shape[1], noise.norm().item(), (config.seed, round_index))
                if config.method != "paper" or config.on_failure == "shrink":
                    scale = _largest_scale(classifier, held_out, draws or noise, noise.norm().item(), config)
                    noise, draws = scale * noise, draws and scale * draws
                seconds = time.perf_counter() - start
                certificate = certify(classifier, held_out, noise, config, generator, steps, seconds, draws)
                _report(certificate, config, round_index)
                noises.append(noise)
                certificates.append(certificate)
                progress.update(config.max_steps - steps)
        return NullspaceNoise(torch.cat(noises), certificates, config, round_index, axes)


def num_held_out(total: int, config: NullspaceConfig) -> int:
    """Images for the certificate: as configured, or the same share of fewer images."""
    share = config.num_certificate_images / (config.num_images + config.num_certificate_images)
    return min(config.num_certificate_images, max(2, round(total * share)), total - 1)


def _largest_scale(
    classifier: FrozenClassifier,
    held_out: FrozenImages,
    noise: torch.Tensor | ImageNoise,
    norm: float,
    config: NullspaceConfig,
) -> float:
    """The largest scale of a noise whose upper bound on the held-out images is within epsilon; 1 if there is none."""
    largest = MAX_RELATIVE_NORM * held_out.embedding_norm / max(norm, 1e-30)
    scale = boundary_scale(
        lambda scale: measure_probability_mse(classifier, held_out, scale * noise, config.confidence)[1],
        config.epsilon,
        max_scale=max(largest, 1.0) if config.method != "paper" else 1.0,
        tolerance=SCALE_TOLERANCE,
    )
    return scale or 1.0


def _report(certificate: Certificate, config: NullspaceConfig, round_index: int) -> None:
    if certificate.converged:
        return
    message = (
        f"Noise of round {round_index} has probability_mse {certificate.probability_mse:.4g} (upper bound "
        f"{certificate.probability_mse_upper:.4g}) on {certificate.num_images} held-out images after "
        f"{certificate.steps} steps, above epsilon {config.epsilon}. Raise `max_steps` ({config.max_steps}), use "
        "`on_failure='shrink'`, or `method='boundary'`."
    )
    if config.on_failure == "error":
        raise NoiseNotConvergedError(message)
    logger.warning(message)
