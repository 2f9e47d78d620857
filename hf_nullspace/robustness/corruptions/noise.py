"""Noise: gaussian_noise, shot_noise, impulse_noise. Pixels are float32 in [0, 1], of shape `(height, width, 3)`."""

from __future__ import annotations

import numpy as np

from .base import corruption


STANDARD_DEVIATIONS = (0.08, 0.12, 0.18, 0.26, 0.38)
PHOTONS = (60, 25, 12, 5, 3)  # at full brightness
IMPULSE_SHARES = (0.03, 0.06, 0.09, 0.17, 0.27)


@corruption()
def gaussian_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds independent Gaussian noise."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return pixels + STANDARD_DEVIATIONS[severity - 1] * noise


@corruption()
def shot_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Counts photons: Poisson noise, whose variance is proportional to brightness."""
    photons = PHOTONS[severity - 1]
    return np.divide(rng.poisson(pixels * photons), photons).astype(np.float32)


@corruption()
def impulse_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Sets a share of all values to 0 or 1, each half of the time (salt and pepper)."""
    share = IMPULSE_SHARES[severity - 1]
    draws = rng.random(pixels.shape, dtype=np.float32)
    return np.where(draws < share / 2, 0, np.where(draws < share, 1, pixels)).astype(np.float32)
