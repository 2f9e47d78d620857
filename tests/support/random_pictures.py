"""Pictures of random pixels, and the image processor of the models of 16 x 16 pixels that are evaluated on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessorPil


PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


def random_pictures(count: int) -> list[Image.Image]:
    """The same pictures for every count, as far as they go."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


def save_class_folders(root: Path) -> None:
    """Four grey pictures of each of five classes, in a folder of its own."""
    rng = np.random.default_rng(0)
    for index in range(20):
        folder = root / f"class {index % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8)).save(folder / f"{index}.png")


def pixels_of(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """The pictures as pixels in [0, 1], of shape `(pictures, 3, height, width)`."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255
