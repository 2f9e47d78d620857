"""A noise method from outside the package: its whole definition, as a user would write it."""

import torch

from hf_nullspace.noise.certificate import remove_hidden_mean
from hf_nullspace.noise.kinds import SharedNoise
from hf_nullspace.noise.methods import NoiseMethod, register
from hf_nullspace.noise.methods.base import FoundNoise


@register
class FlatMethod(NoiseMethod):
    """The same random vector on every token."""

    name = "flat"
    help = "puts one random vector on all tokens"
    max_steps = 3
    settings = ("noise_limit",)

    def check(self, config):
        if config.noise_limit > 5:
            raise ValueError(
                f"`noise_limit` must be at most 5 with `method='flat'`, but got {config.noise_limit!r}. Give a smaller one."
            )

    def search(self, inputs):
        classifier, images, config, generator, on_step = inputs
        num_patches, hidden_size = images.tokens_shape
        vector = torch.empty(1, 1, hidden_size).uniform_(-config.noise_limit, config.noise_limit, generator=generator)
        for _ in range(config.max_steps):
            on_step()
        noise = remove_hidden_mean(vector).expand(1, num_patches, hidden_size)
        return FoundNoise(SharedNoise(noise.to(classifier.device)), config.max_steps)
