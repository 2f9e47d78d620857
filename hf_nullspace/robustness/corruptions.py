"""Common corruptions, in the style of ImageNet-C and generated here; never the published files."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


SEVERITIES = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "gaussian_blur": (0.02, 0.03, 0.04, 0.06, 0.08),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}


def corrupt(picture: Image.Image, name: str, severity: int, rng: np.random.Generator) -> Image.Image:
    """
    One corruption of one picture.

    Args:
        picture (`PIL.Image.Image`): An RGB picture of any size.
        name (`str`): `"gaussian_noise"` (standard deviation in pixel units), `"gaussian_blur"` (radius as a share of
            the shorter side) or `"contrast"` (share of the contrast that is left).
        severity (`int`): 1 to 5.
        rng (`np.random.Generator`): Source of the noise.

    Raises:
        `ValueError`: If the name or the severity is unknown.
    """
    if name not in SEVERITIES:
        raise ValueError(f"Unknown corruption {name!r}; expected one of {sorted(SEVERITIES)}.")
    if not isinstance(severity, int) or isinstance(severity, bool) or not 1 <= severity <= 5:
        raise ValueError(f"`severity` must be 1 to 5, but got {severity!r}.")
    amount = SEVERITIES[name][severity - 1]
    if name == "gaussian_blur":
        return picture.filter(ImageFilter.GaussianBlur(amount * min(picture.size)))
    pixels = np.asarray(picture, dtype=np.float64) / 255
    if name == "gaussian_noise":
        pixels = pixels + rng.normal(scale=amount, size=pixels.shape)
    else:
        mean = pixels.mean((0, 1), keepdims=True)
        pixels = (pixels - mean) * amount + mean
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
