"""Picture files of a folder, as what a model reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers.utils import logging

from .pixel_box import normalization
from .randomness import keyed_generator


logger = logging.get_logger(__name__)


def read_pictures(
    folder: str | os.PathLike, max_images: int | None = None, seed: int | None = None
) -> list[Image.Image]:
    """
    The pictures of a folder and its sub-folders as RGB.

    Grey-scale pictures are converted, and transparent ones lose their transparency. Files of other kinds are left out;
    pictures that cannot be read are left out with a warning that names them.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        max_images (`int`, *optional*): Read the first so many only.
        seed (`int`, *optional*): Read them in a random order that this seed gives, so that a share of a folder with a
            sub-folder for each class holds every class. By default in the order of their names.

    Raises:
        `FileNotFoundError`: If the folder does not exist.
        `ValueError`: If it holds no picture that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. Name a folder that holds pictures.")
    kinds = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in kinds)
    if seed is not None:
        order = torch.randperm(len(paths), generator=keyed_generator("pictures", seed))
        paths = [paths[index] for index in order]
    pictures, unreadable = [], []
    for path in paths:
        if max_images is not None and len(pictures) == max_images:
            break
        try:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        except Exception as error:  # Pillow's plugins raise many kinds; each means the same here
            unreadable.append(f"{path} ({error})")
    if unreadable:
        logger.warning(f"Leaving out {len(unreadable)} pictures that cannot be read: {'; '.join(unreadable[:5])}")
    if not pictures:
        raise ValueError(f"{str(folder)!r} holds no picture that can be read; it has {len(paths)} picture files.")
    return pictures


def sample_photographs() -> list[Image.Image]:
    """
    The two photographs that ship inside scikit-learn: a Chinese temple and a flower.

    Raises:
        `ImportError`: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError("The photographs need scikit-learn: `pip install 'hf_nullspace[eval]'`.") from error
    return [Image.fromarray(picture) for picture in load_sample_images().images]


def to_model_inputs(pictures: Sequence[Image.Image], image_processor: Callable) -> dict[str, torch.Tensor]:
    """
    What an image processor gives a model for these pictures, with their pixels clipped to the range of [0, 1].

    Bicubic resizing overshoots, and what leaves [0, 1] is no picture. Besides `pixel_values` of shape `(num_images,
    channels, height, width)`, or `(num_images, num_patches, features)` for patches that are cut already, there may be
    masks and sizes.
    """
    pictures = [picture.convert("RGB") for picture in pictures]
    inputs = image_processor(pictures, do_normalize=False, return_tensors="pt")
    inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    pixels = inputs["pixel_values"].float().clamp(0, 1)
    mean, std = normalization(*pixel_statistics(image_processor), pixels)
    return {**inputs, "pixel_values": ((pixels - mean) / std).float()}


def to_pixel_values(pictures: Sequence[Image.Image], image_processor: Callable) -> torch.Tensor:
    """The normalised pixels among the inputs that [`to_model_inputs`] gives."""
    return to_model_inputs(pictures, image_processor)["pixel_values"]


def pixel_statistics(image_processor: Callable) -> tuple[list[float], list[float]]:
    """The mean and standard deviation that an image processor normalises with; 0 and 1 where it does not."""
    if not getattr(image_processor, "do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    return list(image_processor.image_mean), list(image_processor.image_std)
