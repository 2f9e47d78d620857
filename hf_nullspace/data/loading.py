"""The data flags of the command line, and the splits that they load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.flags import FlagRule, check_at_least, expand_paths
from .digits import DIGITS_NAME, load_digits_splits
from .splits import check_columns, draw_images, drop_unreadable_of_splits, load_image_splits


if TYPE_CHECKING:
    from datasets import DatasetDict


SOURCES = ("dataset_name", "train_dir", "train_file")


@dataclass
class DataArguments:
    """Which images, and how many."""

    dataset_name: str | None = field(default=None, metadata={"help": "Hub id or folder of a dataset."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_dir: str | None = field(
        default=None, metadata={"help": "Folder with one sub-folder for each class, or a metadata.csv."}
    )
    validation_dir: str | None = field(default=None, metadata={"help": "The same for validation."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "Parquet, CSV, TSV, JSON-lines or Arrow file with labels and images, or their names."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    train_val_split: float = field(default=0.15, metadata={"help": "Share split off where there is no validation."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many at most."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})
    skip_bad_images: bool = field(default=False, metadata={"help": "Leave out images that cannot be read."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that check images."})

    def __post_init__(self):
        expand_paths(self, "dataset_name", "train_dir", "validation_dir", "train_file", "validation_file")
        check_at_least(self, max_train_samples=1, max_eval_samples=1, preprocessing_num_workers=1)
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"`--train_val_split` must lie between 0 and 1, but got {self.train_val_split!r}.")

    @property
    def source(self) -> str | None:
        """The dataset that was named; `None` stands for the digits."""
        return self.dataset_name or self.train_dir or self.train_file

    @property
    def folders(self) -> dict[str, str | None]:
        """What may be a folder of pictures, by flag."""
        return {name: getattr(self, name) for name in ("dataset_name", "train_dir", "validation_dir")}

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of images and labels, by flag."""
        return {"image_column_name": self.image_column_name, "label_column_name": self.label_column_name}

    def card_arguments(self) -> dict[str, str | None]:
        """What `create_model_card` is told of the data: names, never folders of this machine."""
        if self.source is None:
            return {"dataset": DIGITS_NAME, "dataset_tags": "digits", "license": "apache-2.0"}
        if self.dataset_name is None or Path(self.dataset_name).exists():
            return {"dataset": Path(self.source).name}
        return {"dataset": self.dataset_name, "dataset_tags": self.dataset_name}


_ONE_SOURCE = "the training images come from one of them"
_ONE_VALIDATION = "the validation images come from one of them"
_DIGITS = "the digits would be trained on, which have splits and columns of their own"
DATA_RULES = (
    FlagRule("dataset_name", _ONE_SOURCE, excludes=("train_dir", "train_file")),
    FlagRule("train_dir", _ONE_SOURCE, excludes=("train_file",)),
    FlagRule("validation_dir", _ONE_VALIDATION, excludes=("validation_file",)),
    FlagRule("train_val_split", "the validation images are named", excludes=("validation_dir", "validation_file")),
    FlagRule("dataset_config_name", "it is one of the configurations of a dataset", needs=("dataset_name",)),
    *(
        FlagRule(name, _DIGITS, needs=SOURCES)
        for name in ("validation_dir", "validation_file", "train_val_split", "image_column_name", "label_column_name")
    ),
)


def load_data(args: DataArguments, seed: int, **load_kwargs) -> tuple[DatasetDict, list[str]]:
    """
    The checked splits and the names of their classes; the digits if no dataset is named.

    Args:
        args ([`DataArguments`]): The data flags.
        seed (`int`): Seed of the splits and of the choice of `max_train_samples`.
        load_kwargs: Passed on to `datasets.load_dataset` (`cache_dir`, `token`).
    """
    if args.source is None:
        splits = load_digits_splits(seed)
    else:
        names = ("dataset_name", "dataset_config_name", "train_dir", "validation_dir", "train_file", "validation_file")
        columns = ("image_column_name", "label_column_name")
        sources = {name: getattr(args, name) for name in (*names, "train_val_split", *columns)}
        splits = load_image_splits(**sources, seed=seed, **load_kwargs)
    labels = check_columns(splits, args.image_column_name, args.label_column_name)
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    drawn = {split: draw_images(splits[split], limit, seed) for split, limit in limits.items()}
    options = (args.image_column_name, args.skip_bad_images, args.preprocessing_num_workers)
    splits.update(drop_unreadable_of_splits(drawn, *options))
    return splits, labels
