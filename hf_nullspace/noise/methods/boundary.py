"""`boundary`: moves along the boundary of epsilon towards larger noise."""

from __future__ import annotations

import itertools

import torch
from transformers.utils import logging

from ..certificate import remove_hidden_mean
from ..kinds import SharedNoise
from .base import FoundNoise, NoiseMethod, SearchInputs, register
from .scaling import MAX_RELATIVE_NORM, scaled_to_boundary
from .steps import SCALE_GAIN, NoiseWalk, distance_gradient, endless_batches, measured_axes


logger = logging.get_logger(__name__)

# Steps that measure where the encoder is sensitive, before the noise is turned for the first time.
SENSITIVITY_STEPS = 4


@register
class BoundaryMethod(NoiseMethod):
    """
    Searches `argmax ||v|| subject to probability_mse(v) <= epsilon` by moving along the boundary.

    A random direction is scaled to the boundary. The first steps measure there to which directions of the hidden axis
    the encoder is sensitive, and give coordinates that avoid those ([`~axes.harmless_axes`]); in these the search
    starts anew. Each further step turns the noise down the logarithm of `logit_distance`, keeping its norm, and lets a
    feedback on the measured `probability_mse` change the norm: where turning made the noise more harmless, it grows.
    Sizes are relative to the noise itself, so nothing depends on how large a model's patch embeddings are. A token's
    norm is held below `max_token_ratio` times the median, so that a few background tokens cannot hide an unbounded norm.
    A step whose logits are not finite makes the noise smaller, and is counted in a warning at the end. These steps need
    no device sync.
    """

    name = "boundary"
    help = "moves one noise along the boundary of epsilon towards a larger norm"
    learning_rate = 0.3
    max_steps = 24
    settings = ("learning_rate", "max_token_ratio")

    def search(self, inputs: SearchInputs) -> FoundNoise:
        classifier, images, config, generator, on_step = inputs
        batches = endless_batches(images, generator)
        num_measured = min(SENSITIVITY_STEPS, config.max_steps // 2)
        num_turns = config.max_steps - num_measured
        coordinates = torch.randn(1, *images.tokens_shape, generator=generator).to(classifier.device)
        start = scaled_to_boundary(classifier, images, remove_hidden_mean(coordinates), config.epsilon)
        axes = measured_axes(classifier, itertools.islice(batches, num_measured), SharedNoise(start), on_step)
        noise = scaled_to_boundary(classifier, images, coordinates @ axes, config.epsilon)
        coordinates = coordinates * (noise.norm() / (coordinates @ axes).norm())
        max_norm = MAX_RELATIVE_NORM * images.embedding_norm
        walk = NoiseWalk(coordinates, noise, axes, config.learning_rate, num_turns, config.max_token_ratio, max_norm)
        backed_off = torch.zeros((), device=noise.device)
        for _, batch in zip(range(num_turns), batches, strict=False):
            step = distance_gradient(classifier, batch, walk.noise)
            # Of log(distance), in units of the noise's norm.
            gradient = step.gradient / step.distance.clamp_min(1e-30) * walk.noise.norm()
            excess = torch.log(step.mse.clamp_min(1e-12) / config.epsilon)
            walk.step(gradient, -SCALE_GAIN / 2 * excess, step.finite)
            backed_off += ~step.finite
            on_step()
        if backed_off:
            logger.warning(
                f"The model gave NaN or infinite logits in {int(backed_off)} of {config.max_steps} synthesis steps; each time "
                "the noise was made smaller. If there are many, run in bf16 or fp32 instead of fp16."
            )
        return FoundNoise(SharedNoise(walk.noise), config.max_steps)
