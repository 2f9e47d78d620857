"""Runs of a tiny model on augmented pictures, which remember what they trained on."""

import json
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image
from random_pictures import PROCESSOR, random_pictures
from tiny_model import seeded_model_and_examples
from trainer_runs import Following

from hf_nullspace import NullspaceDataCollator, NullspaceTrainingArguments
from hf_nullspace.training.augmentation import Augmentation
from hf_nullspace.training.augmented_images import AugmentedImages


SETTINGS = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "noise_weight": 0.0,
    "save_steps": 5,
    "learning_rate": 1e-3,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "remove_unused_columns": False,
}


def labelled_pictures(count: int) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(5)})
    labels = [index % 5 for index in range(count)]
    return Dataset.from_dict({"image": random_pictures(count), "label": labels}, features)


def augmented(kind: str, count: int = 16, **options) -> AugmentedImages:
    augmentation = Augmentation(kind, **{"size": (16, 16), "crop_scale": 0.3, **options})
    return AugmentedImages(labelled_pictures(count), PROCESSOR, augmentation)


def build_augmented(folder, kind: str, **changes) -> Following:
    """Four steps in an epoch, and one and a half epochs."""
    model, _ = seeded_model_and_examples()
    args = NullspaceTrainingArguments(str(folder), **{**SETTINGS, **changes})
    return Following(model, args, NullspaceDataCollator(), augmented(kind))


def train_one_of(folder: str, kind: str, world: int) -> None:
    """In one of `world` processes: trains, and writes what it saw."""
    trainer = build_augmented(folder, kind, per_device_train_batch_size=4 // world, save_strategy="no")
    trainer.train()
    Path(folder, f"{kind}-{world}-{trainer.args.process_index}.json").write_text(json.dumps(trainer.seen))
