"""Weather: snow, frost, fog. Pixels are float32 in [0, 1], of shape `(height, width, 3)`."""

from __future__ import annotations

import numpy as np

from .arrays import convolve, layer_shape, resize_layer, streak_kernel
from .base import SCIPY, corruption


# mean, standard deviation, size of a flake, threshold, length and sigma of its fall, share of the picture's colours
SNOW = (
    (0.1, 0.3, 3.0, 0.5, 20, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 24, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 24, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 24, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 24, 12, 0.55),
)
FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.77), (0.6, 0.84))  # share of the picture, share of the ice
FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # thickness, smoothness
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
ICE_COLOUR = np.array([0.86, 0.96, 1.0], dtype=np.float32)
ICE_NEEDLES = 5  # directions that crystals grow in


@corruption(SCIPY)
def snow(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Whitens the picture and adds flakes, blurred along their fall, once upright and once upside down."""
    mean, deviation, flake, threshold, length, sigma, share = SNOW[severity - 1]
    shape = layer_shape(pixels)
    coarse = [int(np.ceil(side / flake)) for side in shape]
    layer = resize_layer((mean + deviation * rng.standard_normal(coarse)).astype(np.float32), shape)
    flakes = np.where(layer < threshold, 0, layer.clip(0, 1)).astype(np.float32)
    fallen = convolve(flakes, streak_kernel(length, sigma, rng.uniform(-135, -45)))
    fallen = resize_layer(fallen, pixels.shape[:2])
    whitened = np.maximum(pixels, (pixels @ LUMA * 1.5 + 0.5)[..., None])
    return share * pixels + (1 - share) * whitened + (fallen + fallen[::-1, ::-1])[..., None]


@corruption(SCIPY)
def frost(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Lays a sheet of ice over the picture, synthesised from crystal needles and plasma."""
    keep, amount = FROST[severity - 1]
    ice = resize_layer(_ice(layer_shape(pixels), rng), pixels.shape[:2])
    return keep * pixels + amount * ice[..., None] * ICE_COLOUR


def _ice(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A sheet of ice in [0, 1]: bright needles on a clouded ground, thicker where the plasma is high."""
    thickness = plasma(shape, 1.6, rng)
    needles: np.ndarray = np.zeros(shape, dtype=np.float32)
    for angle in rng.uniform(0, 360, ICE_NEEDLES):
        seeds = (rng.random(shape, dtype=np.float32) < 0.02).astype(np.float32)
        needles = np.maximum(needles, convolve(seeds, streak_kernel(30, 12, angle)))
    needles = (needles / needles.max()) ** 0.5
    return (0.15 + 0.55 * thickness + 0.5 * needles * thickness).clip(0, 1).astype(np.float32)


@corruption()
def fog(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds a cloud of plasma and darkens the sum back to the brightness of the picture."""
    thickness, smoothness = FOG[severity - 1]
    cloud = resize_layer(plasma(layer_shape(pixels), smoothness, rng), pixels.shape[:2])
    brightest = pixels.max()
    return (pixels + thickness * cloud[..., None]) * (brightest / (brightest + thickness))


def plasma(shape: tuple[int, int], smoothness: float, rng: np.random.Generator) -> np.ndarray:
    """A fractal cloud in [0, 1] by the diamond-square algorithm; each octave is `smoothness ** 2` times fainter."""
    side = 1 << max(1, int(np.ceil(np.log2(max(shape)))))
    cloud: np.ndarray = np.zeros((side, side), dtype=np.float32)
    step = side
    amplitude = 1.0

    def noisy(four_times_mean: np.ndarray) -> np.ndarray:
        noise = rng.random(four_times_mean.shape, dtype=np.float32)
        return four_times_mean / 4 + amplitude * (2 * noise - 1)

    while step > 1:
        half = step // 2
        corners = cloud[::step, ::step]
        right = corners + np.roll(corners, -1, 1)
        below = corners + np.roll(corners, -1, 0)
        centres = noisy(right + np.roll(right, -1, 0))
        cloud[half::step, half::step] = centres
        cloud[::step, half::step] = noisy(right + centres + np.roll(centres, 1, 0))
        cloud[half::step, ::step] = noisy(below + centres + np.roll(centres, 1, 1))
        step = half
        amplitude /= smoothness**2
    cloud = cloud[: shape[0], : shape[1]]
    low, high = cloud.min(), cloud.max()
    return (cloud - low) / max(high - low, np.finfo(np.float32).tiny)
