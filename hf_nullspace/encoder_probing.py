"""The approximate nullspace of an encoder in experiments: by lambda, by scale, by token, and under which operations."""

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

from .certificate import agreement, logit_distance, probability_mse, remove_hidden_mean, token_norms
from .frozen import FrozenClassifier, FrozenImages, frozen, read_images
from .noise_search import (
    SCALE_GAIN,
    SCALE_LIMIT,
    RelativeAdam,
    batch_means,
    boundary_scale,
    distance_gradient,
    endless_batches,
    measured_axes,
)
from .probing import permute_elements
from .randomness import keyed_generator


logger = logging.get_logger(__name__)

# Largest norm of a noise in a search, as a multiple of the mean norm of the images' own patch embeddings.
MAX_RELATIVE_NORM = 10.0
# Share of the images that noise is searched on.
TRAINING_SHARE = 5 / 8

# What a noise does, by name: `measure_outcomes` with its classifier and images filled in.
Measure = Callable[[torch.Tensor], dict[str, float]]


@dataclass(frozen=True)
class EncoderProbeConfig:
    """
    Settings of [`probe_encoder`].

    Args:
        lambdas (`tuple[float, ...]`, *optional*, defaults to `(0.05, 0.2, 0.8, 2.0)`):
            Weights of the log-norm term, ascending, in units of the logits (figure 2 of the paper).
        max_steps (`int`, *optional*, defaults to 8):
            Steps of the search at each lambda, each on one batch. Every search goes on from the noise of the lambda
            before; the second noise, for convex combinations, takes twice as many at once. The default suits two CPU
            cores and a ViT-S; more steps find larger noise.
        learning_rate (`float`, *optional*, defaults to 0.2):
            Size of a step relative to the noise's own.
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
    max_steps: int = 8
    learning_rate: float = 0.2
    max_images: int = 64
    min_agreement: float = 0.98
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    seed: int = 42

    def __post_init__(self):
        if not self.lambdas or list(self.lambdas) != sorted(set(self.lambdas)) or not self.lambdas[0] > 0:
            raise ValueError(f"`lambdas` must be positive and ascending, but got {self.lambdas!r}.")
        if not self.scales or not min(self.scales) >= 0:
            raise ValueError(f"`scales` must be numbers of at least 0, but got {self.scales!r}.")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, but got {self.learning_rate!r}.")
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
        transfer (`list[dict]`): A row for the images searched on and one for the others; see [`transfer`].
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
    Runs every experiment of this module on one model: the encoder half of the paper's section 3.

    Args:
        model (`nn.Module`): The classifier; frozen meanwhile, and put back as it was.
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
    with frozen(model):
        classifier = FrozenClassifier(model, patch_projection, accelerator)
        images = read_images(classifier, dataloader, config.max_images)
        training, held_out = images.split(math.ceil(TRAINING_SHARE * len(images)))
        # Ticks are search steps and measurements: two for each lambda, scale and set of images, one for each operation.
        ticks = math.ceil(len(training) / training.batch_size)
        ticks += (
            (len(config.lambdas) + 2) * config.max_steps + 2 * len(config.lambdas) + 2 * len(config.scales) + 4 + 7
        )
        hidden = disable_tqdm or not classifier.accelerator.is_local_main_process
        with logging.tqdm(total=ticks, desc="Probing the encoder", leave=False, disable=hidden) as progress:
            seen, unseen = (_measured_once(classifier, part, progress.update) for part in (training, held_out))
            generator = keyed_generator("sensitivity", config.seed)
            random = remove_hidden_mean(
                torch.randn(1, *images.tokens_shape, generator=generator).to(classifier.device)
            )
            random = random * _scale_to(classifier, training, random, config.lambdas[len(config.lambdas) // 2])
            axes = measured_axes(classifier, training.batches(), random, progress.update)
            sweep, noises = lambda_sweep(classifier, training, axes, unseen, config, progress.update)
            chosen = _largest_agreeing(sweep, config.min_agreement)
            noise, norm_weight = noises[chosen], config.lambdas[chosen]
            longer = dataclasses.replace(config, max_steps=2 * config.max_steps)
            generator = keyed_generator("second noise", config.seed)
            second = (
                search_at(classifier, training, axes, norm_weight, longer, generator, on_step=progress.update) @ axes
            )
            return EncoderProbe(
                sweep=sweep,
                closure=closure(unseen, noise, second, config.seed),
                transfer=transfer({"seen": seen, "unseen": unseen}, noise, config.seed),
                dose_response=dose_response(unseen, noise, config.scales, config.seed),
                token_norms=token_norm_rows(noise, _grid(noise, images.inputs["pixel_values"].shape)),
                norm_weight=norm_weight,
                noise=noise.cpu(),
            )


def search_at(
    classifier: FrozenClassifier,
    images: FrozenImages,
    axes: torch.Tensor,
    norm_weight: float,
    config: EncoderProbeConfig,
    generator: torch.Generator,
    start: torch.Tensor | None = None,
    on_step: Callable[[], Any] | None = None,
) -> torch.Tensor:
    """
    Minimises `logit_distance(v) - norm_weight * log ||v||` (paper, section 3), whose optimum has no early stop.

    Direction and norm take turns in each step: Adam turns the direction down the distance, in coordinates that avoid
    what the encoder is sensitive to and in steps relative to their own size; the norm follows its own condition for an
    optimum, which is that the distance grows by `norm_weight` for a relative growth of the noise,
    `<gradient, v> = norm_weight`. The objective has no lower bound once noise drowns the image and the distance stops
    growing. So the norm is also held where the distance is about lambda, and below `MAX_RELATIVE_NORM` times that of
    the patch embeddings.

    Args:
        classifier ([`FrozenClassifier`]): The model.
        images ([`FrozenImages`]): The images to search on.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): From coordinates to noise; see
            [`~noise_search.measured_axes`].
        norm_weight (`float`): Lambda, in units of the logits.
        config ([`EncoderProbeConfig`]): Gives the steps and their size.
        generator (`torch.Generator`): Draws the start and the order of the images.
        start (`torch.Tensor` of shape `(1, num_patches, hidden_size)`, *optional*): Coordinates to start from, at the
            norm where they move the logits by lambda. By default random ones.
        on_step (`Callable`, *optional*): Called after each step.

    Returns:
        `torch.Tensor` of shape `(1, num_patches, hidden_size)`: Coordinates; `coordinates @ axes` is the noise.
    """
    if start is None:
        start = torch.randn(1, *images.tokens_shape, generator=generator).to(axes.device)
    coordinates = start * _scale_to(classifier, images, start @ axes, norm_weight)
    max_norm = MAX_RELATIVE_NORM * _embedding_norm(classifier, images)
    adam = RelativeAdam(coordinates)
    for step, batch in zip(range(config.max_steps), endless_batches(images, generator), strict=False):
        noise = coordinates @ axes
        measured = distance_gradient(classifier, batch, noise)
        growth = (measured.gradient * noise).sum()
        change = SCALE_GAIN * torch.log(norm_weight / torch.maximum(growth, measured.distance).clamp_min(1e-30))
        change = torch.where(measured.finite, change.clamp(-SCALE_LIMIT, SCALE_LIMIT), -1.0)
        norm = noise.norm()
        gradient = torch.where(measured.finite, measured.gradient - noise * growth / norm.square(), 0.0)
        rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
        coordinates = adam.step(coordinates, gradient @ axes.T, rate)
        coordinates *= (norm * change.exp()).clamp_max(max_norm) / (coordinates @ axes).norm()
        if on_step is not None:
            on_step()
    return coordinates


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
        mean norm of the images' patch embeddings), `token_norm_median` and, from `measure` on held-out images, what
        [`measure_outcomes`] gives, once for the noise and once, as `permuted_...`, for the same noise with its elements
        permuted; and the noises.
    """
    search = keyed_generator("lambda sweep", config.seed)
    embedding_norm = _embedding_norm(classifier, training)
    rows, noises, found = [], [], None
    for norm_weight in config.lambdas:
        found = search_at(classifier, training, axes, norm_weight, config, search, found, on_step)
        noise = found @ axes
        norm = noise.norm().item()
        row = {"lambda": norm_weight, "norm": norm, "relative_norm": norm / embedding_norm}
        row["token_norm_median"] = token_norms(noise).median().item()
        rows.append({**row, **_with_control(measure, noise, config.seed)})
        noises.append(noise)
    return rows, noises


def closure(measure: Measure, noise: torch.Tensor, second: torch.Tensor, seed: int = 42) -> list[dict[str, Any]]:
    """
    Which operations stay in the approximate nullspace (scaling down, convex combination) and which leave it.

    Args:
        noise, second (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): Two noises from independent searches.
        seed (`int`, *optional*, defaults to 42): Seed of the permutations.

    Returns:
        `list[dict]`: For each `operation` its `norm` and what [`measure_outcomes`] gives.
    """
    order = torch.randperm(noise.shape[1], generator=keyed_generator("tokens", seed)).to(noise.device)
    operations = {
        "noise": noise,
        "second noise": second,
        "half of the noise": 0.5 * noise,
        "mean of both": 0.5 * noise + 0.5 * second,
        "sign flipped": -noise,
        "tokens permuted": noise[:, order],
        "elements permuted": _control(noise, seed),
    }
    return [
        {"operation": name, "norm": changed.norm().item(), **measure(changed)} for name, changed in operations.items()
    ]


def transfer(measures: dict[str, Measure], noise: torch.Tensor, seed: int = 42) -> list[dict[str, Any]]:
    """One noise on several sets of images, by name (those it was searched on, others), with the permuted control."""
    return [{"images": name, **_with_control(measure, noise, seed)} for name, measure in measures.items()]


def dose_response(
    measure: Measure, noise: torch.Tensor, scales: Sequence[float], seed: int = 42
) -> list[dict[str, float]]:
    """The error of `scale * noise` by scale, beside the permuted control."""
    return [
        {"scale": scale, "norm": scale * noise.norm().item(), **_with_control(measure, scale * noise, seed)}
        for scale in scales
    ]


def token_norm_rows(noise: torch.Tensor, grid: tuple[int, int]) -> list[dict[str, float]]:
    """
    Norm of each token of a noise, hidden-axis mean excluded, with its place in the patch grid.

    Args:
        noise (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise.
        grid (`tuple[int, int]`): `(rows, columns)` of the patches.

    Raises:
        `ValueError`: If the grid has another number of patches than the noise.
    """
    num_patches = noise.shape[1]
    if grid[0] * grid[1] != num_patches:
        raise ValueError(
            f"A grid of {grid[0]} x {grid[1]} does not hold {num_patches} patches. Pass `grid=(rows, columns)`."
        )
    norms = token_norms(noise)[0].tolist()
    return [
        {"row": index // grid[1], "column": index % grid[1], "token_norm": norm} for index, norm in enumerate(norms)
    ]


@torch.no_grad()
def measure_outcomes(classifier: FrozenClassifier, images: FrozenImages, noise: torch.Tensor) -> dict[str, float]:
    """
    What a noise changes, as means over the images of all processes.

    Returns:
        `dict[str, float]`: `probability_mse`, `logit_distance`, `agreement`, and `confidence_change`, the absolute
        change of the probability of the class that the clean image gets.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=classifier.device)
    for batch in images.batches():
        if not len(batch):
            continue
        clean, noisy = batch.clean_logits, classifier.logits(batch.inputs, noise, batch.embeddings)
        top = clean.argmax(-1, keepdim=True)
        confidence = (noisy.softmax(-1) - clean.softmax(-1)).gather(1, top).abs()
        values = (probability_mse(clean, noisy), logit_distance(clean, noisy), agreement(clean, noisy), confidence)
        sums += torch.stack([value.double().sum() for value in values])
    means = (classifier.sum_over_processes(sums) / len(images)).tolist()
    return dict(zip(("probability_mse", "logit_distance", "agreement", "confidence_change"), means, strict=True))


@torch.no_grad()
def _embedding_norm(classifier: FrozenClassifier, images: FrozenImages) -> float:
    """Mean norm of the patch embeddings of one image, over the images of all processes."""
    total = torch.zeros(1, dtype=torch.float64, device=classifier.device)
    for batch in images.batches():
        if len(batch):
            embeddings = batch.embeddings if batch.embeddings is not None else classifier.embed(batch.inputs)[0]
            total += embeddings.flatten(1).double().norm(dim=1).sum()
    return classifier.sum_over_processes(total).item() / len(images)


def _measured_once(classifier: FrozenClassifier, images: FrozenImages, on_measure: Callable[[], Any]) -> Measure:
    """`measure_outcomes` that measures no noise twice, since the experiments share some."""
    known = {}

    def measure(noise: torch.Tensor) -> dict[str, float]:
        key = noise.cpu().numpy().tobytes()
        if key not in known:
            known[key] = measure_outcomes(classifier, images, noise)
        on_measure()
        return {"num_images": len(images), **known[key]}

    return measure


def _control(noise: torch.Tensor, seed: int) -> torch.Tensor:
    return permute_elements(noise, keyed_generator("permutation", seed))


def _with_control(measure: Measure, noise: torch.Tensor, seed: int) -> dict[str, float]:
    """Outcomes of the noise, and as `permuted_...` those of the noise with its elements permuted."""
    control = {f"permuted_{name}": value for name, value in measure(_control(noise, seed)).items()}
    del control["permuted_num_images"]
    return {**measure(noise), **control}


def _grid(noise: torch.Tensor, image_shape: Sequence[int]) -> tuple[int, int]:
    """`(rows, columns)` of the patches: square patches where they fit the image, one row for patches cut already."""
    num_patches = noise.shape[1]
    if len(image_shape) == 4:
        rows = round(math.sqrt(num_patches * image_shape[2] / image_shape[3]))
        if rows and num_patches % rows == 0:
            return rows, num_patches // rows
    return 1, num_patches


def _largest_agreeing(sweep: list[dict[str, float]], min_agreement: float) -> int:
    """Index of the largest noise that agrees often enough; of the one that agrees most often if none does."""
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


@torch.no_grad()
def _scale_to(classifier: FrozenClassifier, images: FrozenImages, noise: torch.Tensor, distance: float) -> float:
    """The scale of a noise where it moves the first batch's logits by `distance`, or by a tenth of their own norm."""
    batch = next(images.batches())
    # Distances saturate, so a large lambda cannot be met; the search grows the noise as far as it goes.
    distance = min(distance, 0.1 * torch.linalg.vector_norm(batch.clean_logits, dim=-1).mean().item())
    unit = _embedding_norm(classifier, images) / noise.norm().item()
    scale = boundary_scale(
        lambda scale: batch_means(classifier, batch, scale * unit * noise)[1].item(),
        distance,
        max_scale=1e6,
        tolerance=0.1,
    )
    if not 1e-5 < scale < 1e5:
        raise ValueError(
            f"No random noise moves the logits by about {distance:.3g}: the model's logits do not depend on its patch "
            "embeddings, or they do so too strongly for its arithmetic. Check that it is trained, or use float32."
        )
    return scale * unit
