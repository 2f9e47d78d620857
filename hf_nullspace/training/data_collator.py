"""Stacks images and labels into a batch, and names the example that does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..exact_nullspace.patch_nullspace import PatchNullspace
from ..models.model_inputs import LABEL_NAMES
from ..models.preprocessing import Preprocessing
from ..noise.kinds import SharedNoise
from ..noise.nullspace_noise import NullspaceNoise
from ..utils.random import keyed_generator


# What image processors give beside `pixel_values`, for models that read images as rows of patches.
PATCH_INPUTS = ("pixel_attention_mask", "spatial_shapes")


@dataclass
class NullspaceDataCollator:
    """
    Stacks examples with `pixel_values` (and `labels` or `label`) into a batch; draws nothing from any random generator.
    A label is an integer (a class), a number (regression), a row of numbers (soft or several labels) or a map of integers.
    `pixel_attention_mask` and `spatial_shapes` are stacked too, where examples have them.

    Given a nullspace, it also adds noise to the pixels, so that a plain `Trainer` or any loop trains on it. An image's
    noise depends on the seed, the image's own pixels and the epoch alone: it is the same whatever the number of workers
    and processes, and after a resume.

    Args:
        num_labels (`int`, *optional*):
            Size of the classifier head. When given, a label outside `[0, num_labels)` is refused.
        nullspace ([`PatchNullspace`], *optional*):
            The model's. Without `noise`, each image gets noise from the exact nullspace, which this model does not see
            and others do. It belongs to the weights it was built from: keep the patch projection frozen, or build a new
            one when it has changed.
        noise ([`NullspaceNoise`] or `torch.Tensor` of shape `(1, num_patches, hidden_size)`, *optional*):
            Noise of the encoder's approximate nullspace, realised in pixels by `nullspace`: the same for all images, or
            where noise is drawn a draw of its own for each.
        noise_norm (`float`, *optional*):
            Norm of the exact noise of an image, in normalised pixels. By default as large as the pixel box allows.
        image_mean, image_std (`Sequence[float]`, *optional*):
            Of pixels in [0, 1]. When given, every noisy pixel stays in [0, 1]; else noise knows no box.
        slides (`int`, *optional*, defaults to 32):
            See [`PatchNullspace.sample_within`]; more make larger noise and take longer.
        paired (`bool`, *optional*, defaults to `False`):
            Whether the batch holds the clean images first and their noisy copies after them, labels likewise, instead
            of the noisy images only.
        seed (`int`, *optional*, defaults to 42):
            Seed of the noise.
        image_processor (`Callable`, *optional*):
            What the images were prepared with, which gives `image_mean` and `image_std` instead: the right ones also where
            it rescales to another range than [0, 1] or normalises twice; see [`~preprocessing.Preprocessing`].

    Raises:
        `ValueError`: If an example has no `pixel_values`, images differ in shape or hold non-finite values, some
            examples have labels and others none, or a label lies outside the head. When built: if the options for noise
            do not belong together.

    Example:

    ```python
    >>> import torch
    >>> from hf_nullspace import NullspaceDataCollator

    >>> batch = NullspaceDataCollator()([{"pixel_values": torch.zeros(3, 32, 32), "label": 1}] * 4)
    >>> batch["pixel_values"].shape, batch["labels"]
    (torch.Size([4, 3, 32, 32]), tensor([1, 1, 1, 1]))
    ```
    """

    num_labels: int | None = None
    nullspace: PatchNullspace | None = None
    noise: NullspaceNoise | torch.Tensor | None = None
    noise_norm: float | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    slides: int = 32
    paired: bool = False
    seed: int = 42
    image_processor: Callable | None = None

    def __post_init__(self):
        self._epoch = 0
        self._take_statistics()
        given = {
            name for name in ("noise", "noise_norm", "image_mean", "image_std") if getattr(self, name) is not None
        }
        if self.nullspace is None:
            if given or self.paired:
                raise ValueError(
                    f"{sorted(given | ({'paired'} if self.paired else set()))} ask for noise in the pixels, which "
                    "needs `nullspace=PatchNullspace.from_model(model)`."
                )
            return
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("Give both `image_mean` and `image_std`, or neither.")
        if self.noise is None:
            if self.nullspace.dimension == 0:
                raise ValueError(
                    "This model has no exact nullspace (dimension 0), so there is no exact noise to add. Pass `noise` "
                    "from `synthesize_noise`, or use `NullspaceTrainer`."
                )
            if not {"noise_norm", "image_mean"} & given:
                raise ValueError(
                    "Exact noise needs a size: `noise_norm`, or `image_mean` and `image_std` (or the `image_processor`) "
                    "for the largest that keeps pixels in [0, 1]."
                )
            return
        if self.noise_norm is not None:
            raise ValueError("`noise_norm` is for exact noise; scale `noise` itself instead.")
        own = self.noise.noise if isinstance(self.noise, NullspaceNoise) else SharedNoise(self.noise)
        if len(own.tensor) != 1:
            raise ValueError(
                f"`noise` must be one noise of shape (1, num_patches, hidden_size), but has shape {tuple(own.tensor.shape)}."
            )
        self._drawn_from = own.to("cpu")
        is_fixed = self.image_mean is None and not own.is_drawn
        self._realized = self.nullspace.realize(own.tensor.detach().cpu().float()) if is_fixed else None

    def _take_statistics(self) -> None:
        if self.image_processor is None:
            return
        if self.nullspace is None:
            raise ValueError(
                "`image_processor` says how far noise may move a pixel; there is none without "
                "`nullspace=PatchNullspace.from_model(model)`. Images are prepared before the collator."
            )
        if self.image_mean is not None or self.image_std is not None:
            raise ValueError("Give `image_processor`, or `image_mean` and `image_std`, but not both.")
        preprocessing = Preprocessing.of(self.image_processor, self.nullspace.num_channels)
        self.image_mean = preprocessing.mean
        self.image_std = preprocessing.std

    def set_epoch(self, epoch: int) -> None:
        """
        Draws other noise from now on. Without it an image gets the same noise in every epoch. Persistent workers
        (`persistent_workers=True`) do not see the change. With `Trainer`, call it in a callback's `on_epoch_begin` with
        `int(state.epoch or 0)`, which is also right after a resume.
        """
        self._epoch = epoch

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = []
        for index, example in enumerate(examples):
            if "pixel_values" not in example:
                raise ValueError(
                    f"Example {index} of the batch has no `pixel_values`, only {sorted(example)}. Prepare images with "
                    "the image processor (`dataset.with_transform(...)` or `map`), and pass "
                    "`remove_unused_columns=False` if a transform reads other columns."
                )
            images.append(torch.as_tensor(example["pixel_values"]))
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"Example {index} of the batch has pixel_values of shape {tuple(images[-1].shape)}, but example 0 "
                    f"has {tuple(images[0].shape)}. Resize all images to one size with the image processor."
                )
        pixel_values = torch.stack(images).float()
        if not torch.isfinite(pixel_values).all():
            index = int((~torch.isfinite(pixel_values.flatten(1))).any(1).nonzero()[0])
            raise ValueError(
                f"Example {index} of the batch has NaN or infinite pixel_values; check its preprocessing."
            )
        batch = {"pixel_values": pixel_values}
        for name in PATCH_INPUTS:
            if name in examples[0]:
                batch[name] = torch.stack([torch.as_tensor(example[name]) for example in examples])
        labels = self._labels(examples)
        if labels is not None:
            batch["labels"] = labels
        if self.nullspace is None:
            return batch
        masks = batch.get("pixel_attention_mask", [None] * len(images))
        # One image at a time: sums over a whole batch would round differently in batches of another size.
        noisy = torch.cat([self._noisy(image, mask) for image, mask in zip(pixel_values.split(1), masks, strict=True)])
        if self.paired:
            batch = {name: torch.cat([values, values]) for name, values in batch.items()}
            noisy = torch.cat([pixel_values, noisy])
        return {**batch, "pixel_values": noisy}

    def _noisy(self, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """One image with its noise; patches that only fill up the row stay as they are."""
        if mask is None:
            return image + self._noise_for(image, slice(None))
        places = mask.bool()
        noisy = image.clone()
        noisy[:, places] += self._noise_for(image[:, places], places)
        return noisy

    def _noise_for(self, image: torch.Tensor, places: torch.Tensor | slice) -> torch.Tensor:
        """The noise of one image, of its shape, whose patches are those at `places` of the noise."""
        digest = hashlib.sha256(image.numpy().tobytes()).digest()
        generator = keyed_generator("pixel noise", self.seed, self._epoch, int.from_bytes(digest[:8], "little"))
        statistics = (self.image_mean, self.image_std)
        if self.noise is not None:
            if self._realized is not None:
                return self._realized[:, places] if image.dim() == 3 else self._realized
            noise = self._drawn_from.draw(1, generator)[:, places].detach().float()
            if self.image_mean is None:
                return self.nullspace.realize(noise)
            return self.nullspace.realize_within(noise, image, *statistics)[0]
        if self.image_mean is None:
            size = {"num_patches": image.shape[1]} if image.dim() == 3 else {"image_size": tuple(image.shape[2:])}
            return self.nullspace.sample(1, self.noise_norm, generator, **size)
        return self.nullspace.sample_within(image, *statistics, generator, self.noise_norm, self.slides)

    def _labels(self, examples: list[dict[str, Any]]) -> torch.Tensor | None:
        name = next((name for name in LABEL_NAMES if any(name in example for example in examples)), None)
        if name is None:
            return None
        missing = [index for index, example in enumerate(examples) if example.get(name) is None]
        if missing:
            raise ValueError(
                f"Examples {missing} of the batch have no `{name}`, but the others do. Label all or none."
            )
        words = [index for index, example in enumerate(examples) if isinstance(example[name], (str, bytes))]
        if words:
            raise ValueError(
                f"The `{name}` of example {words[0]} is {examples[words[0]][name]!r}, but a label is the number of its class. "
                "Turn names into numbers with `model.config.label2id`, or with `dataset.class_encode_column(...)`."
            )
        values = [torch.as_tensor(example[name]) for example in examples]
        shapes = sorted({tuple(value.shape) for value in values})
        if len(shapes) > 1:
            raise ValueError(f"The labels of the batch have the shapes {shapes}; give all examples the same.")
        labels = torch.stack(values)
        labels = labels.float() if labels.is_floating_point() else labels.long()
        return labels if self.num_labels in (None, 1) else self._checked(labels)

    def _checked(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels for a head with several classes: indices of classes, or rows with a number for each class."""
        if labels.dim() == 1:
            wrong = labels[(labels < 0) | (labels >= self.num_labels) | (labels != labels.round())]
            if len(wrong):
                raise ValueError(
                    f"Label {wrong[0].item():g} lies outside the classifier head, which has {self.num_labels} labels "
                    f"(0 to {self.num_labels - 1}). Load the model with `num_labels` set to the dataset's number of "
                    "classes (1 for regression), or fix the labels."
                )
            return labels.long()
        if labels.is_floating_point() and labels.dim() == 2 and labels.shape[1] != self.num_labels:
            raise ValueError(
                f"The labels are rows of {labels.shape[1]} numbers, but the classifier head has {self.num_labels} labels. "
                "Give each image a number for every class, or load the model with another `num_labels`."
            )
        return labels
