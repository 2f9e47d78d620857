"""`paper`: algorithm 1 of the paper, down from a large random start."""

from __future__ import annotations

import torch

from ..certificate import remove_hidden_mean
from ..kinds import SharedNoise
from .base import FoundNoise, NoiseMethod, SearchInputs, register
from .steps import distance_gradient, endless_batches


@register
class PaperMethod(NoiseMethod):
    """
    The paper's search: from a uniform start down `logit_distance - lambda * log(norm)`, until a batch meets epsilon.

    It departs from algorithm 1 in two places: the weight decay of AdamW is 0, since decay shrinks the noise, and the
    hidden-axis mean is removed at every step.

    Raises:
        `ValueError`: If the model gives NaN or infinite logits under the noise.
    """

    name = "paper"
    help = "is algorithm 1, which goes down from a large random start until a batch meets epsilon"
    learning_rate = 0.1
    max_steps = 100
    settings = ("learning_rate", "noise_limit", "norm_weight")
    scales_up = False

    def search(self, inputs: SearchInputs) -> FoundNoise:
        classifier, images, config, generator, on_step = inputs
        limit = config.noise_limit
        noise = torch.empty(1, *images.tokens_shape).uniform_(-limit, limit, generator=generator)
        noise = remove_hidden_mean(noise).to(classifier.device)
        optimizer = torch.optim.AdamW([noise], lr=config.learning_rate, weight_decay=0.0)
        for step, batch in zip(range(config.max_steps), endless_batches(images, generator), strict=False):
            measured = distance_gradient(classifier, batch, noise)
            mse, is_finite = torch.stack([measured.mse, measured.finite]).tolist()  # the step's one device sync
            if mse <= config.epsilon:
                return FoundNoise(SharedNoise(noise), step)
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
        return FoundNoise(SharedNoise(noise), config.max_steps)
