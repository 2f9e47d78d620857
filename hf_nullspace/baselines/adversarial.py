"""Finetuning on adversarial examples, under the same regime as the other ways: PGD training and TRADES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from ..models.frozen import frozen
from ..models.full_precision import full_precision, is_half
from ..models.model_inputs import LABEL_NAMES
from ..models.objectives import kl_divergence, read_logits
from ..models.pixel_box import normalization, pixel_limits
from ..robustness.attacks.epsilon import parse_epsilon
from ..training.arguments import check_not_negative
from ..training.images import image_statistics
from .rival import RivalTrainer, RivalTrainingArguments, check_steps
from .way import Way


# Standard deviation of TRADES' start, in pixel units: at the image itself the divergence has no gradient.
TRADES_START = 0.001


@dataclass
class AdversarialTrainingArguments(RivalTrainingArguments):
    """
    Arguments of [`AdversarialTrainer`] and [`TradesTrainer`]: those of [`NullspaceTrainingArguments`], and how an
    adversarial example is made.

    Args:
        adversarial_epsilon (`str` or `float`, *optional*, defaults to `"8/255"`):
            Radius of the Linf ball, in pixel units; at 0 the examples are the images themselves.
        adversarial_steps (`int`, *optional*, defaults to 3):
            Steps of the attack. Each costs a forward and a backward pass.
        adversarial_step_size (`str` or `float`, *optional*):
            Length of a step, in pixel units. Defaults to `2.5 * adversarial_epsilon / adversarial_steps` (Madry et al.,
            2018), with which every point of the ball can be reached from every other.
        trades_beta (`float`, *optional*, defaults to 6.0):
            Weight of the divergence in TRADES; at 0 training is that of `Trainer`.

    <Tip>

    Defaults that differ from [`NullspaceTrainingArguments`]: `noise_weight` is 0, and must be.

    </Tip>

    Raises:
        `ValueError`: If a value lies outside its range.
        `TypeError`: If a radius or step is neither a number nor text.
    """

    adversarial_epsilon: str = field(
        default="8/255", metadata={"help": "Radius of the adversarial examples, in pixel units."}
    )
    adversarial_steps: int = field(default=3, metadata={"help": "Steps of the attack."})
    adversarial_step_size: str | None = field(
        default=None, metadata={"help": "Length of a step, in pixel units; 2.5 * epsilon / steps by default."}
    )
    trades_beta: float = field(default=6.0, metadata={"help": "Weight of the divergence in TRADES."})

    def __post_init__(self):
        super().__post_init__()
        check_steps(self, "adversarial_steps")
        check_not_negative(self, "trades_beta")
        self.radius_and_step()

    def radius_and_step(self) -> tuple[float, float]:
        """Radius and length of a step as numbers, in pixel units."""
        radius = _parse("adversarial_epsilon", self.adversarial_epsilon)
        if self.adversarial_step_size is None:
            return radius, 2.5 * radius / self.adversarial_steps
        return radius, _parse("adversarial_step_size", self.adversarial_step_size)


def _parse(name: str, value: float | str) -> float:
    try:
        return parse_epsilon(value)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`epsilon`", f"`{name}`")) from None


class Ascent(Protocol):
    """How examples are made of images: [`LinfAscent`], or another with this method."""

    def maximize(
        self,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        pixel_values: torch.Tensor,
        start: torch.Tensor,
    ) -> torch.Tensor: ...


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
        lower = torch.maximum(lower, -self.epsilon / std)
        upper = torch.minimum(upper, self.epsilon / std)
        change = (start / std).clamp(lower, upper)
        for _ in range(self.steps):
            direction = raising_direction(loss_of, (images + change).to(pixel_values.dtype))
            change = (change + self.step_size / std * direction).clamp(lower, upper)
        return (images + change).to(pixel_values.dtype)


def raising_direction(loss_of: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The sign of the gradient of a loss at some images, in float32; 0 where it is not finite."""
    with torch.enable_grad():
        current = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(current), current)
    return gradient.float().nan_to_num(0.0, 0.0, 0.0).sign()


def uniform_start(epsilon: float, pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A change of images, uniform in the ball, in pixel units; drawn on the CPU."""
    start = epsilon * (2 * torch.rand(pixel_values.shape, generator=generator) - 1)
    return start.to(pixel_values.device)


def gaussian_start(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A small Gaussian change of images, in pixel units; drawn on the CPU."""
    return (TRADES_START * torch.randn(pixel_values.shape, generator=generator)).to(pixel_values.device)


def divergence_loss(
    logits_of: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    What the adversary of TRADES raises: how far the predictions of images are from those of the clean ones.

    Args:
        logits_of (`Callable`): From normalised images to logits of shape `(batch_size, num_labels)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The clean images, normalised.

    Returns:
        `Callable`: From images to the sum of their divergences.
    """
    with torch.no_grad():
        clean_logits = logits_of(pixel_values)
    return lambda images: kl_divergence(clean_logits, scaled_rows(logits_of(images))).sum()


def scaled_rows(logits: torch.Tensor) -> torch.Tensor:
    """
    The logits in float32; the gradient of each row is scaled by a power of two on its way back, to a size of about 1.

    The gradient of a confident prediction is tiny and would underflow to 0 in float16 layers. Images are independent in
    eval mode, so the gradient of each image keeps its direction and exactly its signs.
    """
    logits = logits.float()
    if logits.requires_grad:
        logits.register_hook(lambda gradient: torch.ldexp(gradient, -_exponent(gradient)))
    return logits


def _exponent(gradient: torch.Tensor) -> torch.Tensor:
    return torch.frexp(gradient.abs().amax(-1, keepdim=True)).exponent.clamp(-100, 100)


class AdversarialTrainer(RivalTrainer):
    """
    Finetunes on `CE(adversarial)`: PGD training ([Madry et al., 2018](https://arxiv.org/abs/1706.06083)).

    Every training image is replaced by an adversarial example that raises the training loss, also for multi-label
    classification and regression. It is made on the current weights in eval mode, so the attack applies no dropout and
    updates no running statistics. Its random start depends only on the seed, the step and the image's place in the batch
    of that step, over all micro-batches and processes. Evaluation and prediction run without attack. Everything else is [`NullspaceTrainer`]
    without noise.

    Args:
        args ([`AdversarialTrainingArguments`]):
            The arguments; any other are refused.
        processing_class ([`~transformers.BaseImageProcessor`]):
            The image processor, whose normalisation says what a pixel is. The training images must be normalised with
            it, and lie in [0, 1] before.

    Raises:
        `TypeError`: If `args` is no [`AdversarialTrainingArguments`], or `processing_class` no image processor.
        `ValueError`: If the image processor's normalisation does not fit the model; in `train`, if the training images
            are not normalised with it, or have no labels.
    """

    args_class = AdversarialTrainingArguments
    has_own_loss = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        reason = "Adversarial examples are"
        self._image_mean, self._image_std = image_statistics(self.model, self.processing_class, reason)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        self._own_loss_ran = True
        if model.training:
            inputs = {**inputs, "pixel_values": self._adversarial_examples(model, inputs, num_items_in_batch)}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _adversarial_examples(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        The images to train on, made on the unwrapped model, so DDP does not synchronise the attack's passes.

        Uses float32 if training is in float16, where the attack's gradients would underflow.
        """
        images = inputs["pixel_values"]
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        underflows = self.accelerator.mixed_precision == "fp16" or is_half(unwrapped)
        generators = self.image_generators(len(images))
        with frozen(unwrapped), full_precision(unwrapped) if underflows else self.accelerator.autocast():
            inputs = {**inputs, "pixel_values": images.float() if underflows else images}
            loss_of = self._loss_to_raise(unwrapped, inputs, num_items_in_batch)
            starts = [
                self._start(image, draws) for image, draws in zip(inputs["pixel_values"], generators, strict=True)
            ]
            return self._ascent().maximize(loss_of, inputs["pixel_values"], torch.stack(starts)).to(images.dtype)

    def _ascent(self) -> Ascent:
        radius, step_size = self.args.radius_and_step()
        return LinfAscent(self._image_mean, self._image_std, radius, self.args.adversarial_steps, step_size)

    def _start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return uniform_start(self.args.radius_and_step()[0], images, generator)

    def _loss_to_raise(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The loss that the model is trained on, whatever that is."""
        if not set(inputs) & {*LABEL_NAMES, *self.label_names}:
            raise ValueError(f"The training batch has no `labels` to be adversarial to, only {sorted(inputs)}.")

        def loss_of(images: torch.Tensor) -> torch.Tensor:
            batch = {**inputs, "pixel_values": images}
            return super(AdversarialTrainer, self).compute_loss(model, batch, num_items_in_batch=num_items_in_batch)

        return loss_of

    def _method_in_words(self) -> str:
        return f"it saw adversarial examples of its training images (PGD, Linf {self.args.adversarial_epsilon})."


class TradesTrainer(AdversarialTrainer):
    """
    Finetunes on `CE(clean) + trades_beta * KL(clean || adversarial)`: TRADES
    ([Zhang et al., 2019](https://arxiv.org/abs/1901.08573)).

    The adversary raises that divergence, from a Gaussian start of standard deviation 0.001 in pixels and in evaluation
    mode, as the paper's does. Gradients of the divergence flow through both predictions. Clean and adversarial images
    run in two forward passes. Arguments and errors are those of [`AdversarialTrainer`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        problem_type = getattr(self.model.config, "problem_type", None)
        if problem_type in ("multi_label_classification", "regression"):
            raise ValueError(
                f"TRADES compares the probabilities of a softmax, which a model with `problem_type={problem_type!r}` does "
                "not have. Use `AdversarialTrainer`, which attacks the model's own loss."
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        self._own_loss_ran = True
        parent = super(AdversarialTrainer, self).compute_loss
        if not (model.training and self.args.trades_beta):
            return parent(model, inputs, return_outputs, num_items_in_batch)
        examples = self._adversarial_examples(model, inputs)
        labels = inputs.get("labels")
        loss, outputs = parent(model, inputs, True, num_items_in_batch)
        unlabelled = {name: value for name, value in inputs.items() if name not in LABEL_NAMES}
        adversarial = model(**{**unlabelled, "pixel_values": examples})
        divergence = kl_divergence(read_logits(outputs), read_logits(adversarial))
        loss = loss + self.args.trades_beta * self._reduce(divergence, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _reduce(
        self, values: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Reduces per-image values as `Trainer` reduces the loss: over the micro-batch, or as its share of the batch."""
        if num_items_in_batch is None:
            return values.mean()
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        # `num_items_in_batch` counts the labels of the whole batch, of which an image of a segmentation has many.
        items_of_each = labels.ne(-100).sum() / len(values)
        return values.sum() * items_of_each * scale / num_items_in_batch

    def _start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return gaussian_start(images, generator)

    def _loss_to_raise(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The divergence from the clean predictions, which needs no labels."""
        others = {name: value for name, value in inputs.items() if name not in (*LABEL_NAMES, "pixel_values")}

        def logits_of(images: torch.Tensor) -> torch.Tensor:
            return read_logits(model(pixel_values=images, **others))

        return divergence_loss(logits_of, inputs["pixel_values"])

    def _method_in_words(self) -> str:
        return (
            "beside each clean image it saw an adversarial example of it "
            f"(TRADES, Linf {self.args.adversarial_epsilon}, beta {self.args.trades_beta:g})."
        )


PGD = Way(
    "pgd",
    "adversarial examples of the loss (PGD)",
    1.0 + AdversarialTrainingArguments.adversarial_steps,
    AdversarialTrainer,
    AdversarialTrainingArguments,
    {"noise_weight": 0.0},
)
TRADES = Way(
    "trades",
    "clean images, and the divergence of adversarial ones (TRADES)",
    2.0 + AdversarialTrainingArguments.adversarial_steps,
    TradesTrainer,
    AdversarialTrainingArguments,
    {"noise_weight": 0.0},
)
