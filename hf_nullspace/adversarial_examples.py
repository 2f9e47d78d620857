"""The inner maximisation of adversarial training: images that raise a loss, within a Linf ball of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from .objectives import kl_divergence
from .pixel_box import normalization, pixel_limits


# Standard deviation of TRADES' start, in pixel units: at the image itself the divergence has no gradient.
TRADES_START = 0.001


@dataclass(frozen=True)
class LinfAscent:
    """
    Projected ascent along the sign of the gradient, in a Linf ball around normalised images.

    The ball and the steps are those of pixels in [0, 1], whatever the normalisation, and every picture stays one. All
    images take all steps: nothing stops early, so that every process runs the model equally often.

    Args:
        image_mean, image_std (`Sequence[float]`): Normalisation of the images, one value for each channel.
        epsilon (`float`): Radius of the ball, in pixel units.
        steps (`int`): Number of steps.
        step_size (`float`): Length of a step, in pixel units.
    """

    image_mean: Sequence[float]
    image_std: Sequence[float]
    epsilon: float
    steps: int
    step_size: float

    def maximize(
        self,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        pixel_values: torch.Tensor,
        start: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            loss_of (`Callable`): From images to a loss summed over them, which it must not draw random numbers for.
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
            start (`torch.Tensor` of the same shape): First change of the images, in pixel units; projected.

        Returns:
            `torch.Tensor` of the shape and dtype of `pixel_values`.

        Raises:
            `ValueError`: If the images are not pictures in [0, 1] normalised as `image_mean` and `image_std` say.
        """
        images = pixel_values.detach().float()
        lower, upper = pixel_limits(images, self.image_mean, self.image_std)
        std = normalization(self.image_mean, self.image_std, images)[1].float()
        lower, upper = torch.maximum(lower, -self.epsilon / std), torch.minimum(upper, self.epsilon / std)
        change = (start / std).clamp(lower, upper)
        for _ in range(self.steps):
            with torch.enable_grad():
                current = (images + change).to(pixel_values.dtype).requires_grad_()
                (gradient,) = torch.autograd.grad(loss_of(current), current)
            direction = gradient.float().nan_to_num(0.0, 0.0, 0.0).sign()
            change = (change + self.step_size / std * direction).clamp(lower, upper)
        return (images + change).to(pixel_values.dtype)


def pgd_examples(
    ascent: LinfAscent,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """
    Images of high cross-entropy ([Madry et al., 2018](https://arxiv.org/abs/1706.06083)), from a uniform start in the
    ball.

    Args:
        ascent ([`LinfAscent`]): The ball and the steps.
        logits_of (`Callable`): From normalised images to logits of shape `(batch_size, num_labels)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        labels (`torch.Tensor` of shape `(batch_size,)`, or `(batch_size, num_labels)` for probabilities): Their classes.
        generator (`torch.Generator`): A CPU generator, which draws the start.
    """

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(scaled_rows(logits_of(images)), labels, reduction="sum")

    return ascent.maximize(loss_of, pixel_values, uniform_start(ascent.epsilon, pixel_values, generator))


def uniform_start(epsilon: float, pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A change of images, uniform in the ball, in pixel units; drawn on the CPU."""
    start = epsilon * (2 * torch.rand(pixel_values.shape, generator=generator) - 1)
    return start.to(pixel_values.device)


def scaled_rows(logits: torch.Tensor) -> torch.Tensor:
    """
    The logits in float32; the gradient of each row is scaled by a power of two on its way back, to a size of about 1.

    The gradient of a confident answer is tiny, and in float16 it would be 0 in the layers below. Images do not mix in
    evaluation mode, so the gradient of each image keeps its direction, and its sign bit for bit.
    """
    logits = logits.float()
    if logits.requires_grad:
        logits.register_hook(lambda gradient: torch.ldexp(gradient, -_exponent(gradient)))
    return logits


def _exponent(gradient: torch.Tensor) -> torch.Tensor:
    return torch.frexp(gradient.abs().amax(-1, keepdim=True)).exponent.clamp(-100, 100)


def trades_examples(
    ascent: LinfAscent,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """
    Images whose prediction diverges most from the clean one ([Zhang et al., 2019](https://arxiv.org/abs/1901.08573)),
    from a small Gaussian start; no labels are needed.

    Args:
        ascent, logits_of, pixel_values, generator: As in [`pgd_examples`].
    """
    start = TRADES_START * torch.randn(pixel_values.shape, generator=generator)
    with torch.no_grad():
        clean_logits = logits_of(pixel_values)

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        return kl_divergence(clean_logits, scaled_rows(logits_of(images))).sum()

    return ascent.maximize(loss_of, pixel_values, start.to(pixel_values.device))
