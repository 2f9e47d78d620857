"""Draws the training images that noise is synthesised on, and checks them and their normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset
from transformers import BaseImageProcessor

from ..models.frozen import frozen
from ..models.model_inputs import missing_inputs
from ..models.patch_projection import channels_of
from ..models.preprocessing import Preprocessing
from ..models.soft_labels import knows_no_soft_labels
from ..utils.random import keyed_generator, preserved_random_state


# Label that the losses of Transformers ignore.
IGNORED_LABEL = -100


def is_stream(dataset: Dataset) -> bool:
    """Whether a dataset yields its images in its own order, and may not say how many there are."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def draw_images(dataset: Dataset, num_images: int, seed: int, round_index: int) -> Subset:
    """Images of a dataset of known length, drawn by a generator of their own."""
    order = torch.randperm(len(dataset), generator=keyed_generator("images", seed, round_index))
    return Subset(dataset, order[:num_images].tolist())


class StreamReader:
    """
    Reads a stream from any position, and starts over at its end.

    The examples depend only on the position. A reader that continues and a new one that starts in the middle, as in a
    resumed run, give the same examples.

    Args:
        dataset (iterable): Yields examples, the same ones each time that it is iterated.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._restart()

    def read(self, start: int, count: int) -> list:
        """Examples `start` to `start + count - 1`; of a stream of fewer than `count` each once, of an empty one none."""
        if start < self._place:
            self._restart()
        with preserved_random_state():  # what is skipped must not shift the augmentation of what is read
            while self._place < start:
                if self._length is not None:  # whole passes need not be read
                    self._place += (start - self._place) // self._length * self._length
                if self._place < start and self._next() is None:
                    break
        examples: list[Any] = []
        while len(examples) < count and len(examples) != self._length:
            example = self._next()
            if example is None:
                break
            examples.append(example)
        return examples[: self._length]

    def _restart(self) -> None:
        self._examples = iter(self.dataset)
        self._place = 0
        self._in_pass = 0
        self._length: int | None = None

    def _next(self) -> Any:
        """The next example, of the next pass after the last one; `None` if there is none at all."""
        for _ in range(2):
            for example in self._examples:
                self._place += 1
                self._in_pass += 1
                return example
            if self._in_pass:
                self._length = self._in_pass
            self._examples = iter(self.dataset)
            self._in_pass = 0
        return None


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


def check_example(example: dict[str, torch.Tensor], model: nn.Module, label_names: Sequence[str] = ()) -> None:
    """
    Args:
        example (`dict`): A collated example.
        model (`nn.Module`): The classifier, unwrapped.
        label_names (`Sequence[str]`, *optional*): Of these inputs the loss needs at least one.

    Raises:
        `ValueError`: If a collated example has no image or no labels, labels that are no classes, or an image of channels
            or a size that the model does not read; or if the model does not run without labels.
    """
    if not isinstance(example, Mapping):
        raise ValueError(
            f"The collator gives a `{type(example).__name__}`, but a model is called with a dict of its inputs by name. "
            "Let it return one, with `pixel_values` and `labels`."
        )
    if not isinstance(example.get("pixel_values"), torch.Tensor):
        raise ValueError(
            f"The training batches have no `pixel_values`, only {sorted(example)}; noise is added to the patch embeddings "
            "of images under that name. Let the collator name them so, and pass `remove_unused_columns=False` if it "
            "reads other columns. To train without noise set `noise_weight=0`."
        )
    if label_names and not any(example.get(name) is not None for name in label_names):
        raise ValueError(
            f"The training examples have no labels, only {sorted(example)}. Name their column `label` or `labels`, or "
            f"say with `label_names` what it is called (now {list(label_names)})."
        )
    missing = missing_inputs(model, {name: value for name, value in example.items() if name not in label_names})
    if missing:
        raise ValueError(
            f"{type(model).__name__}.forward needs {missing}, but images for the noise come without labels. Give "
            "these parameters a default, `labels=None` say, with which the model returns its logits."
        )
    if label_names:
        check_labels(example.get("labels"), model)
    config = getattr(model, "config", None)
    pixels = example["pixel_values"]
    channels = channels_of(model)
    if pixels.dim() == 4 and channels not in (None, pixels.shape[1]):
        raise ValueError(
            f"The training images have {pixels.shape[1]} channels, but the model reads {channels}. Pictures are read as "
            "RGB unless the image processor takes grey ones only: pass `num_channels=1` to `image_transform`, or convert "
            "them with `picture.convert('L')`."
        )
    size = getattr(config, "image_size", None)
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


def check_labels(labels: Any, model: nn.Module) -> None:
    """
    Makes sure that labels fit the loss of a Transformers classifier. Labels of other models are not checked.

    Args:
        labels (`Any`): The labels of a batch, as the collator gives them.
        model (`nn.Module`): The classifier, unwrapped.

    Raises:
        `ValueError`: If they are numbers where classes are meant, lie outside the head, or are integers where each label
            is a yes or no of its own.
    """
    config = getattr(model, "config", None)
    num_labels = getattr(config, "num_labels", 1)
    problem_type = getattr(config, "problem_type", None)
    if not isinstance(labels, torch.Tensor) or num_labels < 2 or problem_type == "regression":
        return
    if not knows_no_soft_labels(model):  # its loss is its own, and so is what its labels mean
        return
    if labels.dim() == 2 and not labels.is_floating_point() and labels.shape[1] == num_labels:
        raise ValueError(
            f"The labels are rows of {num_labels} numbers of type {labels.dtype}, one for each class, but the loss takes "
            "such rows as floating-point numbers. Make them `torch.float32`."
        )
    if labels.dim() != 1:
        return
    if labels.is_floating_point():
        raise ValueError(
            f"The labels are numbers of type {labels.dtype}, such as {labels[0].item():g}, but the model has "
            f"{num_labels} classes. Make them integers, or load the model with `num_labels=1` for regression."
        )
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= num_labels))]
    if len(wrong):
        raise ValueError(
            f"Label {wrong[0].item()} lies outside the classifier head, which has {num_labels} labels (0 to "
            f"{num_labels - 1}). Load the model with `num_labels` set to the dataset's number of classes, or fix the labels."
        )


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
