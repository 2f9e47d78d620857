"""Building blocks of noise searches: batches, gradients, Adam with relative steps, and axes of low sensitivity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from ...models.frozen import FrozenClassifier
from ...models.objectives import logit_distance
from ..images import FrozenBatch, FrozenImages
from ..kinds import Noise
from .axes import harmless_axes, hidden_moment


# Adam's moments decay faster than its defaults, since a search takes tens of steps and not thousands.
BETAS = (0.9, 0.99)
# Adam's epsilon, as a share of the gradient's root mean square: below it, rounding decides the sign of an element.
GRADIENT_FLOOR = 0.01
# Share of the error's distance to epsilon, in logarithms, that one step's change of scale closes.
SCALE_GAIN = 0.3
# Largest change of the scale in one step, as a logarithm.
SCALE_LIMIT = 0.3


class RelativeAdam:
    """
    Adam (Kingma and Ba, 2015) whose steps are relative to the size of what it moves.

    Args:
        variable (`torch.Tensor`): What is moved; gives shape and device.
    """

    def __init__(self, variable: torch.Tensor):
        self.first = torch.zeros_like(variable)
        self.second = torch.zeros_like(variable)
        self.count = 0

    def step(self, variable: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """The variable moved by about `rate` times its root mean square."""
        self.count += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square(), 1 - BETAS[1])
        size = (self.second / (1 - BETAS[1] ** self.count)).sqrt()
        floor = GRADIENT_FLOOR * size.square().mean().sqrt() + torch.finfo(size.dtype).tiny
        direction = self.first / (1 - BETAS[0] ** self.count) / (size + floor)
        return variable - rate * variable.square().mean().sqrt() * direction


class NoiseWalk:
    """
    The state of a search. Each step turns the noise in coordinates of low sensitivity and changes its norm.

    Args:
        coordinates (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): Where it starts; `coordinates @ axes` is
            the noise.
        noise (`torch.Tensor` of the same shape): The noise there.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): See [`measured_axes`].
        learning_rate (`float`): Size of the first turn relative to the coordinates' own; it falls to 0 along a cosine.
        num_steps (`int`): Steps it will take.
        max_token_ratio (`float` or `None`): Largest norm of a token, as a multiple of the median over the tokens.
        max_norm (`float`): Largest norm.

    Attributes:
        coordinates, noise (`torch.Tensor`): Where it is.
    """

    def __init__(
        self,
        coordinates: torch.Tensor,
        noise: torch.Tensor,
        axes: torch.Tensor,
        learning_rate: float,
        num_steps: int,
        max_token_ratio: float | None,
        max_norm: float,
    ):
        self.coordinates = coordinates
        self.noise = noise
        self.axes = axes
        self.learning_rate = learning_rate
        self.num_steps = num_steps
        self.max_token_ratio = max_token_ratio
        self.max_norm = max_norm
        self._adam = RelativeAdam(coordinates)

    def step(self, gradient: torch.Tensor, change: torch.Tensor, finite: torch.Tensor) -> None:
        """
        Turns the noise down a gradient, along the sphere of its norm, and changes the norm; without a device sync.

        Args:
            gradient (`torch.Tensor` of the shape of the noise): Its scale does not matter.
            change (`torch.Tensor`): Wanted change of the norm, as a logarithm; at most `SCALE_LIMIT` is made of it.
            finite (`torch.Tensor`): Whether the model's logits were. If not, the noise is only made smaller.
        """
        along = self.noise * (gradient * self.noise).sum() / self.noise.square().sum()
        gradient = torch.where(finite, gradient - along, 0.0)
        rate = self.learning_rate * 0.5 * (1 + math.cos(math.pi * self._adam.count / self.num_steps))
        coordinates = self._adam.step(self.coordinates, gradient @ self.axes.T, rate)
        turned = coordinates @ self.axes
        if self.max_token_ratio is not None:
            limits = token_limits(turned, self.max_token_ratio)
            coordinates = coordinates * limits
            turned = turned * limits
        change = torch.where(finite, change.clamp(-SCALE_LIMIT, SCALE_LIMIT), -1.0)
        norm = (self.noise.norm() * change.exp()).clamp_max(self.max_norm)
        scale = norm / turned.norm()
        self.coordinates = coordinates * scale
        self.noise = turned * scale


def measured_axes(
    classifier: FrozenClassifier,
    batches: Iterable[FrozenBatch],
    noise: Noise,
    on_step: Callable[[], None],
) -> torch.Tensor:
    """Axes of the hidden axis that avoid what moves the logits of these batches under `noise`: see [`harmless_axes`]."""
    hidden_size = noise.tensor.shape[-1]
    total = torch.zeros(hidden_size, hidden_size, device=classifier.device)
    for batch in batches:
        own = noise.at(batch.positions)
        step = distance_gradient(classifier, batch, own)
        moment = classifier.sum_over_processes(hidden_moment(step.local_gradients.to(_precise_dtype(own))))
        # Every batch has the same weight, whatever the size of its gradients. Batches that are not finite are ignored.
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
        mse = classifier.probability_mse(batch.clean_logits, noisy_logits)
        distance = logit_distance(batch.clean_logits, noisy_logits)
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
