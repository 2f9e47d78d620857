"""Stacks images and labels into a batch, and says which example is wrong before a model ever sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .frozen import LABEL_NAMES


@dataclass
class NullspaceDataCollator:
    """
        Stacks examples with `pixel_values` (and `labels` or `label`) into a batch; draws nothing from any random generator.

        Args:
            num_labels (`int`, *optional*):
                Size of the classifier head. When given, a label outside `[0, num_labels)` is refused.

        Raises:
            `ValueError`: If an example has no `pixel_values`, images differ in shape or hold non-finite values, some
                examples have labels and others none, or a label lies outside the head.

        Example:

        ```python
        >>> import torch

    from .frozen import LABEL_NAMES
        >>> from hf_nullspace import NullspaceDataCollator

        >>> batch = NullspaceDataCollator()([{"pixel_values": torch.zeros(3, 32, 32), "label": 1}] * 4)
        >>> batch["pixel_values"].shape, batch["labels"]
        (torch.Size([4, 3, 32, 32]), tensor([1, 1, 1, 1]))
        ```
    """

    num_labels: int | None = None

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
        labels = self._labels(examples)
        if labels is not None:
            batch["labels"] = labels
        return batch

    def _labels(self, examples: list[dict[str, Any]]) -> torch.Tensor | None:
        name = next((name for name in LABEL_NAMES if any(name in example for example in examples)), None)
        if name is None:
            return None
        missing = [index for index, example in enumerate(examples) if example.get(name) is None]
        if missing:
            raise ValueError(
                f"Examples {missing} of the batch have no `{name}`, but the others do. Label all or none."
            )
        labels = torch.as_tensor([int(example[name]) for example in examples])
        if self.num_labels is not None:
            outside = labels[(labels < 0) | (labels >= self.num_labels)]
            if len(outside):
                raise ValueError(
                    f"Label {int(outside[0])} lies outside the classifier head, which has {self.num_labels} labels "
                    f"(0 to {self.num_labels - 1}). Load the model with `num_labels` set to the dataset's number of "
                    "classes, or fix the labels."
                )
        return labels
