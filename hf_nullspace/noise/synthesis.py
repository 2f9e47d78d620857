"""Finds large noise in the approximate nullspace of a frozen classifier (paper, algorithm 1, lines 3 to 9)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from ..models.frozen import FrozenClassifier, frozen_classifier
from ..models.objectives import Objective
from ..utils.phases import PhaseBar
from ..utils.random import keyed_generator, preserved_random_state
from .certificate import Certificate
from .certify import Outcomes, certify, check_config, check_epsilon, measure_errors, measure_outcomes
from .confidence import betting_upper_bound
from .config import NullspaceConfig
from .images import FrozenImages, read_images
from .kinds import Noise
from .methods import NOISE_METHODS
from .methods.base import SearchInputs
from .methods.scaling import MAX_RELATIVE_NORM, boundary_scale
from .nullspace_noise import NullspaceNoise


logger = logging.get_logger(__name__)

# Relative precision of the largest certified scale. Halving it costs another pass over the held-out images.
SCALE_TOLERANCE = 0.05
# Held-out images of a first, coarse search for the scale, before all of them are measured.
COARSE_IMAGES = 64
# Share of epsilon that the coarse search brings the mean error to. The upper bound over all held-out images is then
# about epsilon.
COARSE_SHARE = 0.5


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
    certificate_dataloader: Iterable[dict[str, torch.Tensor]] | None = None,
    disable_tqdm: bool = False,
) -> NullspaceNoise:
    """
    Synthesises noise that moves the outputs of `model` by at most epsilon, and certifies it.

    The model is frozen and in eval mode during the call, and restored afterwards. Global random states do not change.
    The images are split at random by the seed: the noise is optimised on one part and certified on the other. The
    certificate holds for images of the same distribution. For a statement about new images, give images that the model
    was not trained on, or a `certificate_dataloader`. With too few images for any certificate, the noise is marked as
    not certified ([`Certificate.obstacle`] says why) and scaled until its measured mean is within epsilon.

    Args:
        model (`nn.Module`):
            A classifier whose output has `logits` of shape `(batch_size, num_labels)`, a semantic segmentation, or any
            model together with `objective`. Not wrapped in DDP.
        dataloader (iterable of `dict`):
            Yields batches with `pixel_values` of shape `(batch_size, channels, height, width)`; labels are not needed. It
            is read from its beginning as far as needed, so let it shuffle.
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
        certificate_dataloader (iterable of `dict`, *optional*):
            Yields the images that the certificate is measured on, in place of a part of `dataloader`: those of a
            validation set, say.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        [`NullspaceNoise`]: The noise with its certificate.

    Raises:
        `ValueError`: If there are fewer images than one batch, the model's logits are not finite or no classes' (a
            regression), or epsilon is as large as any change of probabilities can be.
        [`NoiseNotConvergedError`]: If a noise is not certified and `config.on_failure` is `"error"`.

    Example:

    ```python
    >>> noise = synthesize_noise(model, dataloader, NullspaceConfig(epsilon=0.03))
    >>> noise.certificate.converged, noise.certificate.probability_mse_upper <= 0.03
    (True, True)
    ```
    """
    start = time.perf_counter()
    config = check_config(config) or NullspaceConfig()
    with frozen_classifier(model, patch_projection, accelerator, objective) as classifier:
        searched, held_out = read_and_split(classifier, dataloader, config, round_index, certificate_dataloader)
        check_epsilon(config, classifier.largest_error)
        method = NOISE_METHODS[config.method]
        hidden = disable_tqdm or not classifier.accelerator.is_local_main_process
        with PhaseBar("Synthesising noise", config.max_steps, hidden=hidden) as progress:
            generator = keyed_generator("synthesis", config.seed, round_index, 0)
            inputs = SearchInputs(classifier, searched, config, generator, progress.update)
            noise, steps = method.search(inputs)
            noise = noise.keyed(config.seed, round_index)
            measured = None
            if method.scales_up or config.on_failure == "shrink":
                noise, measured = _scaled_to_certificate(classifier, held_out, noise, config)
            certificate = certify(classifier, held_out, noise, config, generator, steps, measured=measured)
            certificate = dataclasses.replace(certificate, seconds=time.perf_counter() - start)
            _report(certificate, config, round_index)
            progress.update(config.max_steps - steps)
        return NullspaceNoise(noise, certificate, config, round_index, held_out.grid)


def read_and_split(
    classifier: FrozenClassifier,
    dataloader: Iterable[dict[str, torch.Tensor]],
    config: NullspaceConfig,
    round_index: int,
    certificate_dataloader: Iterable[dict[str, torch.Tensor]] | None = None,
) -> tuple[FrozenImages, FrozenImages]:
    """Two disjoint sets of images: one to search the noise on and one to certify it on."""

    def wanted() -> int:
        return config.wanted_certificate_images(classifier.largest_error)

    with preserved_random_state():  # even an unshuffled DataLoader draws a seed for its workers
        if certificate_dataloader is not None:
            searched = read_images(classifier, dataloader, config.num_images)
            held_out = read_images(classifier, certificate_dataloader, wanted, min_images=2)
            if searched.tokens_shape != held_out.tokens_shape or searched.grid != held_out.grid:
                raise ValueError(
                    f"The dataloader's images have {searched.tokens_shape[0]} patches (grid {searched.grid}), those of "
                    f"`certificate_dataloader` {held_out.tokens_shape[0]} (grid {held_out.grid}). Resize all to one size."
                )
            return searched, held_out
        images = read_images(classifier, dataloader, lambda: config.num_images + wanted())
    count = num_held_out(len(images), images.batch_size, config, classifier.largest_error)
    held_out, searched = images.split(count, keyed_generator("held out", config.seed, round_index))
    return searched, held_out


def num_held_out(total: int, batch_size: int, config: NullspaceConfig, largest: float = 2.0) -> int:
    """
    Images for the certificate: as configured, or the same share of fewer images.

    Where that share is too small for any certificate but all images are not, it gets all but one batch to search on.
    """
    wanted = config.wanted_certificate_images(largest)
    share = min(wanted, max(1, round(total * wanted / (config.num_images + wanted))), total - 1)
    fewest = config.fewest_certificate_images(largest)
    rest = min(wanted, total - batch_size)
    return max(share, rest) if share < fewest <= rest else share


def _scaled_to_certificate(
    classifier: FrozenClassifier,
    held_out: FrozenImages,
    noise: Noise,
    config: NullspaceConfig,
) -> tuple[Noise, Outcomes]:
    """
    A noise at the largest scale whose upper bound on the held-out images is within epsilon, and what it does to them.

    Errors grow with the scale, so the bound at the chosen scale is as valid as at a fixed one. With too few images to
    bound the mean of any noise, it is the largest scale whose measured mean is within epsilon. 1 if there is none.
    """
    largest = MAX_RELATIVE_NORM * held_out.embedding_norm / max(noise.tensor.norm().item(), 1e-30)
    largest = max(largest, 1.0) if NOISE_METHODS[config.method].scales_up else 1.0
    is_certifiable = len(held_out) >= config.fewest_certificate_images(classifier.largest_error)
    measured: dict[float, Outcomes] = {}

    def mean_at(scale: float, images: FrozenImages) -> float:
        return measure_errors(classifier, images, noise.scaled(scale)).mean().item()

    def bound_at(scale: float) -> float:
        measured[scale] = measure_outcomes(classifier, held_out, noise.scaled(scale).at)
        errors = measured[scale].probability_mse
        if is_certifiable:
            return betting_upper_bound(errors, config.confidence, classifier.largest_error)
        return errors.mean().item()

    start = 1.0
    if len(held_out) >= 2 * COARSE_IMAGES:  # a search on all of them from there on takes few measurements
        few, _ = held_out.split(COARSE_IMAGES)
        start = boundary_scale(lambda scale: mean_at(scale, few), COARSE_SHARE * config.epsilon, largest, 0.25)
    scale = boundary_scale(bound_at, config.epsilon, largest, tolerance=SCALE_TOLERANCE, start=start or 1.0) or 1.0
    if scale not in measured:
        bound_at(scale)
    return noise.scaled(scale), measured[scale]


def _report(certificate: Certificate, config: NullspaceConfig, round_index: int) -> None:
    if certificate.converged:
        return
    message = (
        f"Noise of round {round_index} is not certified: {certificate.obstacle}. Its probability_mse is "
        f"{certificate.probability_mse:.4g} (upper bound {certificate.probability_mse_upper:.4g}, epsilon "
        f"{config.epsilon:g}) on {certificate.num_images} held-out images after {certificate.steps} steps. {_remedy(certificate)}"
    )
    if config.on_failure == "error":
        raise NoiseNotConvergedError(message)
    logger.warning(message)


def _remedy(certificate: Certificate) -> str:
    """What to do about a noise that is not certified. The trainer replaces setting names by its argument names."""
    if certificate.num_images < certificate.num_images_needed:
        return (
            f"Give at least {certificate.num_images_needed} images beside those of the search (and as many "
            "`num_certificate_images`, where that is set), or a larger `epsilon`."
        )
    if certificate.exchanged_probability_mse <= certificate.epsilon or not certificate.logit_distance > 0:
        return "Train the model first, or give a smaller `epsilon`."
    others = " or ".join(f"`method={name!r}`" for name, method in NOISE_METHODS.items() if method.scales_up)
    return f"Raise `max_steps`, use `on_failure='shrink'`, or {others}."
