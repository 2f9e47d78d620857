"""What the corruptions share: pictures as arrays, lengths at the size of a picture, convolution, layers."""

from __future__ import annotations

import numpy as np
from PIL import Image


REFERENCE_SIDE = 224
MAX_LAYER_ASPECT = 8


def import_scipy(module: str):
    """Imports `scipy.<module>`, or says which extra has it."""
    import importlib

    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError("Corruptions need scipy: `pip install 'hf_nullspace[eval]'`.") from error


def to_pixels(picture: Image.Image) -> np.ndarray:
    """The RGB pixels in [0, 1], float32, of shape `(height, width, 3)`."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def to_picture(pixels: np.ndarray) -> Image.Image:
    """The picture of pixels that are clipped to [0, 1] and rounded."""
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def length_scale(pixels: np.ndarray) -> float:
    """The factor from a length in a 224x224 picture to the same share of the shorter side."""
    return min(pixels.shape[:2]) / REFERENCE_SIDE


def convolve(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """
    Convolution of the first two axes with mirrored borders, by FFT.

    Args:
        pixels (`np.ndarray` of shape `(height, width, ...)`): float32.
        kernel (`np.ndarray` of shape `(2 * reach + 1, 2 * reach + 1)`): float32.
    """
    fft = import_scipy("fft")
    reach = len(kernel) // 2
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, [(reach, reach)] * 2 + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    # Channels first: the FFT runs over contiguous memory.
    channels = np.ascontiguousarray(padded.reshape(*padded.shape[:2], -1).transpose(2, 0, 1))
    spectrum = fft.rfft2(channels, shape)
    spectrum *= fft.rfft2(kernel, shape)
    result = fft.irfft2(spectrum, shape)[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]
    return result.transpose(1, 2, 0).reshape(pixels.shape)


def splat(offsets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    The kernel that averages a picture, interpolated linearly, over points around each pixel.

    Unlike a kernel of whole pixels it changes smoothly with the points, which lie closer than a pixel in small pictures.

    Args:
        offsets (`np.ndarray` of shape `(num_points, 2)`): Rows and columns from the centre, in pixels.
        weights (`np.ndarray` of shape `(num_points,)`): Their weights; the kernel sums to 1.
    """
    reach = int(np.abs(offsets).max()) + 1
    whole = np.floor(offsets).astype(int)
    share = offsets - whole
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for row in (0, 1):
        for column in (0, 1):
            part = np.abs(1 - row - share[:, 0]) * np.abs(1 - column - share[:, 1])
            places = (whole[:, 0] + row + reach, whole[:, 1] + column + reach)
            np.add.at(kernel, places, weights * part)
    return (kernel / kernel.sum()).astype(np.float32)


def streak_kernel(length: float, sigma: float, angle: float) -> np.ndarray:
    """
    The kernel of a straight motion: a half Gaussian along a line from the centre.

    Args:
        length (`float`): Length of the line, in pixels.
        sigma (`float`): Standard deviation of the Gaussian, in pixels.
        angle (`float`): Direction, in degrees.
    """
    distances = np.linspace(0, length, max(16, int(2 * length) + 1))
    radians = np.deg2rad(angle)
    offsets = distances[:, None] * np.array([np.sin(radians), np.cos(radians)])
    return splat(offsets, np.exp(-((distances / sigma) ** 2) / 2))


def layer_shape(pixels: np.ndarray) -> tuple[int, int]:
    """
    Height and width of a weather layer: those of the picture were its shorter side 224 pixels.

    A layer is drawn at this size and then brought to the picture's, so flakes and clouds keep their share of it.
    """
    factor = 1 / length_scale(pixels)
    height, width = (min(round(side * factor), MAX_LAYER_ASPECT * REFERENCE_SIDE) for side in pixels.shape[:2])
    return height, width


def resize_layer(layer: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A float32 layer of shape `(height, width)`, resampled to another height and width."""
    if layer.shape == tuple(shape):
        return layer
    height, width = shape
    return np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BILINEAR))
