"""A training set whose pictures are augmented anew in every epoch, each by its place in the set and the epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from ..data.pictures import picture_name
from ..models.preprocessing import Preprocessing, image_transform
from ..utils.random import keyed_random_state
from .augmentation import Augmentation


if TYPE_CHECKING:
    from datasets import Dataset as PictureDataset


class AugmentedImages(Dataset):
    """
    Pictures, augmented and prepared for a model. How a picture is augmented depends on the seed, its place in the set and
    the epoch alone: it is the same whatever the number of workers and processes, and after a resume. Noise is synthesised
    on the pictures as they are.

    [`NullspaceTrainer`] sets the epoch. With a plain `Trainer`, call [`~AugmentedImages.set_epoch`] in a callback's
    `on_epoch_begin` with `int(state.epoch or 0)`.

    Args:
        dataset ([`~datasets.Dataset`]): The pictures and their labels.
        image_processor (`Callable` or [`Preprocessing`]): The model's image processor.
        augmentation ([`Augmentation`]): What is done to a picture. Its size must be the `processed_size` of the
            preprocessing; where that is `None`, the image processor is given the augmented picture.
        image_column_name, label_column_name (`str`, *optional*): The columns.
        seed (`int`, *optional*, defaults to 42): Seed of the augmentation.

    Attributes:
        unaugmented ([`~datasets.Dataset`]): The same images without augmentation.

    Raises:
        `ValueError`: If the augmentation gives another size or number of channels than the model reads; when an image is
            read: if its picture cannot be, which is named.

    Example:

    ```python
    >>> from hf_nullspace.training.augmentation import Augmentation
    >>> from hf_nullspace.training.augmented_images import AugmentedImages

    >>> images = AugmentedImages(dataset, image_processor, Augmentation("default", size=(16, 16)))
    >>> images[0]["pixel_values"].shape
    torch.Size([3, 16, 16])
    ```
    """

    def __init__(
        self,
        dataset: PictureDataset,
        image_processor: Callable | Preprocessing,
        augmentation: Augmentation,
        image_column_name: str = "image",
        label_column_name: str = "label",
        seed: int = 42,
    ):
        self.preprocessing = Preprocessing.of(image_processor, augmentation.num_channels)
        if augmentation.size != self.preprocessing.processed_size:
            raise ValueError(
                f"The augmentation gives images of size {augmentation.size}, but {self.preprocessing.name} gives the model "
                f"{self.preprocessing.processed_size}. Build it with that `size`."
            )
        self.dataset = dataset
        self.augmentation = augmentation
        self.columns = (image_column_name, label_column_name)
        self.seed = seed
        self.unaugmented = dataset.with_transform(image_transform(self.preprocessing, *self.columns))
        # In shared memory: data loader workers that live longer than an epoch see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Augments in another way from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several images at once, as data loaders ask for them."""
        rows = self.dataset[list(indices)]
        pictures, labels = (rows[column] for column in self.columns)
        images = [self._augmented(picture, index) for picture, index in zip(pictures, indices, strict=True)]
        return [{**image, "labels": label} for image, label in zip(images, labels, strict=True)]

    def _augmented(self, picture: Any, index: int) -> dict[str, torch.Tensor]:
        """The model inputs of one picture."""
        picture = self.preprocessing.read(picture, picture_name(picture) or f"Picture {index}")
        # Each image by itself: in a batch, what one draws would depend on the others.
        with keyed_random_state("augmentation", self.seed, int(self._epoch), index):
            cropped = self.preprocessing.to_pixels_as_is([self.augmentation.crop(picture)])
            pixels = self.augmentation.change(cropped)
        if self.preprocessing.processed_size is not None:
            return {"pixel_values": self.preprocessing.normalize(pixels)[0]}
        shades = (pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1)
        inputs = self.preprocessing.to_model_inputs([Image.fromarray(shades.numpy())])
        return {name: values[0] for name, values in inputs.items()}


def augmentation_in_words(dataset: Any) -> str | None:
    """How the pictures of a training set are augmented, in one line; `None` for any that is no [`AugmentedImages`]."""
    return str(dataset.augmentation) if isinstance(dataset, AugmentedImages) else None


def without_augmentation(dataset: Any) -> Any:
    """A training set as it is read for all but training."""
    return dataset.unaugmented if isinstance(dataset, AugmentedImages) else dataset
