"""Digital: brightness, contrast, elastic_transform, pixelate, jpeg_compression. Pixels are float32 in [0, 1]."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .arrays import import_scipy, length_scale, to_picture, to_pixels
from .base import SCIPY, corruption


BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
ELASTIC_SIGMA = 2.24  # pixels at 224
ELASTIC_DISPLACEMENTS = (1.02, 1.32, 1.73, 2.03, 2.44)  # root mean square along an axis, pixels at 224
BLOCK_SIDES = (1 / 0.6, 1 / 0.5, 1 / 0.4, 1 / 0.3, 1 / 0.25)
JPEG_QUALITIES = (25, 18, 15, 10, 7)


@corruption()
def brightness(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Raises the value of HSV; hue and saturation stay."""
    value = pixels.max(-1, keepdims=True)
    raised = np.minimum(value + BRIGHTNESS[severity - 1], 1)
    black = value == 0
    return np.where(black, raised, pixels * (raised / np.where(black, 1, value)))


@corruption()
def contrast(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Moves every pixel towards the mean of its channel."""
    mean = pixels.mean((0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return (pixels - mean) * CONTRAST[severity - 1] + mean


@corruption(SCIPY)
def elastic_transform(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Moves every pixel by a smooth random displacement."""
    scale = length_scale(pixels)
    height, width = pixels.shape[:2]
    size = ELASTIC_DISPLACEMENTS[severity - 1] * scale
    rows = np.arange(height, dtype=np.float32)[:, None] + size * smooth_field((height, width), scale, rng)
    columns = np.arange(width, dtype=np.float32) + size * smooth_field((height, width), scale, rng)
    sample = import_scipy("ndimage").map_coordinates
    channels = [sample(channel, (rows, columns), order=1, mode="reflect") for channel in np.moveaxis(pixels, -1, 0)]
    return np.stack(channels, -1)


def smooth_field(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian-filtered random field of root mean square 1."""
    noise = rng.random(shape, dtype=np.float32) * 2 - 1
    field = import_scipy("ndimage").gaussian_filter(noise, ELASTIC_SIGMA * scale, mode="reflect")
    return field / max(np.sqrt(np.mean(field**2)), np.finfo(np.float32).tiny)


@corruption()
def pixelate(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """
    Averages the picture over blocks of whole pixels.

    What scales with the picture is how much longer than one pixel the mean side of a block is, since blocks of less
    than a pixel would change nothing.
    """
    side = 1 + (BLOCK_SIDES[severity - 1] - 1) * length_scale(pixels)
    for axis, length in enumerate(pixels.shape[:2]):
        # At least one block fewer for each severity, however small the picture.
        blocks = max(1, min(int(length / side), length - severity))
        edges = np.linspace(0, length, blocks + 1).round().astype(int)
        lengths = np.diff(edges)
        shape = [-1 if place == axis else 1 for place in range(3)]
        means = np.add.reduceat(pixels, edges[:-1], axis) / lengths.reshape(shape).astype(np.float32)
        pixels = means.repeat(lengths, axis)
    return pixels


@corruption()
def jpeg_compression(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Compresses the picture as JPEG of low quality."""
    with io.BytesIO() as file:
        to_picture(pixels).save(file, "JPEG", quality=JPEG_QUALITIES[severity - 1])
        with Image.open(file) as picture:
            return to_pixels(picture)
