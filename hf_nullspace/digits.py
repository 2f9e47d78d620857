"""Real images that need no download: handwritten digits, and a small vision transformer for them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from .data import image_transform
from .data_collator import NullspaceDataCollator


if TYPE_CHECKING:
    from datasets import DatasetDict


# How the dataset is called in model cards.
DIGITS_NAME = "scikit-learn digits"


def load_digits_splits(seed: int = 42) -> DatasetDict:
    """
    The 1,797 handwritten digits that ship inside scikit-learn, as `train`, `validation` and `test` splits.

    Columns: `image` (8x8 grey-scale pictures) and `label`. 60, 20 and 20 per cent of each class.

    Raises:
        `ImportError`: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits need scikit-learn: `pip install 'hf_nullspace[eval]'`.") from error
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    digits = load_digits()
    pictures = [Image.fromarray((picture * (255 / 16)).astype(np.uint8)) for picture in digits.images]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    dataset = Dataset.from_dict({"image": pictures, "label": digits.target}, features=features)
    first = dataset.train_test_split(0.4, stratify_by_column="label", seed=seed)
    second = first["test"].train_test_split(0.5, stratify_by_column="label", seed=seed)
    return DatasetDict(train=first["train"], validation=second["train"], test=second["test"])


def build_digits_model(
    labels: Sequence[str], image_size: int = 32
) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """
    An untrained ViT with 4 layers, hidden size 96 and 8x8 patches (an exact nullspace of 192 - 96 dimensions), and its
    image processor.

    Args:
        labels (`Sequence[str]`): Class names, in the order of their labels.
        image_size (`int`, *optional*, defaults to 32): Side of the images in pixels.
    """
    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    size = {"height": image_size, "width": image_size}
    return ViTForImageClassification(config), ViTImageProcessorPil(size=size)


def train_digits_model(
    splits: DatasetDict, max_steps: int = 400, seed: int = 42
) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """
    The digits model after a short plain training (about a minute on two CPU cores), and its image processor.

    Args:
        splits (`DatasetDict`): From [`load_digits_splits`].
        max_steps (`int`, *optional*, defaults to 400): Steps of 32 images.
        seed (`int`, *optional*, defaults to 42): Seed of the weights and of the order of the images.
    """
    set_seed(seed)
    model, processor = build_digits_model(splits["train"].features["label"].names)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=max_steps,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=32,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            seed=seed,
        )
        train = splits["train"].with_transform(image_transform(processor, "image", "label"))
        Trainer(model, args, NullspaceDataCollator(), train).train()
    return model.eval(), processor
