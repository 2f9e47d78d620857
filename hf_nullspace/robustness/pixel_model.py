"""Any image classifier as a function of pixels in [0, 1], which is where attacks and corruptions live."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BaseImageProcessor


class PixelModel(nn.Module):
    """
    Normalises pixels as the image processor does, then classifies them.

    Args:
        model (`nn.Module`): A classifier whose output has `logits`.
        image_processor ([`~transformers.BaseImageProcessor`]): Gives `image_mean` and `image_std`.

    Example:

    ```python
    >>> logits = PixelModel(model, image_processor)(pixels)  # doctest: +SKIP
    ```
    """

    def __init__(self, model: nn.Module, image_processor: BaseImageProcessor):
        super().__init__()
        self.model = model
        do_normalize = getattr(image_processor, "do_normalize", True)
        mean = image_processor.image_mean if do_normalize else [0.0]
        std = image_processor.image_std if do_normalize else [1.0]
        device = next(model.parameters()).device
        self.register_buffer("mean", torch.tensor(mean, device=device).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=device).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures with values in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`: The logits, in float32.

        Raises:
            `ValueError`: If a pixel lies outside [0, 1].
        """
        low, high = pixels.detach().aminmax()
        if not (low >= 0 and high <= 1):  # NaN is outside too
            raise ValueError(
                f"Pixels must lie in [0, 1], but range from {low.item():.4g} to {high.item():.4g}. Pass pictures before "
                "normalisation; the model normalises them itself."
            )
        normalised = (pixels - self.mean) / self.std
        return self.model(pixel_values=normalised.to(next(self.model.parameters()).dtype)).logits.float()
