"""Experiments on the approximate nullspace of an encoder: by lambda, scale, token, operation and set of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from ..models.frozen import FrozenClassifier, frozen_classifier
from ..noise.certificate import token_norms
from ..noise.certify import measure_outcomes
from ..noise.images import FrozenImages, read_images
from ..noise.kinds import SharedNoise
from ..utils.phases import PhaseBar
from ..utils.random import keyed_generator
from .experiments import Measure, closure, dose_response, token_norm_rows, transfer, with_control
from .search import harmless_search_axes, search_at


logger = logging.get_logger(__name__)

# Share of the images that noise is searched on.
TRAINING_SHARE = 5 / 8
# Images measured at a time, at least: without gradients more fit into memory than a search step takes.
MEASURED_AT_A_TIME = 16


@dataclass(frozen=True)
class EncoderProbeConfig:
    """
    Settings of [`probe_encoder`].

    Args:
        lambdas (`tuple[float, ...]`, *optional*, defaults to `(0.05, 0.2, 0.8, 2.0)`):
            Weights of the log-norm term, ascending, in units of the logits (figure 2 of the paper).
        max_steps (`int`, *optional*, defaults to 5):
            Steps of the search at each lambda, each on one batch. Every search goes on from the noise of the lambda
            before; the second noise, for convex combinations, takes twice as many at once. The default suits two CPU
            cores and a ViT-S; more steps find larger noise.
        learning_rate (`float`, *optional*, defaults to 0.2):
            Size of a step relative to the noise's own.
        max_token_ratio (`float` or `None`, *optional*, defaults to 4.0):
            Largest norm of a token, as a multiple of the median over the tokens, as in [`NullspaceConfig`]. With `None`,
            as in the paper, a search may put the whole norm into a patch that the model does not look at.
        max_images (`int`, *optional*, defaults to 64):
            Images read; five eighths of them are searched on, everything is measured on the others.
        min_agreement (`float`, *optional*, defaults to 0.98):
            The further experiments use the largest noise of the sweep that leaves at least this share of the
            predictions unchanged.
        scales (`tuple[float, ...]`, *optional*): Scales of the dose-response curve.
        seed (`int`, *optional*, defaults to 42): Seed of every random choice.

    Raises:
        `ValueError`: If a value lies outside its range.
    """

    lambdas: tuple[float, ...] = (0.05, 0.2, 0.8, 2.0)
    max_steps: int = 5
    learning_rate: float = 0.2
    max_token_ratio: float | None = 4.0
    max_images: int = 64
    min_agreement: float = 0.98
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    seed: int = 42

    def __post_init__(self):
        if (
            not self.lambdas
            or list(self.lambdas) != sorted(set(self.lambdas))
            or not 0 < self.lambdas[0] <= self.lambdas[-1] < math.inf
        ):
            raise ValueError(f"`lambdas` must be positive numbers, ascending, but got {self.lambdas!r}.")
        if not self.scales or not min(self.scales) >= 0:
            raise ValueError(f"`scales` must be numbers of at least 0, but got {self.scales!r}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, but got {self.learning_rate!r}.")
        if self.max_token_ratio is not None and not self.max_token_ratio >= 1:
            raise ValueError(f"`max_token_ratio` must be at least 1 or `None`, but got {self.max_token_ratio!r}.")
        if not 0 <= self.min_agreement <= 1:
            raise ValueError(f"`min_agreement` must lie in [0, 1], but got {self.min_agreement!r}.")
        for name, least in (("max_steps", 1), ("max_images", 4)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, but got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class EncoderProbe:
    """
    Results of [`probe_encoder`]: rows for tables and files, and the noise.

    Args:
        sweep (`list[dict]`): A row for each lambda; see [`lambda_sweep`].
        closure (`list[dict]`): A row for each operation; see [`closure`].
        transfer (`list[dict]`): A row for images searched on and one for as many others; see [`transfer`].
        dose_response (`list[dict]`): A row for each scale; see [`dose_response`].
        token_norms (`list[dict]`): A row for each token; see [`token_norm_rows`].
        norm_weight (`float`): The lambda whose noise the experiments after the sweep used.
        noise (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): That noise, in units of the patch embeddings.
    """

    sweep: list[dict[str, float]]
    closure: list[dict[str, Any]]
    transfer: list[dict[str, Any]]
    dose_response: list[dict[str, float]]
    token_norms: list[dict[str, float]]
    norm_weight: float
    noise: torch.Tensor

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each experiment by its name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, list)}


def probe_encoder(
    model: nn.Module,
    dataloader: Iterable[dict[str, torch.Tensor]],
    config: EncoderProbeConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    patch_projection: str | None = None,
    disable_tqdm: bool = False,
) -> EncoderProbe:
    """
    Runs the sweep over lambda and every experiment of `encoder_experiments` on one model: the encoder half of the
    paper's section 3.

    Args:
        model (`nn.Module`): The classifier; frozen and in eval mode during the call, and restored afterwards.
        dataloader (iterable of `dict`): Yields batches with `pixel_values`; labels are not needed.
        config ([`EncoderProbeConfig`], *optional*): The settings.
        accelerator (`Accelerator`, *optional*): For several processes, devices and autocast.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bar.

    Returns:
        [`EncoderProbe`].

    Raises:
        `ValueError`: If there are fewer images than one batch, or the model's logits are not finite or constant.
    """
    config = config or EncoderProbeConfig()
    with frozen_classifier(model, patch_projection, accelerator) as classifier:
        images = read_images(classifier, dataloader, config.max_images)
        generator = keyed_generator("probed images", config.seed)
        training, held_out = images.split(math.ceil(TRAINING_SHARE * len(images)), generator)
        # Ticks are search steps and measurements: two for each lambda, scale and set of images, one for each operation.
        ticks = min(config.max_steps, math.ceil(len(training) / training.batch_size))
        ticks += (
            (len(config.lambdas) + 2) * config.max_steps + 2 * len(config.lambdas) + 2 * len(config.scales) + 4 + 7
        )
        hidden = disable_tqdm or not classifier.accelerator.is_local_main_process
        with PhaseBar("Probing the encoder", ticks, hidden=hidden) as progress:
            # The searched and the held-out images are compared on equal numbers of images.
            searched_on, _ = training.split(len(held_out))
            seen, unseen = (_measured_once(classifier, part, progress.update) for part in (searched_on, held_out))
            middle = config.lambdas[len(config.lambdas) // 2]
            axes = harmless_search_axes(classifier, training, middle, config.max_steps, config.seed, progress.update)
            sweep, noises = lambda_sweep(classifier, training, axes, unseen, config, progress.update)
            chosen = largest_agreeing(sweep, config.min_agreement)
            noise = noises[chosen]
            norm_weight = config.lambdas[chosen]
            generator = keyed_generator("second noise", config.seed)
            settings = (2 * config.max_steps, config.learning_rate, config.max_token_ratio)
            found = search_at(classifier, training, axes, norm_weight, *settings, generator, on_step=progress.update)
            second = found @ axes
            return EncoderProbe(
                sweep=sweep,
                closure=closure(unseen, noise, second, config.seed),
                transfer=transfer({"seen": seen, "unseen": unseen}, noise, config.seed),
                dose_response=dose_response(unseen, noise, config.scales, config.seed),
                token_norms=token_norm_rows(noise, images.grid or _grid(noise, images.inputs["pixel_values"].shape)),
                norm_weight=norm_weight,
                noise=noise.cpu(),
            )


def lambda_sweep(
    classifier: FrozenClassifier,
    training: FrozenImages,
    axes: torch.Tensor,
    measure: Measure,
    config: EncoderProbeConfig,
    on_step: Callable[[], Any] | None = None,
) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """
    Figure 2 of the paper: how large a noise each lambda finds and how little it changes, beside the permuted control.

    Returns:
        `tuple[list[dict], list[torch.Tensor]]`: For each lambda a row with `norm`, `relative_norm` (a multiple of the
        root mean square norm of the images' patch embeddings), `token_norm_median`, `token_norm_max` and, from
        `measure` on held-out images, the means of its [`Outcomes`], once for the noise and once, as `permuted_...`,
        for the same noise with its elements permuted; and the noises.
    """
    search = keyed_generator("lambda sweep", config.seed)
    settings = (config.max_steps, config.learning_rate, config.max_token_ratio)
    rows, noises = [], []
    found = None
    for norm_weight in config.lambdas:
        found = search_at(classifier, training, axes, norm_weight, *settings, search, found, on_step)
        noise = found @ axes
        norm = noise.norm().item()
        row = {"lambda": norm_weight, "norm": norm, "relative_norm": norm / training.embedding_norm}
        spread = token_norms(noise)
        row |= {"token_norm_median": spread.median().item(), "token_norm_max": spread.max().item()}
        rows.append({**row, **with_control(measure, noise, config.seed)})
        noises.append(noise)
    return rows, noises


def _measured_once(classifier: FrozenClassifier, images: FrozenImages, on_measure: Callable[[], Any]) -> Measure:
    """Gives the means of [`Outcomes`] of a noise, and caches them, since the experiments share some noises."""
    images = dataclasses.replace(images, batch_size=max(images.batch_size, MEASURED_AT_A_TIME))
    known = {}

    def measure(noise: torch.Tensor) -> dict[str, float]:
        key = noise.cpu().numpy().tobytes()
        if key not in known:
            outcomes = measure_outcomes(classifier, images, SharedNoise(noise).at)
            known[key] = {name: values.mean().item() for name, values in outcomes._asdict().items()}
        on_measure()
        return {"num_images": len(images), **known[key]}

    return measure


def _grid(noise: torch.Tensor, image_shape: Sequence[int]) -> tuple[int, int]:
    """`(rows, columns)` of the patches: square patches if they fit the image, one row if the input is patches."""
    num_patches = noise.shape[1]
    if len(image_shape) == 4:
        rows = round(math.sqrt(num_patches * image_shape[2] / image_shape[3]))
        if rows and num_patches % rows == 0:
            return rows, num_patches // rows
    return 1, num_patches


def largest_agreeing(sweep: list[dict[str, float]], min_agreement: float) -> int:
    """Index of the largest noise with at least `min_agreement`; otherwise of the one with the highest agreement."""
    agreeing = [index for index, row in enumerate(sweep) if row["agreement"] >= min_agreement]
    if agreeing:
        return max(agreeing, key=lambda index: sweep[index]["norm"])
    best = max(range(len(sweep)), key=lambda index: sweep[index]["agreement"])
    logger.warning(
        f"No lambda of the sweep left {100 * min_agreement:g} % of the predictions unchanged; the closest, "
        f"{sweep[best]['lambda']}, left {100 * sweep[best]['agreement']:.3g} %. Give smaller `lambdas` or more "
        "`max_steps`."
    )
    return best
