"""Accuracy of a classifier on clean, corrupted and attacked pictures of one dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from ..frozen import frozen
from ..randomness import keyed_generator
from .attacks import fgsm
from .corruptions import corrupt
from .pixel_model import PixelModel


ACCURACY_CORRUPTIONS = ("gaussian_noise", "defocus_blur", "contrast")


def robust_accuracy(
    model: nn.Module,
    image_processor: Callable,
    dataset,
    *,
    image_column_name: str = "image",
    label_column_name: str = "label",
    severity: int = 3,
    epsilon: float = 8 / 255,
    batch_size: int = 64,
    seed: int = 42,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """
    Accuracy in per cent on clean pictures, under each of [`ACCURACY_CORRUPTIONS`], and under FGSM.

    Every picture is resized by the image processor first, so corruptions and epsilon apply at the model's own
    resolution. Noise is seeded for each picture: N processes give the numbers of one.

    Args:
        model (`nn.Module`): The classifier, unwrapped; in evaluation mode meanwhile, and put back as it was.
        image_processor (`Callable`): Its image processor.
        dataset (`datasets.Dataset`): Pictures and labels.
        image_column_name, label_column_name (`str`, *optional*): Their columns.
        severity (`int`, *optional*, defaults to 3): Severity of the corruptions, 1 to 5.
        epsilon (`float`, *optional*, defaults to 8/255): Radius of FGSM's Linf ball, in pixel units.
        batch_size (`int`, *optional*, defaults to 64): Pictures of a process at a time.
        seed (`int`, *optional*, defaults to 42): Seed of the corruptions.
        accelerator (`Accelerator`, *optional*): For several processes and autocast.

    Returns:
        `dict[str, float]`: `clean`, each corruption's name, and `fgsm`, in per cent.
    """
    accelerator = accelerator or Accelerator()
    columns = ["clean", *ACCURACY_CORRUPTIONS, "fgsm"]
    device = next(model.parameters()).device
    correct = torch.zeros(len(columns), dtype=torch.float64, device=device)
    places = list(range(accelerator.process_index, len(dataset), accelerator.num_processes))
    with frozen(model), accelerator.autocast():
        pixel_model = PixelModel(model, image_processor)
        for first in range(0, len(places), batch_size):
            batch_places = places[first : first + batch_size]
            batch = dataset[batch_places]
            labels = torch.as_tensor(batch[label_column_name], device=device)
            pixels = _to_pixels(image_processor, batch[image_column_name])
            variants = [pixels]
            for name in ACCURACY_CORRUPTIONS:
                corrupted = [
                    _corrupt(picture, name, severity, seed, place)
                    for picture, place in zip(pixels, batch_places, strict=True)
                ]
                variants.append(torch.stack(corrupted))
            variants.append(fgsm(pixel_model, pixels.to(device), labels, epsilon))
            with torch.no_grad():
                hits = [(pixel_model(variant.to(device)).argmax(-1) == labels).sum() for variant in variants]
            correct += torch.stack(hits)
    correct = accelerator.reduce(correct, "sum") / len(dataset) * 100
    return dict(zip(columns, correct.tolist(), strict=True))


def _to_pixels(image_processor: Callable, pictures: list[Image.Image]) -> torch.Tensor:
    pictures = [picture.convert("RGB") for picture in pictures]
    return image_processor(pictures, do_normalize=False, return_tensors="pt")["pixel_values"].float().clamp(0, 1)


def _corrupt(pixels: torch.Tensor, name: str, severity: int, seed: int, place: int) -> torch.Tensor:
    key = int(keyed_generator(f"corruption-{name}", seed, place).initial_seed())
    picture = Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    corrupted = corrupt(picture, name, severity, np.random.default_rng(key))
    return torch.from_numpy(np.asarray(corrupted, dtype=np.float32) / 255).permute(2, 0, 1)
