"""The model flags of the command line, and the classifier and image processor that they load."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

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

from ..data.image_tables import is_path
from ..utils.flags import check_at_least, expand_paths
from .adapters import base_of_adapter
from .digits_vit import build_digits_model
from .image_size import change_image_size
from .patch_projection import channels_of
from .preprocessing import Preprocessing
from .trained_head import check_rows_named, check_trained_head, follow_names


logger = logging.get_logger(__name__)

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
        if self.model_revision != "main" and self.model_name_or_path and Path(self.model_name_or_path).is_dir():
            raise ValueError(
                f"`--model_revision {self.model_revision}` chooses a commit of a Hub repository, but "
                f"{self.model_name_or_path!r} is a folder. Leave it out, or name the repository."
            )


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


class LoadedModel(NamedTuple):
    """A classifier, its image processor, and whether a head of random numbers is on top of a trained model."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    has_new_head: bool = False


def load_model(args: ModelArguments, labels: list[str] | None = None) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The first two of what [`load_classifier`] gives."""
    return load_classifier(args, labels)[:2]


def load_classifier(args: ModelArguments, labels: list[str] | None = None) -> LoadedModel:
    """
    Loads a classifier and its image processor, both at the requested image size; without a name, the untrained digits
    model. The rows of a trained head are put in the order of `labels`, by the names of the classes.

    Args:
        args ([`ModelArguments`]): The model flags.
        labels (`list[str]`, *optional*): Class names. By default the head stays the model's own.

    Raises:
        `RuntimeError`: If the head has another number of labels and `ignore_mismatched_sizes` is not set.
        `ValueError`: If the head was trained on other classes and `ignore_mismatched_sizes` is not set, if its classes
            are not numbered row by row, or without `labels`, if there is no trained head.
        `ImportError`: If it is an adapter, and PEFT is not installed.
    """
    if args.model_name_or_path is None:
        return LoadedModel(*build_digits_model(labels or [str(digit) for digit in range(10)], args.image_size or 32))
    hub = {
        "cache_dir": args.cache_dir,
        "revision": args.model_revision,
        "token": args.token,
        "trust_remote_code": args.trust_remote_code,
    }
    head = {}
    if labels is not None:
        head = {
            "num_labels": len(labels),  # without it, timm's configs use their own number
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
    has_new_head = False
    if labels is None:
        check_trained_head(args.model_name_or_path, model, loaded["missing_keys"])
    else:
        location, revision = (
            (args.config_name or args.model_name_or_path, {}) if base is None else (base, {"revision": "main"})
        )
        own = AutoConfig.from_pretrained(location, **hub | revision).id2label
        check_rows_named(location, own)
        new_keys = {
            *loaded["missing_keys"],
            *(key[0] if isinstance(key, tuple) else key for key in loaded["mismatched_keys"]),
        }
        has_new_head = follow_names(model, own, labels, new_keys, args.ignore_mismatched_sizes)
    processor = _load_image_processor(args, model, hub, base)
    if args.image_size is not None:
        model = change_image_size(model, args.image_size)
        _set_size(processor, args.image_size, channels_of(model))
    return LoadedModel(model, processor, has_new_head)


def _set_size(processor: BaseImageProcessor, side: int, num_channels: int | None) -> None:
    """Makes an image processor produce square pictures of another size."""
    square = {"height": side, "width": side}
    found = "fails"
    for size in (square, {"shortest_edge": side}):
        processor.size = size
        processor.crop_size = square
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
        if base is not None:  # the folder of an adapter may have none
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
