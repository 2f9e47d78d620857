"""`sample`: per-image noise, drawn along axes that the encoder is hardly sensitive to."""

from __future__ import annotations

import itertools

from ..kinds import DrawnNoise, all_directions, draw_in_axes
from .base import FoundNoise, NoiseMethod, SearchInputs, register
from .scaling import scaled_to_boundary
from .steps import endless_batches, measured_axes


@register
class SampleMethod(NoiseMethod):
    """
    Measures the axes that [`BoundaryMethod`] moves in, and draws random per-image noise along them.

    A model can memorise one shared noise and subtract it, but not per-image noise. A random draw has a smaller norm than
    a noise from a search, but takes no search steps.
    """

    name = "sample"
    help = "draws a noise of its own for every image, in axes that the encoder hardly sees"
    max_steps = 4
    noise_class = DrawnNoise
    ascent = 3.0

    def search(self, inputs: SearchInputs) -> FoundNoise:
        classifier, images, config, generator, on_step = inputs
        batches = endless_batches(images, generator)
        num_patches, hidden_size = images.tokens_shape
        equal = all_directions(hidden_size).to(classifier.device)
        random = draw_in_axes(equal, 1, num_patches, images.embedding_norm, generator)
        random = scaled_to_boundary(classifier, images, random, config.epsilon)
        # Per-image noise: a single noise would only reveal the directions in which it moves the logits itself.
        every = DrawnNoise(random, equal, key=("axes", config.seed))
        axes = measured_axes(classifier, itertools.islice(batches, config.max_steps), every, on_step)
        drawn = draw_in_axes(axes, 1, num_patches, every.norm, generator)
        drawn = scaled_to_boundary(classifier, images, drawn, config.epsilon)
        return FoundNoise(DrawnNoise(drawn, axes), config.max_steps)
