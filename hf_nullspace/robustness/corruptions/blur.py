"""Blur: defocus_blur, glass_blur, motion_blur, zoom_blur. Pixels are float32 in [0, 1], `(height, width, 3)`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from .arrays import convolve, import_scipy, length_scale, splat, streak_kernel, to_picture
from .base import SCIPY, corruption


DISC_RADII = (3, 4, 6, 8, 10)
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, reach, rounds of swaps
MOTION = ((20, 3), (30, 5), (30, 8), (30, 12), (40, 15))  # length, sigma
ZOOMS = (
    np.arange(1, 1.11, 0.01),
    np.arange(1, 1.16, 0.01),
    np.arange(1, 1.21, 0.02),
    np.arange(1, 1.26, 0.02),
    np.arange(1, 1.31, 0.03),
)


@corruption(SCIPY)
def defocus_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Spreads every pixel over a disc, as a lens out of focus does."""
    return convolve(pixels, disc_kernel(DISC_RADII[severity - 1] * length_scale(pixels)))


@lru_cache(maxsize=64)
def disc_kernel(radius: float) -> np.ndarray:
    steps = max(16, int(2 * radius) + 1)
    grid = np.stack(np.meshgrid(*[np.arange(-steps, steps + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    inside = grid[(grid**2).sum(-1) <= steps**2]
    return splat(inside * (radius / steps), np.ones(len(inside)))


@corruption(SCIPY)
def glass_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blurs, swaps pixels with neighbours, and blurs again, as frosted glass does."""
    gaussian_filter = import_scipy("ndimage").gaussian_filter
    sigma, reach, rounds = GLASS[severity - 1]
    scale = length_scale(pixels)
    sigmas = (sigma * scale, sigma * scale, 0)
    blurred = gaussian_filter(pixels, sigmas)
    places = swapped_places(pixels.shape[:2], reach * scale, rounds, rng)
    swapped = blurred.reshape(-1, 3)[places].reshape(pixels.shape)
    return gaussian_filter(swapped, sigmas)


def swapped_places(shape: tuple[int, int], reach: float, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """
    Where the pixel that ends at each flat place comes from, after every pixel was swapped with a random neighbour.

    A neighbour is up to `reach` rows and columns away. Between two whole numbers one or the other is drawn so that the
    mean square is that of `reach`, and a small picture is shuffled less. Pixels `2 * ceil(reach) + 1` rows or columns
    apart share no neighbour and are swapped all at once.
    """
    height, width = shape
    stride = 2 * int(np.ceil(reach)) + 1
    lower = int(reach)
    chance = (reach**2 - lower**2) / (2 * lower + 1)
    places: np.ndarray = np.arange(height * width, dtype=np.int32)
    for _ in range(rounds):
        for first_row in reversed(range(min(stride, height))):
            for first_column in reversed(range(min(stride, width))):
                rows: np.ndarray = np.arange(first_row, height, stride, dtype=np.int32)[:, None]
                columns: np.ndarray = np.arange(first_column, width, stride, dtype=np.int32)
                count = (len(rows), columns.size)
                steps = lower + (rng.random(count, dtype=np.float32) < chance)
                moves = (rng.random((2, *count), dtype=np.float32) * (2 * steps + 1)).astype(np.int32) - steps
                targets = (rows + moves[0]).clip(0, height - 1) * width + (columns + moves[1]).clip(0, width - 1)
                sources = rows * width + columns
                places[sources], places[targets] = places[targets], places[sources]
    return places


@corruption(SCIPY)
def motion_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Smears the picture along a line of random direction, within 45 degrees of the horizontal."""
    scale = length_scale(pixels)
    length, sigma = MOTION[severity - 1]
    return convolve(pixels, streak_kernel(length * scale, sigma * scale, rng.uniform(-45, 45)))


@corruption()
def zoom_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Averages the picture with ever larger views of its centre, as a moving camera does."""
    picture = to_picture(pixels)
    width, height = picture.size
    total = pixels.copy()
    zooms = ZOOMS[severity - 1]
    for zoom in zooms:
        margins = (width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2)
        box = (*margins, width - margins[0], height - margins[1])
        total += np.asarray(picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)) / np.float32(255)
    return total / (len(zooms) + 1)
