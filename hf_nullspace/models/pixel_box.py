"""The pixel box: how far each normalised pixel may move while its picture stays in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch


# Largest rounding error of normalised float32 pixels.
PIXEL_TOLERANCE = 1e-4
# Margin to the bounds of a pixel, for the rounding of `pixel * std + mean`.
PIXEL_MARGIN = 1e-6


def normalization(
    image_mean: Sequence[float], image_std: Sequence[float], pixel_values: torch.Tensor, num_channels: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and standard deviation in float64, in a shape that broadcasts, on the device of the pictures.

    Args:
        image_mean, image_std (`Sequence[float]`): The image processor's, one value for each channel.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)` or `(batch_size, num_patches,
            features)`): Normalised pictures, or patches that are cut already with the channel as the fastest axis, as
            Siglip2's image processor cuts them.
        num_channels (`int`, *optional*, defaults to 3): Channels of a picture that is cut already.

    Raises:
        `ValueError`: If the pictures have neither shape, a length is not the number of channels, or a standard
            deviation is not positive.
    """
    if pixel_values.dim() not in (3, 4):
        raise ValueError(
            "`pixel_values` must have shape (batch_size, channels, height, width), or (batch_size, num_patches, "
            f"features) for patches that are cut already, but got {tuple(pixel_values.shape)}."
        )
    num_channels = pixel_values.shape[1] if pixel_values.dim() == 4 else num_channels
    statistics = []
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != num_channels:
            raise ValueError(
                f"`{name}` must have one value for each of the {num_channels} channels, but has {len(values)}: "
                f"{list(values)}. Use `{name}` of the model's image processor."
            )
        statistics.append(torch.tensor(values, dtype=torch.float64, device=pixel_values.device))
    if not (statistics[1] > 0).all():
        raise ValueError(f"Every value of `image_std` must be positive, but got {list(image_std)}.")
    if pixel_values.dim() == 3:
        return tuple(values.repeat(pixel_values.shape[2] // num_channels) for values in statistics)
    return tuple(values.view(1, -1, 1, 1) for values in statistics)


def pixel_limits(
    pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float], num_channels: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How far each pixel may decrease and increase, in normalised units.

    Args:
        pixel_values, image_mean, image_std, num_channels: As in [`normalization`].

    Returns:
        Two `torch.Tensor` of the shape of `pixel_values` in float32, the first at most 0 and the second at least 0.

    Raises:
        `ValueError`: If the pictures lie outside [0, 1], or as [`normalization`].
    """
    mean, std = normalization(image_mean, image_std, pixel_values, num_channels)
    pixels = pixel_values.double() * std + mean
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= -PIXEL_TOLERANCE and high <= 1 + PIXEL_TOLERANCE):
        raise ValueError(
            f"The pictures have pixels from {low:.4g} to {high:.4g} after undoing mean {list(image_mean)} and "
            f"standard deviation {list(image_std)}, but must lie in [0, 1]. Pass normalised `pixel_values` with "
            "the mean and standard deviation that they were normalised with."
        )
    lower = -((pixels - PIXEL_MARGIN).clamp_min(0) / std)
    upper = (1 - PIXEL_MARGIN - pixels).clamp_min(0) / std
    return lower.float(), upper.float()
