"""The model and data flags of the examples and the command line, and what they load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.utils import logging
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .adapter_folders import base_of_adapter
from .command_line import CommandParser, FlagRule, check_at_least, expand_paths
from .configuration import METHOD_SETTINGS
from .data import check_columns, draw_images, drop_unreadable_of_splits, load_image_splits
from .digits import DIGITS_NAME, build_digits_model, load_digits_splits
from .image_size import change_image_size
from .image_tables import is_path
from .patch_embedding import channels_of
from .preprocessing import Preprocessing
from .trained_head import follow_names


if TYPE_CHECKING:
    from datasets import DatasetDict


logger = logging.get_logger(__name__)

# Finetunes the digits model in a minute; what scripts use where neither a model nor a dataset is named.
DIGITS_TRAINING = {
    "noise_method": "boundary",  # draws do harm to a model this small, and one noise shows what the method is about
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "max_steps": 400,
    "per_device_train_batch_size": 32,
    "logging_steps": 50,
    "save_strategy": "no",
    "report_to": "none",
}
# What differs when the digits model is trained from scratch before that.
DIGITS_BASE = {"max_steps": 800, "learning_rate": 1e-3}
SOURCES = ("dataset_name", "train_dir", "train_file")
DEFAULT_MODEL = "google/vit-base-patch16-224-in21k"


@dataclass
class ModelArguments:
    """Which model, and how to load it."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the model. Default: a small ViT, trained on digits first; "
            f"where images of your own are finetuned on, {DEFAULT_MODEL}."
        },
    )
    config_name: str | None = field(default=None, metadata={"help": "Config, if not the model's."})
    image_processor_name: str | None = field(default=None, metadata={"help": "Image processor, if not the model's."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images in pixels; position embeddings are interpolated."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Access token of the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start a new head if the number of labels differs."}
    )

    def __post_init__(self):
        expand_paths(self, "model_name_or_path", "config_name", "image_processor_name", "cache_dir")
        check_at_least(self, image_size=1)
        for name in ("model_name_or_path", "config_name", "image_processor_name"):
            check_model_name(getattr(self, name), name)


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


def model_rules(*names: str, also: Sequence[str] = ()) -> list[FlagRule]:
    """The rules of the flags that say how to load a model, in a command where one of the flags `names` brings it."""
    details = ("config_name", "image_processor_name", "model_revision", "trust_remote_code", "ignore_mismatched_sizes")
    return [FlagRule(name, "the digits model is built here", needs=names) for name in (*details, *also)]


def method_rules(prefix: str = "") -> list[FlagRule]:
    """The rules of the settings that only some methods of synthesis read."""
    rules = []
    for name, methods in METHOD_SETTINGS.items():
        flag = name if name.startswith(prefix) else prefix + name
        rules.append(FlagRule(flag, f"it is for {' and '.join(methods)}", only_with=(f"{prefix}method", methods)))
    return rules


def check_model_name(name: str | None, flag: str) -> None:
    """
    Raises:
        `FileNotFoundError`: If the name can only be a path, and there is nothing of that name.
        `ValueError`: If it is empty, or a file.
    """
    if name is None:
        return
    if not name.strip():
        raise ValueError(f"`--{flag}` is empty. Give a Hub id or a folder.")
    if Path(name).is_file() and not name.endswith(".json"):
        raise ValueError(f"`--{flag}` takes a Hub id or a folder, but {name!r} is a file.")
    if is_path(name) and not Path(name).exists():
        raise FileNotFoundError(f"There is no folder {name!r} (`--{flag}`). Name one, or a Hub id such as user/name.")


def parse_arguments(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    digits_defaults: dict[str, Any],
    prog: str | None = None,
    words: Sequence[str] = (),
    rules: Sequence[FlagRule] = (),
) -> tuple[Any, ...]:
    """
    Flags, and a JSON file of them if it comes first, as dataclasses; [`ModelArguments`] and [`DataArguments`] are first.

    Args:
        dataclass_types (`Sequence[type]`): The dataclasses.
        argv (`Sequence[str]`): The command line without the program.
        digits_defaults (`dict`): What differs from the dataclasses' own defaults when neither a model nor a dataset is
            named. A dataset without a model is for `DEFAULT_MODEL`.
        prog (`str`, *optional*): Name that errors begin with; by default that of the script.
        words (`Sequence[str]`, *optional*): Fields whose values may come first, without their flags.
        rules (`Sequence[FlagRule]`, *optional*): Which flags do not fit together, beside those of model and data.

    Raises:
        `ValueError`: If a value lies outside its range, or flags do not fit together.
    """

    def defaults(given: set[str]) -> dict[str, Any]:
        return {} if given & {"model_name_or_path", *SOURCES} else digits_defaults

    rules = [*DATA_RULES, *model_rules("model_name_or_path", *SOURCES), *rules]
    parser = CommandParser(dataclass_types, prog or Path(sys.argv[0]).name, words, defaults, rules)
    parsed = parser.parse(argv)
    model_args, data_args = parsed[:2]
    if data_args.source is not None and model_args.model_name_or_path is None:
        model_args.model_name_or_path = DEFAULT_MODEL
    return parsed


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


def load_model(args: ModelArguments, labels: list[str] | None = None) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    The classifier with a head for `labels`, whose rows follow their names, and its image processor, both at the image size asked for; the untrained
    digits model if none is named.

    Args:
        args ([`ModelArguments`]): The model flags.
        labels (`list[str]`, *optional*): Class names. By default the head stays the model's own.

    Raises:
        `RuntimeError`: If the head has another number of labels and `ignore_mismatched_sizes` is not set.
        `ValueError`: If the head was trained on other classes and `ignore_mismatched_sizes` is not set.
        `ImportError`: If it is an adapter, and PEFT is not installed.
    """
    if args.model_name_or_path is None:
        return build_digits_model(labels or [str(digit) for digit in range(10)], args.image_size or 32)
    hub = {"cache_dir": args.cache_dir, "revision": args.model_revision, "token": args.token}
    hub["trust_remote_code"] = args.trust_remote_code
    head = {}
    if labels is not None:
        head = {
            "num_labels": len(labels),  # timm's configs go by their own number where none is given
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
    base = None
    try:
        config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **head, **hub)
    except (OSError, ValueError):
        base = None if args.config_name else base_of_adapter(args.model_name_or_path, hub)
        if base is None:
            raise
        config = AutoConfig.from_pretrained(base, **head, **hub | {"revision": "main"})
    model, loaded = AutoModelForImageClassification.from_pretrained(
        args.model_name_or_path,
        config=config,
        dtype=torch.float32,  # half-precision checkpoints are trained in float32; --bf16 turns autocast on
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        output_loading_info=True,
        **hub,
    )
    if labels is not None:
        location, revision = (
            (args.config_name or args.model_name_or_path, {}) if base is None else (base, {"revision": "main"})
        )
        own = AutoConfig.from_pretrained(location, **hub | revision).id2label
        new_keys = {
            *loaded["missing_keys"],
            *(key[0] if isinstance(key, tuple) else key for key in loaded["mismatched_keys"]),
        }
        follow_names(model, own, labels, new_keys, args.ignore_mismatched_sizes)
    processor = _load_image_processor(args, model, hub, base)
    if args.image_size is not None:
        model = change_image_size(model, args.image_size)
        _set_size(processor, args.image_size, channels_of(model))
    return model, processor


def _set_size(processor: BaseImageProcessor, side: int, num_channels: int | None) -> None:
    """Makes an image processor give square pictures of another size."""
    square, found = {"height": side, "width": side}, "fails"
    for size in (square, {"shortest_edge": side}):
        processor.size, processor.crop_size = size, square
        try:
            found = f"gives {Preprocessing(processor, num_channels).processed_size or 'none of one size'}"
        except ValueError as error:
            found = f"fails ({error})"
        if found == f"gives {(side, side)}":
            return
    raise ValueError(
        f"{type(processor).__name__} cannot be set to pictures of {side}x{side} pixels: with `size` {size} it {found}. "
        "Leave out `image_size`, or name another image processor."
    )


def _load_image_processor(
    args: ModelArguments, model: PreTrainedModel, hub: dict, base: str | None = None
) -> BaseImageProcessor:
    try:
        return AutoImageProcessor.from_pretrained(args.image_processor_name or args.model_name_or_path, **hub)
    except (OSError, ValueError):
        if args.image_processor_name:
            raise
        if base is not None:  # an adapter's own folder need have none
            return _load_image_processor(replace(args, model_name_or_path=base), model, hub | {"revision": "main"})
        mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        if channels_of(model) == 1:
            mean, std = ([round(sum(values) / len(values), 3)] for values in (mean, std))
        logger.warning(
            f"{args.model_name_or_path} has no image processor; assuming ImageNet's mean {mean} and standard deviation "
            f"{std}. Name the right one with `--image_processor_name`."
        )
        side = getattr(getattr(model.config, "vision_config", model.config), "image_size", None) or 224
        height, width = (side, side) if isinstance(side, int) else side
        return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=mean, image_std=std)
