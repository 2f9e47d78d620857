"""Ways to look for noise on a frozen classifier: along the boundary of epsilon, by draws, and the paper's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.utils import logging

from .certificate import logit_distance, remove_hidden_mean
from .configuration import NullspaceConfig
from .frozen import FrozenBatch, FrozenClassifier, FrozenImages
from .image_noise import ImageNoise, draw_in_axes
from .sensitivity import harmless_axes, hidden_moment


logger = logging.get_logger(__name__)

# Adam's moments decay faster than its defaults, since a search takes tens of steps and not thousands.
BETAS = (0.9, 0.99)
# Adam's epsilon, as a share of the gradient's root mean square: below it, rounding decides the sign of an element.
GRADIENT_FLOOR = 0.01
# Steps that measure where the encoder is sensitive, before the noise is turned for the first time.
SENSITIVITY_STEPS = 4
# Share of the error's distance to epsilon, in logarithms, that one step's change of scale closes.
SCALE_GAIN = 0.3
# A bisection gives up on scales below this.
MIN_SCALE = 1e-6
# Largest norm of a noise, in norms of the patch embeddings. Only a model whose outputs hardly depend on its input (a new
# head, say) meets it: there the boundary of epsilon lies beyond any sensible noise.
MAX_RELATIVE_NORM = 10.0
# Largest change of the scale in one step, as a logarithm.
SCALE_LIMIT = 0.3


class FoundNoise(NamedTuple):
    """
    What a search found.

    Args:
        noise (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise.
        steps (`int`): Steps it took.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`, *optional*): Where every image gets a noise of its
            own: what they are drawn in; `noise` is one of them.
    """

    noise: torch.Tensor
    steps: int
    axes: torch.Tensor | None = None


def boundary_search(
    classifier: FrozenClassifier,
    images: FrozenImages,
    config: NullspaceConfig,
    generator: torch.Generator,
    on_step: Callable[[], None],
) -> FoundNoise:
    """
    Searches `argmax ||v|| subject to probability_mse(v) <= epsilon` by moving along the boundary.

    A random direction is scaled to the boundary. The first steps measure there to which directions of the hidden axis
    the encoder is sensitive, and give coordinates that avoid those ([`~sensitivity.harmless_axes`]); in these the search
    starts anew. Each further step turns the noise down the logarithm of `logit_distance`, keeping its norm, and lets a
    feedback on the measured `probability_mse` change the norm: where turning made the noise more harmless, it grows.
    Sizes are relative to the noise itself, so nothing depends on how large a model's patch embeddings are. A token's
    norm is held below `max_token_ratio` times the median, so that a few background tokens cannot hide an unbounded norm.
    A step whose logits are not finite makes the noise smaller, and is counted in a warning at the end. These steps need
    no device sync.
    """
    batches = endless_batches(images, generator)
    num_measured = min(SENSITIVITY_STEPS, config.max_steps // 2)
    num_turns = config.max_steps - num_measured
    coordinates = torch.randn(1, *images.tokens_shape, generator=generator).to(classifier.device)
    start = scaled_to_boundary(classifier, images, remove_hidden_mean(coordinates), config.epsilon)
    axes = measured_axes(classifier, itertools.islice(batches, num_measured), start, on_step)
    noise = scaled_to_boundary(classifier, images, coordinates @ axes, config.epsilon)
    coordinates = coordinates * (noise.norm() / (coordinates @ axes).norm())
    adam = RelativeAdam(coordinates)
    backed_off = torch.zeros((), device=noise.device)
    for turn, batch in zip(range(num_turns), batches, strict=False):
        step = distance_gradient(classifier, batch, noise)
        # Of log(distance), along the sphere of the noise's norm, in units of that norm.
        gradient = step.gradient / step.distance.clamp_min(1e-30) * noise.norm()
        gradient = torch.where(step.finite, gradient - noise * (gradient * noise).sum() / noise.square().sum(), 0.0)
        rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * turn / num_turns))
        coordinates = adam.step(coordinates, gradient @ axes.T, rate)
        turned = coordinates @ axes
        if config.max_token_ratio is not None:
            limits = token_limits(turned, config.max_token_ratio)
            coordinates, turned = coordinates * limits, turned * limits
        excess = torch.log(step.mse.clamp_min(1e-12) / config.epsilon)
        change = torch.where(step.finite, (-SCALE_GAIN / 2 * excess).clamp(-SCALE_LIMIT, SCALE_LIMIT), -1.0)
        norm = (noise.norm() * change.exp()).clamp_max(MAX_RELATIVE_NORM * images.embedding_norm)
        scale = norm / turned.norm()
        coordinates, noise = coordinates * scale, turned * scale
        backed_off += ~step.finite
        on_step()
    if backed_off:
        logger.warning(
            f"The model gave NaN or infinite logits in {int(backed_off)} of {config.max_steps} synthesis steps; each time "
            "the noise was made smaller. If there are many, run in bf16 or fp32 instead of fp16."
        )
    return FoundNoise(noise, config.max_steps)


def paper_search(
    classifier: FrozenClassifier,
    images: FrozenImages,
    config: NullspaceConfig,
    generator: torch.Generator,
    on_step: Callable[[], None],
) -> FoundNoise:
    """
    The paper's search: from a uniform start down `logit_distance - lambda * log(norm)`, until a batch meets epsilon.

    It departs from algorithm 1 in two places: the weight decay of AdamW is 0, since decay shrinks the noise, and the
    hidden-axis mean is removed at every step.

    Raises:
        `ValueError`: If the model gives NaN or infinite logits under the noise.
    """
    limit = config.noise_limit
    noise = torch.empty(1, *images.tokens_shape).uniform_(-limit, limit, generator=generator)
    noise = remove_hidden_mean(noise).to(classifier.device)
    optimizer = torch.optim.AdamW([noise], lr=config.learning_rate, weight_decay=0.0)
    for step, batch in zip(range(config.max_steps), endless_batches(images, generator), strict=False):
        measured = distance_gradient(classifier, batch, noise)
        mse, is_finite = torch.stack([measured.mse, measured.finite]).tolist()  # the step's one device sync
        if mse <= config.epsilon:
            return FoundNoise(noise, step)
        if not is_finite:
            raise ValueError(
                f"The model gives NaN or infinite logits under noise of norm {noise.norm():.3g} at synthesis step "
                f"{step}. Lower `noise_limit` ({config.noise_limit}) or `learning_rate` ({config.learning_rate}), or "
                "run in bf16 or fp32 instead of fp16."
            )
        noise.grad = measured.gradient - config.norm_weight * noise / noise.square().sum()
        optimizer.step()
        noise.copy_(remove_hidden_mean(noise))
        on_step()
    return FoundNoise(noise, config.max_steps)


def sample_search(
    classifier: FrozenClassifier,
    images: FrozenImages,
    config: NullspaceConfig,
    generator: torch.Generator,
    on_step: Callable[[], None],
) -> FoundNoise:
    """
    Measures the axes that [`boundary_search`] moves in, and draws in them at random.

    One noise can be learnt by heart, and subtracted; a noise of its own for every image cannot. A random draw is smaller
    than a noise that is searched for, but costs no step of its own.
    """
    batches, (num_patches, hidden_size) = endless_batches(images, generator), images.tokens_shape
    equal = remove_hidden_mean(torch.eye(hidden_size, device=classifier.device))
    random = draw_in_axes(equal, 1, num_patches, images.embedding_norm, generator)
    norm = scaled_to_boundary(classifier, images, random, config.epsilon).norm().item()
    # Another noise for each image: under one, an encoder shows the directions that it moves the logits in, and no others.
    every = ImageNoise(equal, num_patches, norm, ("axes", config.seed))
    axes = measured_axes(classifier, itertools.islice(batches, config.max_steps), every, on_step)
    noise = draw_in_axes(axes, 1, num_patches, norm, generator)
    return FoundNoise(scaled_to_boundary(classifier, images, noise, config.epsilon), config.max_steps, axes)


SEARCHES = {"boundary": boundary_search, "sample": sample_search, "paper": paper_search}


def boundary_scale(
    error_at: Callable[[float], float],
    epsilon: float,
    max_scale: float = 1.0,
    tolerance: float = 0.02,
    start: float = 1.0,
) -> float:
    """
    The largest scale found at which `error_at(scale) <= epsilon`, assuming that the error grows with the scale.

    Brackets the boundary and closes in on it by interpolating in logarithms, where the error is nearly a straight line.

    Args:
        error_at (`Callable[[float], float]`): The error of the noise at a scale.
        epsilon (`float`): The bound.
        max_scale (`float`, *optional*, defaults to 1.0): Largest scale to try.
        tolerance (`float`, *optional*, defaults to 0.02): The search ends when the scale is known to this relative
            width, or the error is this near below epsilon.
        start (`float`, *optional*, defaults to 1.0): The scale to try first.

    Returns:
        `float`: The scale, or 0 if even a millionth of the noise exceeds epsilon.
    """
    inside, inside_error, outside, outside_error = 0.0, 0.0, math.inf, math.inf
    scale = min(start, max_scale)
    while outside > inside * (1 + tolerance) and scale >= MIN_SCALE:
        error = error_at(scale)
        if error <= epsilon:
            inside, inside_error = scale, error
            if scale >= max_scale or error >= epsilon * (1 - tolerance) > 0:
                return scale
        else:
            outside, outside_error = scale, error
        if inside == 0.0:
            scale = outside * _step_towards(epsilon, outside_error, largest=1 / (1 + tolerance))
        elif outside == math.inf:
            scale = min(inside / _step_towards(inside_error, epsilon, largest=1 / (1 + tolerance)), max_scale)
        else:
            scale = _interpolate(inside, inside_error, outside, outside_error, epsilon)
    return inside


def _step_towards(smaller: float, larger: float, largest: float) -> float:
    """Ratio of scales whose errors are `smaller` and `larger` if the error is quadratic, between 1/4 and `largest`."""
    ratio = math.sqrt(smaller / larger) if math.isfinite(larger) and larger > 0 else 0.25
    return min(max(ratio, 0.25), largest)


def _interpolate(inside: float, inside_error: float, outside: float, outside_error: float, epsilon: float) -> float:
    """Where a straight line in logarithms meets epsilon, kept off the ends so that the bracket always shrinks."""
    share = 0.5
    if inside_error > 0 and math.isfinite(outside_error):
        share = math.log(epsilon / inside_error) / math.log(outside_error / inside_error)
    return inside * (outside / inside) ** min(max(share, 0.1), 0.9)


class RelativeAdam:
    """
    Adam (Kingma and Ba, 2015) whose steps are relative to the size of what it moves.

    Args:
        variable (`torch.Tensor`): What is moved; gives shape and device.
    """

    def __init__(self, variable: torch.Tensor):
        self.first, self.second, self.count = torch.zeros_like(variable), torch.zeros_like(variable), 0

    def step(self, variable: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """The variable moved by about `rate` times its root mean square."""
        self.count += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square(), 1 - BETAS[1])
        size = (self.second / (1 - BETAS[1] ** self.count)).sqrt()
        floor = GRADIENT_FLOOR * size.square().mean().sqrt() + torch.finfo(size.dtype).tiny
        direction = self.first / (1 - BETAS[0] ** self.count) / (size + floor)
        return variable - rate * variable.square().mean().sqrt() * direction


def scaled_to_boundary(
    classifier: FrozenClassifier, images: FrozenImages, direction: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The direction at the norm where the first batch's error is about epsilon, tried from the embeddings' own norm."""
    batch = next(images.batches())
    direction = direction * (images.embedding_norm / direction.norm())

    @torch.no_grad()
    def error_at(scale: float) -> float:
        return batch_means(classifier, batch, scale * direction)[0].item()

    scale = boundary_scale(error_at, epsilon, MAX_RELATIVE_NORM, tolerance=0.25)
    return direction * max(scale, MIN_SCALE)


def measured_axes(
    classifier: FrozenClassifier,
    batches: Iterable[FrozenBatch],
    noise: torch.Tensor | ImageNoise,
    on_step: Callable[[], None],
) -> torch.Tensor:
    """Axes of the hidden axis that avoid what moves the logits of these batches under `noise`: see [`harmless_axes`]."""
    differs = isinstance(noise, ImageNoise)
    hidden_size = (noise.axes if differs else noise).shape[-1]
    total = torch.zeros(hidden_size, hidden_size, device=classifier.device)
    for batch in batches:
        own = noise(batch.positions) if differs else noise
        step = distance_gradient(classifier, batch, own)
        moment = classifier.sum_over_processes(hidden_moment(step.local_gradients.to(_precise_dtype(own))))
        # Every batch counts the same, however large its gradients are; one that is not finite does not count.
        share = moment.trace().clamp_min(torch.finfo(torch.float32).tiny)
        total = total + torch.where(step.finite, moment / share, 0.0)
        on_step()
    return harmless_axes(total).float()


def endless_batches(images: FrozenImages, generator: torch.Generator) -> Iterator[FrozenBatch]:
    while True:
        yield from images.batches(torch.randperm(len(images), generator=generator))


def batch_means(
    classifier: FrozenClassifier, batch: FrozenBatch, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `probability_mse` and `logit_distance` of the global batch."""
    sums = torch.zeros(2, device=noise.device)
    if len(batch):
        noisy_logits = classifier.logits(batch.inputs, noise, batch.embeddings)
        mse, distance = (
            classifier.probability_mse(batch.clean_logits, noisy_logits),
            logit_distance(batch.clean_logits, noisy_logits),
        )
        sums = torch.stack([mse.sum(), distance.sum()])
    mse, distance = classifier.sum_over_processes(sums) / batch.global_size
    return mse, distance


@dataclass
class DistanceGradient:
    """
    What one batch says about a noise, over the images of all processes unless it says "local".

    Args:
        mse, distance (`torch.Tensor`): Mean `probability_mse` and `logit_distance`.
        gradient (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): Gradient of `distance`, as to a noise that
            all images share.
        local_gradients (`torch.Tensor` of shape `(local_images, num_patches, hidden_size)`): The gradients of the
            distances of this process's images.
        finite (`torch.Tensor`): Whether everything is finite.
    """

    mse: torch.Tensor
    distance: torch.Tensor
    gradient: torch.Tensor
    local_gradients: torch.Tensor
    finite: torch.Tensor


def distance_gradient(classifier: FrozenClassifier, batch: FrozenBatch, noise: torch.Tensor) -> DistanceGradient:
    """Runs the batch under `noise` of shape `(1 or local_images, num_patches, hidden_size)`, once there and once back."""
    precise = _precise_dtype(noise)
    sums = torch.zeros(2 + noise.shape[1] * noise.shape[2], dtype=precise, device=noise.device)
    local = noise.new_zeros(0, *noise.shape[1:])
    if len(batch):
        variable = noise.detach().expand(len(batch), -1, -1).requires_grad_()
        noisy_logits = classifier.logits(batch.inputs, variable, batch.embeddings)
        distance = logit_distance(batch.clean_logits, noisy_logits)
        (local,) = torch.autograd.grad(distance.sum(), variable)
        mse = classifier.probability_mse(batch.clean_logits, noisy_logits.detach())
        parts = (mse.unsqueeze(-1), distance.detach().unsqueeze(-1), local.flatten(1))
        sums = torch.cat([part.sum(0, dtype=precise) for part in parts])
    # One reduction for everything: the sums of the processes, divided by the size of the whole batch.
    sums = classifier.sum_over_processes(sums)
    means = (sums / batch.global_size).to(noise.dtype)
    return DistanceGradient(means[0], means[1], means[2:].view(1, *noise.shape[1:]), local, torch.isfinite(sums).all())


def _precise_dtype(noise: torch.Tensor) -> torch.dtype:
    """Double precision, in which the sum of the processes' sums is that of one process, where the device has it."""
    return torch.float32 if noise.device.type == "mps" else torch.float64


def token_limits(noise: torch.Tensor, max_ratio: float) -> torch.Tensor:
    """For each token the factor, at most 1, that brings its norm to `max_ratio` times the median over the tokens."""
    norms = torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
    limit = max_ratio * norms.median()
    return (limit / norms.clamp_min(torch.finfo(noise.dtype).tiny)).clamp_max(1.0)
