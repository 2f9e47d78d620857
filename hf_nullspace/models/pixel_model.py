"""Any image classifier as a function of pixels in [0, 1], the space of attacks and corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor
from transformers.utils import ModelOutput

from .patch_projection import channels_of
from .preprocessing import Preprocessing


class PixelModel(nn.Module):
    """
    Normalises pixels as the image processor does, then classifies them.

    This is the `model` that torchattacks, foolbox (`PyTorchModel(pixel_model, bounds=(0, 1))`) and AutoAttack expect;
    `examples/attack_with_other_tools.py` shows it. Wrap such attacks in [`~hf_nullspace.frozen.frozen`], which
    restores every module and weight: these tools leave gradients on weights that require one.

    Pixels are normalised in float32 and cast to the dtype of the model's weights (float16 and bfloat16 included);
    logits come back in float32.

    Args:
        model (`nn.Module`): A classifier that takes `pixel_values` and whose output has `logits`; unwrapped.
        image_processor ([`~transformers.BaseImageProcessor`] or [`~preprocessing.Preprocessing`]): Says how pixels are
            normalised, in which order the model reads their channels, and the size of the pictures.

    Attributes:
        preprocessing ([`~preprocessing.Preprocessing`]): What the image processor does.
        mean, std (`torch.Tensor` of shape `(1, channels, 1, 1)`): Of pixels, in the order of a picture's channels.
        image_size (`tuple[int, int]` or `None`): See [`~preprocessing.Preprocessing`]'s `processed_size`.
        class_indices (`Sequence[int]` or `None`): The classes that compete, where a dataset has only some of the model's:
            logits are those of these classes, in this order, so that no attack is aimed at the others. `None`, as at
            first, is all of them.

    Raises:
        `ValueError`: If the processor's mean or standard deviation does not fit the channels that the model reads.

    Example:

    ```python
    >>> logits = PixelModel(model, image_processor)(pixels)
    ```
    """

    def __init__(self, model: nn.Module, image_processor: BaseImageProcessor | Preprocessing):
        super().__init__()
        self.model = model
        self.training = model.training
        self.class_indices: Sequence[int] | None = None
        self.preprocessing = Preprocessing.of(image_processor, channels_of(model))
        self.image_size = self.preprocessing.processed_size
        # In the order of the picture's channels, which may not be the model's.
        places = np.argsort(self.preprocessing.channel_order)
        device = next(model.parameters()).device
        statistics = (self.preprocessing.mean, self.preprocessing.std)
        mean, std = (torch.tensor(values, device=device)[places] for values in statistics)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures with values in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`: The logits of the classes that compete, in float32.

        Raises:
            `ValueError`: If a pixel lies outside [0, 1], the shape is not the one above, or the model does not have a
                class of `class_indices`.
            `TypeError`: If the model's output has no `logits`.
        """
        return self.logits_of(self.output(pixels))

    def logits_of(self, output: ModelOutput) -> torch.Tensor:
        """The logits in an output of [`~PixelModel.output`]; see [`~PixelModel.forward`]."""
        logits = output.logits.float()
        if self.class_indices is None:
            return logits
        return logits[:, checked_class_indices(logits, self.class_indices)]

    def output(self, pixels: torch.Tensor, **kwargs: Any) -> ModelOutput:
        """
        The model's own output for `pixels`, unchanged; see [`~PixelModel.forward`].

        Args:
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures with values in [0, 1].
            kwargs: Passed on to the model, for instance `output_attentions=True`.
        """
        channels = self.mean.shape[1]
        if pixels.dim() != 4 or pixels.shape[1] != channels:
            raise ValueError(
                f"Pixels must have shape (batch_size, {channels}, height, width), but got {tuple(pixels.shape)}."
            )
        low, high = pixels.detach().aminmax()
        if not (low >= 0 and high <= 1):  # NaN is outside too
            raise ValueError(
                f"Pixels must lie in [0, 1], but range from {low.item():.4g} to {high.item():.4g}. Pass pictures before "
                "normalisation; the model normalises them itself."
            )
        normalised = (pixels.float() - self.mean.float()) / self.std.float()
        order = self.preprocessing.channel_order
        if order != tuple(range(channels)):
            normalised = normalised[:, order]
        output = self.model(pixel_values=normalised.to(_dtype(self.model)), **kwargs)
        if not hasattr(output, "logits"):
            raise TypeError(
                f"{type(self.model).__name__} returned a {type(output).__name__} without `logits`. Pass a classifier, "
                "such as AutoModelForImageClassification loads, whose config leaves `return_dict` at True."
            )
        return output


def _dtype(model: nn.Module) -> torch.dtype:
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


def masked_logits(logits: torch.Tensor, class_indices: Sequence[int] | None) -> torch.Tensor:
    """
    Logits with all but the given classes at minus infinity, so that a prediction is one of those classes.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The logits.
        class_indices (`Sequence[int]`, *optional*): The classes that stay; `None` keeps all of them.

    Returns:
        `torch.Tensor` of the same shape. Labels keep their meaning.

    Raises:
        `ValueError`: If an index lies outside the labels, or none is given.
    """
    if class_indices is None:
        return logits
    kept = checked_class_indices(logits, class_indices)
    mask = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    mask[kept] = False
    return logits.masked_fill(mask, float("-inf"))


def checked_class_indices(logits: torch.Tensor, class_indices: Sequence[int]) -> torch.Tensor:
    """
    The indices of some classes as a tensor beside `logits`, whose last axis has all classes.

    Raises:
        `ValueError`: If an index lies outside the labels, or none is given.
    """
    kept = torch.as_tensor(class_indices, dtype=torch.long, device=logits.device)
    if kept.numel() == 0 or kept.min() < 0 or kept.max() >= logits.shape[-1]:
        raise ValueError(
            f"`class_indices` must name some of the {logits.shape[-1]} labels of the model, but got "
            f"{sorted(kept.tolist())[-5:]} as the highest. Does the model have ImageNet's 1000 classes?"
        )
    return kept
