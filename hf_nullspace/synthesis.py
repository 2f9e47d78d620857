"""Finds large noise in the approximate nullspace of a frozen classifier (paper, algorithm 1, lines 3 to 9)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from .certificate import Certificate, logit_distance, probability_mse, remove_hidden_mean
from .configuration import NullspaceConfig
from .frozen import FrozenClassifier, FrozenImages, frozen, read_images
from .noise import NullspaceNoise
from .probing import certify, measure_probability_mse
from .randomness import keyed_generator


logger = logging.get_logger(__name__)


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
    disable_tqdm: bool = False,
) -> NullspaceNoise:
    """
    Synthesises a bank of noises that move the outputs of `model` by at most epsilon, and certifies them.

    The model is frozen and in evaluation mode meanwhile and comes back as it was; no global random state is touched.
    Images are split in two: the noise is optimised on some and certified on the others.

    Args:
        model (`nn.Module`):
            A classifier whose output has `logits` of shape `(batch_size, num_labels)`. Not wrapped in DDP.
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
        classifier = FrozenClassifier(model, patch_projection, accelerator)
        images = read_images(classifier, dataloader, config.num_images + config.num_certificate_images)
        held_out, training = images.split(_num_held_out(len(images), config))
        shape = classifier.tokens_shape(images.inputs)
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
                noise, steps = _optimise(classifier, training, shape, config, generator, progress)
                noise = _apply_policy(classifier, held_out, noise, config)
                certificate = certify(
                    classifier, held_out, noise, config, generator, steps, time.perf_counter() - start
                )
                _report(certificate, config, round_index)
                noises.append(noise)
                certificates.append(certificate)
                progress.update(config.max_steps - steps)
        return NullspaceNoise(torch.cat(noises), certificates, config, round_index)


def _num_held_out(total: int, config: NullspaceConfig) -> int:
    """Images for the certificate: as configured, or the same share of fewer images."""
    share = config.num_certificate_images / (config.num_images + config.num_certificate_images)
    return min(config.num_certificate_images, max(1, round(total * share)))


def _optimise(
    classifier: FrozenClassifier,
    images: FrozenImages,
    shape: tuple[int, int],
    config: NullspaceConfig,
    generator: torch.Generator,
    progress,
) -> tuple[torch.Tensor, int]:
    """The paper's search: from a uniform start down the objective, until a batch meets epsilon."""
    start = torch.empty(1, *shape).uniform_(-config.noise_limit, config.noise_limit, generator=generator)
    noise = remove_hidden_mean(start).to(classifier.device).requires_grad_()
    optimizer = torch.optim.AdamW([noise], lr=config.learning_rate, weight_decay=0.0)
    for step, (inputs, clean_logits, batch_size) in zip(
        range(config.max_steps), _endless_batches(images, generator), strict=False
    ):
        batch_mse, gradient = _objective_gradient(classifier, inputs, clean_logits, batch_size, noise, config)
        if batch_mse <= config.epsilon:
            return noise.detach(), step
        if not (math.isfinite(batch_mse) and torch.isfinite(gradient).all()):
            raise ValueError(
                f"The model gives NaN or infinite logits under noise of norm {noise.norm():.3g} at synthesis step "
                f"{step}. Lower `noise_limit` ({config.noise_limit}) or `learning_rate` ({config.learning_rate}), or "
                "run in bf16 or fp32 instead of fp16."
            )
        noise.grad = gradient
        optimizer.step()
        with torch.no_grad():
            noise.copy_(remove_hidden_mean(noise))
        progress.update()
        progress.set_postfix(mse=f"{batch_mse:.3g}", refresh=False)
    return noise.detach(), config.max_steps


def _endless_batches(images: FrozenImages, generator: torch.Generator) -> Iterator[tuple]:
    while True:
        yield from images.batches(torch.randperm(len(images), generator=generator))


def _objective_gradient(
    classifier: FrozenClassifier,
    inputs: dict[str, torch.Tensor],
    clean_logits: torch.Tensor,
    batch_size: int,
    noise: torch.Tensor,
    config: NullspaceConfig,
) -> tuple[float, torch.Tensor]:
    """`probability_mse` of the global batch, and the gradient of `logit_distance - lambda * log(norm)`."""
    if len(clean_logits):
        noisy_logits = classifier.logits(inputs, noise)
        distance = logit_distance(clean_logits, noisy_logits).sum()
        (gradient,) = torch.autograd.grad(distance, noise)
        mse = probability_mse(clean_logits, noisy_logits.detach()).sum()
    else:
        gradient, mse = torch.zeros_like(noise), noise.new_zeros(())
    # One reduction for both: the sums of the processes, divided by the size of the whole batch.
    packed = classifier.sum_over_processes(torch.cat([gradient.flatten(), mse.reshape(1)])) / batch_size
    gradient = packed[:-1].view_as(noise)
    if config.norm_weight:
        gradient = gradient - config.norm_weight * noise.detach() / noise.detach().square().sum()
    return packed[-1].item(), gradient


def _apply_policy(
    classifier: FrozenClassifier, held_out: FrozenImages, noise: torch.Tensor, config: NullspaceConfig
) -> torch.Tensor:
    """Under `shrink`, the noise scaled to just inside epsilon on the held-out images; else the noise itself."""
    if config.on_failure != "shrink":
        return noise
    return noise * boundary_scale(
        lambda scale: measure_probability_mse(classifier, held_out, scale * noise, config.confidence)[1],
        config.epsilon,
    )


def boundary_scale(error_at, epsilon: float, steps: int = 12) -> float:
    """
    The largest scale in [0, 1] found by bisection at which `error_at(scale) <= epsilon`.

    Args:
        error_at (`Callable[[float], float]`): The error of the noise at a scale.
        epsilon (`float`): The bound.
        steps (`int`, *optional*, defaults to 12): Bisection steps in the logarithm of the scale, over six decades.
    """
    if error_at(1.0) <= epsilon:
        return 1.0
    inside, outside = 1e-6, 1.0
    for _ in range(steps):
        middle = math.sqrt(inside * outside)
        if error_at(middle) <= epsilon:
            inside = middle
        else:
            outside = middle
    return inside


def _report(certificate: Certificate, config: NullspaceConfig, round_index: int) -> None:
    if certificate.converged:
        return
    message = (
        f"Noise of round {round_index} has probability_mse {certificate.probability_mse:.4g} (upper bound "
        f"{certificate.probability_mse_upper:.4g}) on {certificate.num_images} held-out images after "
        f"{certificate.steps} steps, above epsilon {config.epsilon}. Raise `max_steps` ({config.max_steps}), lower "
        f"`noise_limit` ({config.noise_limit}), or use `on_failure='shrink'`."
    )
    if config.on_failure == "error":
        raise NoiseNotConvergedError(message)
    logger.warning(message)
