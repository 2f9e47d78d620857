"""N-FGSM: adversarial examples of one step, from images with much noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..models.pixel_box import normalization, pixel_limits
from ..training.arguments import check_not_negative
from .adversarial import AdversarialTrainer, AdversarialTrainingArguments, raising_direction, uniform_start
from .way import Way


@dataclass
class NFGSMTrainingArguments(AdversarialTrainingArguments):
    """
    Arguments of [`NFGSMTrainer`]: those of [`AdversarialTrainingArguments`], and the noise.

    Args:
        nfgsm_noise (`float`, *optional*, defaults to 2.0):
            Half the width of the uniform noise, in units of `adversarial_epsilon`; the paper's `k`.

    <Tip>

    Defaults that differ from [`AdversarialTrainingArguments`]: `adversarial_steps` is 1, and must be;
    `adversarial_step_size` is `adversarial_epsilon`.

    </Tip>

    Raises:
        `ValueError`: If `nfgsm_noise` is no number of at least 0, or `adversarial_steps` is not 1.
    """

    adversarial_steps: int = field(default=1, metadata={"help": "Must be 1: N-FGSM takes one step."})
    nfgsm_noise: float = field(
        default=2.0, metadata={"help": "Half the width of the uniform noise, in units of `adversarial_epsilon`."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(self, "nfgsm_noise")
        if self.adversarial_steps != 1:
            raise ValueError(
                f"`adversarial_steps` must be 1 in N-FGSM, but got {self.adversarial_steps!r}. PGD takes several."
            )

    def radius_and_step(self) -> tuple[float, float]:
        """Radius and length of the step as numbers, in pixel units; by default they are the same."""
        radius, step_size = super().radius_and_step()
        return radius, radius if self.adversarial_step_size is None else step_size


@dataclass(frozen=True)
class UnclippedStep:
    """
    One step along the sign of the gradient from noisy images, which stays where it arrives.

    Args:
        image_mean, image_std (`Sequence[float]`): Normalisation of the images, one value for each channel.
        step_size (`float`): Length of the step, in pixel units.
    """

    image_mean: Sequence[float]
    image_std: Sequence[float]
    step_size: float

    def maximize(
        self,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        pixel_values: torch.Tensor,
        start: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            loss_of, pixel_values: As in [`~LinfAscent.maximize`].
            start (`torch.Tensor` of the shape of `pixel_values`): The noise, in pixel units; it stays in the images.

        Returns:
            `torch.Tensor` of the shape and dtype of `pixel_values`; pixels may lie outside [0, 1].

        Raises:
            `ValueError`: If the images are not pictures in [0, 1] normalised as `image_mean` and `image_std` say.
        """
        images = pixel_values.detach().float()
        pixel_limits(images, self.image_mean, self.image_std)  # checks them
        std = normalization(self.image_mean, self.image_std, images)[1].float()
        noisy = images + start / std
        direction = raising_direction(loss_of, noisy.to(pixel_values.dtype))
        return (noisy + self.step_size / std * direction).to(pixel_values.dtype)


class NFGSMTrainer(AdversarialTrainer):
    """
    Finetunes on the examples of N-FGSM ([de Jorge et al., 2022](https://arxiv.org/abs/2202.01181)).

    An example is `x + noise + step_size * sign(gradient of the loss at x + noise)`, with the noise uniform in
    `[-nfgsm_noise, nfgsm_noise] * adversarial_epsilon`. As in the paper, the sum is clipped neither to the ball around `x`
    nor to pixels in [0, 1]. Everything else is [`AdversarialTrainer`].
    """

    args_class = NFGSMTrainingArguments

    def _ascent(self) -> UnclippedStep:
        return UnclippedStep(self._image_mean, self._image_std, self.args.radius_and_step()[1])

    def _start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return uniform_start(self.args.nfgsm_noise * self.args.radius_and_step()[0], images, generator)

    def _method_in_words(self) -> str:
        return (
            "it saw adversarial examples of its training images "
            f"(N-FGSM, Linf {self.args.adversarial_epsilon}, noise {self.args.nfgsm_noise:g})."
        )


NFGSM = Way(
    "nfgsm",
    "adversarial examples of one step from noisy images (N-FGSM)",
    2.0,
    NFGSMTrainer,
    NFGSMTrainingArguments,
    {"noise_weight": 0.0},
)
