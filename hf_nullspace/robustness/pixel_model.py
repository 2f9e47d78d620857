"""Any image classifier as a function of pixels in [0, 1], which is where attacks and corruptions live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BaseImageProcessor
from transformers.utils import ModelOutput

from ..patch_embedding import find_patch_projection
from .imagenet import checked_class_indices


class PixelModel(nn.Module):
    """
    Normalises pixels as the image processor does, then classifies them.

    This is the `model` that torchattacks, foolbox (`PyTorchModel(pixel_model, bounds=(0, 1))`) and AutoAttack expect;
    `examples/attack_with_other_tools.py` shows it. Hold it still with [`~hf_nullspace.frozen.frozen`] meanwhile, which
    puts every module and weight back as it was: such tools leave gradients on weights that want one.

    Pixels are normalised in float32 and cast to the dtype of the model's weights (float16 and bfloat16 included);
    logits come back in float32.

    Args:
        model (`nn.Module`): A classifier that takes `pixel_values` and whose output has `logits`; unwrapped.
        image_processor ([`~transformers.BaseImageProcessor`]): Gives `image_mean` and `image_std`, `rescale_factor`
            where the model reads another range than [0, 1], and the size of the pictures.

    Attributes:
        class_indices (`Sequence[int]` or `None`): The classes that compete, where a dataset has only some of the model's:
            logits are those of these classes, in this order, so that no attack is aimed at the others. `None`, as at
            first, is all of them.

    Raises:
        `ValueError`: If the processor's mean or standard deviation does not fit the channels that the model reads.

    Example:

    ```python
    >>> logits = PixelModel(model, image_processor)(pixels)  # doctest: +SKIP
    ```
    """

    def __init__(self, model: nn.Module, image_processor: BaseImageProcessor):
        super().__init__()
        self.model = model
        self.training = model.training
        self.class_indices: Sequence[int] | None = None
        self.image_size = processed_size(image_processor)
        mean, std = _statistics(image_processor, _num_channels(model))
        # `pixel * scale + offset` is what the processor normalises.
        scale = 255 * getattr(image_processor, "rescale_factor", 1 / 255)
        if not getattr(image_processor, "do_rescale", True):
            scale = 255.0
        offset = -1.0 if getattr(image_processor, "rescale_offset", False) else 0.0
        device = next(model.parameters()).device
        mean = (torch.tensor(mean, device=device) - offset) / scale
        std = torch.tensor(std, device=device) / scale
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
        """The logits in what [`~PixelModel.output`] gave; see [`~PixelModel.forward`]."""
        logits = output.logits.float()
        if self.class_indices is None:
            return logits
        return logits[:, checked_class_indices(logits, self.class_indices)]

    def output(self, pixels: torch.Tensor, **kwargs: Any) -> ModelOutput:
        """
        What the model itself returns for `pixels`, as it returns it; see [`~PixelModel.forward`].

        Args:
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures with values in [0, 1].
            kwargs: Passed on to the model, for instance `output_attentions=True`.
        """
        if pixels.dim() != 4 or self.mean.shape[1] not in (1, pixels.shape[1]):
            channels = "channels" if self.mean.shape[1] == 1 else self.mean.shape[1]
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
        output = self.model(pixel_values=normalised.to(_dtype(self.model)), **kwargs)
        if not hasattr(output, "logits"):
            raise TypeError(
                f"{type(self.model).__name__} returned a {type(output).__name__} without `logits`. Pass a classifier, "
                "such as AutoModelForImageClassification loads, whose config leaves `return_dict` at True."
            )
        return output


def processed_size(image_processor: BaseImageProcessor) -> tuple[int, int] | None:
    """`(height, width)` in pixels of what an image processor gives; `None` where that depends on the picture."""
    timm_config = getattr(image_processor, "data_config", None)
    if timm_config is not None:
        return tuple(timm_config["input_size"][1:])
    size = getattr(image_processor, "size", None)
    if getattr(image_processor, "do_center_crop", False):
        size = image_processor.crop_size
    if isinstance(size, int):
        return size, size
    if size is None or size["height"] is None:  # only the shorter side is fixed
        return None
    return size["height"], size["width"]


def _dtype(model: nn.Module) -> torch.dtype:
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


def _num_channels(model: nn.Module) -> int | None:
    try:
        module = find_patch_projection(model).module
    except ValueError:
        return None
    return module.in_channels if isinstance(module, nn.Conv2d) else None


def _statistics(image_processor: BaseImageProcessor, num_channels: int | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation as lists of one value, or of one for each channel."""
    if not getattr(image_processor, "do_normalize", True):
        return [0.0], [1.0]
    statistics = []
    timm_config = getattr(image_processor, "data_config", {})
    for name in ("image_mean", "image_std"):
        values = getattr(image_processor, name, timm_config.get(name.removeprefix("image_")))
        if values is None:
            raise ValueError(
                f"{type(image_processor).__name__} has no `{name}`, so its normalisation is unknown. Pass the image "
                "processor that the model was trained with, or set `image_mean` and `image_std` on this one."
            )
        values = [float(value) for value in values] if isinstance(values, Sequence) else [float(values)]
        if num_channels is not None and len(values) not in (1, num_channels):
            raise ValueError(
                f"`{name}` of the image processor has {len(values)} values, {values}, but the model reads "
                f"{num_channels} channels. Pass the image processor that the model was trained with."
            )
        statistics.append(values)
    mean, std = statistics
    if len(mean) != len(std):
        raise ValueError(f"`image_mean` has {len(mean)} values, {mean}, but `image_std` has {len(std)}, {std}.")
    if min(std) <= 0:
        raise ValueError(f"Every value of `image_std` must be positive, but got {std}.")
    return mean, std
