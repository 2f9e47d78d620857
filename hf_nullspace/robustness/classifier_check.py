"""Checks of a classifier that are run once, before its robustness is measured."""

from __future__ import annotations

import torch
from torch import nn
from transformers.utils import logging

from ..models.pixel_model import PixelModel, checked_class_indices
from .sources import ImageSource


logger = logging.get_logger(__name__)

# Two forward passes differ by this share of the logits' norm at most; half-precision kernels may differ that much.
RANDOMNESS_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-3


@torch.no_grad()
def check_classifier(model: PixelModel, pixels: torch.Tensor | None = None) -> torch.Tensor:
    """
    Raises for classifiers whose robustness would be measured wrongly; takes two forward passes.

    The model runs in its current mode, so dropout that was left on is detected.

    Args:
        model ([`PixelModel`]): The classifier.
        pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`, *optional*): A few pictures in [0, 1].
            By default two grey ramps of the size that the image processor gives.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)`: The logits of these pictures.

    Raises:
        `ValueError`: If the model refuses pictures of the image processor's size, its logits are not finite or are
            probabilities already, or two forward passes differ.
    """
    expected = _expected_size(model)
    if pixels is None:
        height, width = model.image_size or expected or (224, 224)
        channels = model.mean.shape[1]
        ramp = torch.linspace(0, 1, height * width, device=model.mean.device).view(1, 1, height, width)
        pixels = torch.cat([ramp, 1 - ramp]).expand(2, channels, height, width)
    size = tuple(pixels.shape[2:])
    disagreement = (
        f"The pictures have {size[0]}x{size[1]} pixels, but {type(model.model).__name__} was built for "
        f"{expected[0]}x{expected[1]}"
        if expected is not None and expected != size
        else None
    )
    try:
        logits = model(pixels)
    except (RuntimeError, ValueError) as error:
        if disagreement is None:
            raise
        raise ValueError(
            f"{disagreement}. Load the image processor that belongs to the model, or set its `size` (and `crop_size`), "
            f"or load the model at that `image_size`. The model says: {error}"
        ) from error
    if disagreement is not None:
        logger.warning(
            f"{disagreement}; it takes them, but its accuracy may differ from the published one. Set the image "
            "processor's `size` (and `crop_size`) if this is not meant."
        )
    if not logits.isfinite().all():
        raise ValueError(
            f"The logits of {type(model.model).__name__} are not finite. In half precision, load it in bfloat16 or "
            "float32; else its weights are broken."
        )
    _refuse_probabilities(model, logits)
    _refuse_randomness(model, logits, model(pixels))
    return logits


def check_labels(model: nn.Module, source: ImageSource, num_logits: int) -> None:
    """
    Raises for labels that are not indices of a model's logits, and for class names that are not one for each logit.

    Args:
        model (`nn.Module`): The classifier, for `config.id2label`.
        source ([`ImageSource`]): The labels.
        num_logits (`int`): How many logits the model gives.

    Raises:
        `ValueError`: If they do not fit.
    """
    name = type(model).__name__
    if num_logits == 1:
        raise ValueError(
            f"{name} gives one logit, which is largest for every picture: it is a regression, or a yes or no by a "
            "threshold that is not known here. Robustness is measured of classifiers with a logit for each class."
        )
    id2label = getattr(getattr(model, "config", None), "id2label", None)
    if id2label is not None and len(id2label) != num_logits:
        raise ValueError(
            f"{name} gives {num_logits} logits, but its config names {len(id2label)} classes "
            f"({list(id2label.values())[:5]} and so on), so which class a logit stands for is not known. Load it with the "
            "`id2label` that its head was trained with, or with a new head of as many labels."
        )
    if source.class_indices is not None:
        checked_class_indices(torch.empty(1, num_logits), source.class_indices)
    if source.labels and not 0 <= min(source.labels) <= max(source.labels) < num_logits:
        raise ValueError(
            f"{source.name!r} has labels from {min(source.labels)} to {max(source.labels)}, but {name} gives {num_logits} "
            "logits (0 to one less). Load a model with a logit for each class."
        )


def _expected_size(model: PixelModel) -> tuple[int, int] | None:
    config = getattr(model.model, "config", None)
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)


def _refuse_probabilities(model: PixelModel, logits: torch.Tensor) -> None:
    # One logit is no distribution, and its softmax is 1 whatever it is.
    if logits.shape[1] == 1 or (logits < 0).any() or ((logits.sum(-1) - 1).abs() > PROBABILITY_TOLERANCE).any():
        return
    raise ValueError(
        f"The logits of {type(model.model).__name__} are probabilities: none is negative and each row sums to 1. The "
        "gradients of attacks vanish on them, and the model would look more robust than it is. Return the values before "
        "the softmax."
    )


def _refuse_randomness(model: PixelModel, first: torch.Tensor, second: torch.Tensor) -> None:
    difference = ((first - second).norm(dim=-1) / first.norm(dim=-1).clamp_min(1e-12)).max().item()
    if difference <= RANDOMNESS_TOLERANCE:
        return
    training = any(module.training for module in model.model.modules())
    remedy = (
        "It is in training mode, where dropout is on: call `model.eval()`."
        if training
        else "It draws random numbers in evaluation mode too; one gradient says little about such a model, and no number "
        "could be reproduced. Switch its randomness off."
    )
    raise ValueError(
        f"Two forward passes of {type(model.model).__name__} on the same pictures differ by {difference:.2g} of the "
        f"logits' norm. {remedy}"
    )
