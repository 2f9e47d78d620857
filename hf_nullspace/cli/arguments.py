"""Shared argument parsing of commands: model and data flags, their rules, and the default of the digits."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..data.loading import DATA_RULES, SOURCES
from ..models.loading import DEFAULT_MODEL
from ..noise.methods import BoundaryMethod
from ..noise.methods.base import OPTIONAL_SETTINGS, methods_reading
from ..utils.flags import FlagRule, check_at_least, check_output_dir
from .parser import CommandParser


# Settings that finetune the digits model in a minute, used if neither a model nor a dataset is given.
DIGITS_TRAINING = {
    "augmentation": "none",  # so that they need no further package; and no digit is another one in the mirror
    "noise_refresh_steps": 40,
    "noise_num_images": 256,
    "noise_method": BoundaryMethod.name,  # per-image noise harms a model this small; one shared noise shows the idea
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "max_steps": 400,
    "per_device_train_batch_size": 32,
    "logging_steps": 50,
    "save_strategy": "no",
    "report_to": "none",
}
# Settings that differ for training the digits model from scratch before that.
DIGITS_BASE: dict[str, Any] = {"max_steps": 800, "learning_rate": 1e-3}


def model_rules(*names: str, also: Sequence[str] = ()) -> list[FlagRule]:
    """The rules of the flags that say how to load a model, in a command where one of the flags `names` brings it."""
    details = ("config_name", "image_processor_name", "model_revision", "trust_remote_code", "ignore_mismatched_sizes")
    return [FlagRule(name, "the digits model is built here", needs=names) for name in (*details, *also)]


def method_rules(prefix: str = "") -> list[FlagRule]:
    """The rules of the settings that only some methods of synthesis read."""
    rules = []
    for name in OPTIONAL_SETTINGS:
        methods = methods_reading(name)
        flag = name if name.startswith(prefix) else prefix + name
        rules.append(FlagRule(flag, f"it is for {' and '.join(methods)}", only_with=(f"{prefix}method", methods)))
    return rules


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
    check_output_dir(parsed[-1].output_dir, **data_args.folders)
    _check_training(parsed[-1])
    if data_args.source is not None and model_args.model_name_or_path is None:
        model_args.model_name_or_path = DEFAULT_MODEL
    return parsed


def _check_training(args: TrainingArguments) -> None:
    """
    Refuses numbers that `Trainer` fails on late, or reads as if they were not given; for `max_steps` 0 it takes a step.
    """
    check_at_least(args, per_device_train_batch_size=1, per_device_eval_batch_size=1, gradient_accumulation_steps=1)
    check_at_least(args, dataloader_num_workers=0)
    if not args.learning_rate >= 0:
        raise ValueError(f"`learning_rate` must be at least 0, but got {args.learning_rate!r}.")
    if args.max_steps != -1 and args.max_steps < 1:
        raise ValueError(
            f"`max_steps` must be at least 1, or -1 for `num_train_epochs`, but got {args.max_steps}. To measure a model "
            "without training it, use `hf-nullspace evaluate`."
        )
    if not 0 < args.num_train_epochs < math.inf:
        raise ValueError(f"`num_train_epochs` must be a positive number, but got {args.num_train_epochs}.")


DIGITS_STEPS = FlagRule("digits_max_steps", "the named model is not trained here", excludes=("model_name_or_path",))
