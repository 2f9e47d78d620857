"""The digits model, trained where a command is given no model."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from transformers import Trainer, TrainingArguments, ViTForImageClassification, ViTImageProcessorPil, set_seed

from ..models.digits_vit import build_digits_model
from ..models.preprocessing import image_transform
from ..training.data_collator import NullspaceDataCollator
from ..utils.phases import announced


if TYPE_CHECKING:
    from datasets import DatasetDict


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
        with announced(f"Training the digits model, {max_steps} steps (400 take about a minute on a CPU)"):
            Trainer(model, args, NullspaceDataCollator(), train).train()
    return model.eval(), processor
