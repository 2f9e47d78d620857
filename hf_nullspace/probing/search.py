"""Searches for noise that hardly changes an encoder's output, at one weight of its norm: the paper's probing objective."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from ..models.frozen import FrozenClassifier
from ..noise.certificate import remove_hidden_mean
from ..noise.images import FrozenImages
from ..noise.kinds import SharedNoise
from ..noise.methods.scaling import MAX_RELATIVE_NORM, boundary_scale
from ..noise.methods.steps import SCALE_GAIN, NoiseWalk, batch_means, distance_gradient, endless_batches, measured_axes
from ..utils.random import keyed_generator


def harmless_search_axes(
    classifier: FrozenClassifier,
    images: FrozenImages,
    norm_weight: float,
    max_steps: int,
    seed: int,
    on_step: Callable[[], Any],
) -> torch.Tensor:
    """
    Coordinates for [`search_at`], measured once, on as many batches as a search takes steps, under random noise that
    moves the logits by `norm_weight`.

    Returns:
        `torch.Tensor` of shape `(hidden_size, hidden_size)`; see [`~steps.measured_axes`].
    """
    random = torch.randn(1, *images.tokens_shape, generator=keyed_generator("sensitivity", seed))
    random = remove_hidden_mean(random.to(classifier.device))
    random *= images.embedding_norm / random.norm()
    random *= _scale_to(classifier, images, random, norm_weight)
    return measured_axes(classifier, itertools.islice(images.batches(), max_steps), SharedNoise(random), on_step)


def search_at(
    classifier: FrozenClassifier,
    images: FrozenImages,
    axes: torch.Tensor,
    norm_weight: float,
    max_steps: int,
    learning_rate: float,
    max_token_ratio: float | None,
    generator: torch.Generator,
    start: torch.Tensor | None = None,
    on_step: Callable[[], Any] | None = None,
) -> torch.Tensor:
    """
    Minimises `logit_distance(v) - norm_weight * log ||v||` (paper, section 3), whose optimum has no early stop.

    Each step updates first the direction and then the norm. Adam turns the direction down the distance, in coordinates
    of low sensitivity and with steps relative to their size. The norm follows its own optimality condition,
    `<gradient, v> = norm_weight`: the distance grows by `norm_weight` per relative growth of the noise. The objective has
    no lower bound once noise dominates the image and the distance stops growing. The norm is therefore also limited to
    where the distance is about lambda, and to `MAX_RELATIVE_NORM` times that of the patch embeddings. The objective also
    ignores how the norm spreads, so a single background patch could hold all of it. Tokens are therefore limited to a
    multiple of the median norm.

    Args:
        classifier ([`FrozenClassifier`]): The model.
        images ([`FrozenImages`]): The images to search on.
        axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): From coordinates to noise; see
            [`harmless_search_axes`].
        norm_weight (`float`): Lambda, in units of the logits.
        max_steps (`int`): Steps, each on one batch.
        learning_rate (`float`): Size of the first step relative to the noise's own; it falls to 0 along a cosine.
        max_token_ratio (`float` or `None`): Largest norm of a token, as a multiple of the median over the tokens.
        generator (`torch.Generator`): Draws the start and the order of the images.
        start (`torch.Tensor` of shape `(1, num_patches, hidden_size)`, *optional*): Coordinates to start from, at the
            norm where they move the logits by lambda. By default random ones.
        on_step (`Callable`, *optional*): Called after each step.

    Returns:
        `torch.Tensor` of shape `(1, num_patches, hidden_size)`: Coordinates; `coordinates @ axes` is the noise.
    """
    if start is None:
        start = torch.randn(1, *images.tokens_shape, generator=generator).to(axes.device)
        start *= images.embedding_norm / (start @ axes).norm()
    coordinates = start * _scale_to(classifier, images, start @ axes, norm_weight)
    max_norm = MAX_RELATIVE_NORM * images.embedding_norm
    walk = NoiseWalk(coordinates, coordinates @ axes, axes, learning_rate, max_steps, max_token_ratio, max_norm)
    for _, batch in zip(range(max_steps), endless_batches(images, generator), strict=False):
        measured = distance_gradient(classifier, batch, walk.noise)
        growth = torch.maximum((measured.gradient * walk.noise).sum(), measured.distance)
        walk.step(measured.gradient, SCALE_GAIN * torch.log(norm_weight / growth.clamp_min(1e-30)), measured.finite)
        if on_step is not None:
            on_step()
    return walk.coordinates


@torch.no_grad()
def _scale_to(classifier: FrozenClassifier, images: FrozenImages, noise: torch.Tensor, distance: float) -> float:
    """The scale of a noise where it moves the first batch's logits by `distance`, or by a tenth of their own norm."""
    batch = next(images.batches())
    # Distances saturate, so a large lambda cannot be reached here. The search then grows the noise as far as possible.
    distance = min(distance, 0.1 * torch.linalg.vector_norm(batch.clean_logits, dim=-1).mean().item())
    # Distances grow with the scale, and `boundary_scale` takes its steps for errors that grow with its square.
    scale = boundary_scale(
        lambda scale: batch_means(classifier, batch, scale * noise)[1].item() ** 2,
        distance**2,
        max_scale=1e6,
        tolerance=0.2,
    )
    if not 1e-5 < scale < 1e5:
        raise ValueError(
            f"No random noise moves the logits by about {distance:.3g}: the model's logits do not depend on its patch "
            "embeddings, or they do so too strongly for its arithmetic. Check that it is trained, or use float32."
        )
    return scale
