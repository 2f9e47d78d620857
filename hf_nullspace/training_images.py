"""The training images that noise is synthesised on, what must be true of them, and how they are normalised."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import BaseImageProcessor

from .frozen import frozen
from .patch_embedding import channels_of
from .preprocessing import Preprocessing
from .randomness import keyed_generator, preserved_random_state


def draw_images(dataset: Dataset, num_images: int, seed: int, round_index: int) -> Subset | list:
    """Images drawn by a generator of their own; the first ones of a dataset that is a stream."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return list(itertools.islice(iter(dataset), num_images))
    order = torch.randperm(len(dataset), generator=keyed_generator("images", seed, round_index))
    return Subset(dataset, order[:num_images].tolist())


def check_enough(dataset: Dataset, needed: int) -> None:
    """
    Raises:
        `ValueError`: If a dataset of known length is smaller than one synthesis batch.
    """
    if hasattr(dataset, "__len__") and len(dataset) < needed:
        raise ValueError(
            f"The training set has {len(dataset)} images, but one synthesis batch needs {needed}. Add "
            "images, or lower `noise_batch_size` or `per_device_train_batch_size`."
        )


def check_example(example: dict[str, torch.Tensor], model: nn.Module) -> None:
    """
    Raises:
        `ValueError`: If a collated example has no labels, or an image of a size that the model does not read.
    """
    if "labels" not in example:
        raise ValueError(
            f"The training examples have no labels, only {sorted(example)}. Name their column `label` or `labels`."
        )
    size = getattr(model.config, "image_size", None)
    expected = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    found = tuple(example["pixel_values"].shape[-2:])
    if size is None or found == expected:
        return
    try:  # many models interpolate their positions, or have none
        with preserved_random_state(), frozen(model), torch.no_grad():
            model(pixel_values=example["pixel_values"].to(next(model.parameters()).device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The training images are {found[0]}x{found[1]} (height x width) after preprocessing, but the model "
            f"expects {expected[0]}x{expected[1]}. Set the image processor's `size` to the model's, or load the "
            "model with another `image_size`."
        ) from error


def image_statistics(model: nn.Module, processing_class: Any, reason: str) -> tuple[list[float], list[float]]:
    """
    The mean and standard deviation that training images were normalised with, one value for each channel
    that the model reads.

    Args:
        model (`nn.Module`): The classifier.
        processing_class ([`~transformers.BaseImageProcessor`]): What the trainer was given.
        reason (`str`): How the error begins: what is made in pixels.

    Raises:
        `TypeError`: If `processing_class` is no image processor.
        `ValueError`: If its normalisation does not fit the model.
    """
    if not isinstance(processing_class, BaseImageProcessor):
        given = "nothing" if processing_class is None else f"a `{type(processing_class).__name__}`"
        raise TypeError(
            f"{reason} made in pixels, so `processing_class` must be the image processor that normalises the training "
            f"images, but got {given}. Pass `processing_class=AutoImageProcessor.from_pretrained(...)`."
        )
    preprocessing = Preprocessing.of(processing_class, channels_of(model))
    return list(preprocessing.mean), list(preprocessing.std)
