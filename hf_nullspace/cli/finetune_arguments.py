"""The flags of `hf-nullspace finetune`, and which of them fit together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import TrainerCallback
from transformers.utils import logging

from ..data.loading import SOURCES, DataArguments
from ..models.loading import ModelArguments
from ..training.arguments import NullspaceTrainingArguments
from ..training.augmentation import check_package
from ..training.recipe import RECIPE_RULES, RecipeArguments
from ..training.weight_average import WeightAverageCallback
from ..utils.flags import FlagRule, check_at_least
from .arguments import DIGITS_BASE, DIGITS_TRAINING, method_rules, parse_arguments


logger = logging.get_logger(__name__)

# Defaults that differ if neither a model nor a dataset is given.
DIGITS_DEFAULTS = {**DIGITS_TRAINING, "output_dir": "outputs/digits", "plain_control": True}
# Metrics of an evaluation, by which the best checkpoint may be chosen.
EVALUATED = ("loss", "accuracy")


@dataclass
class FinetuneArguments(RecipeArguments):
    """What the command does beside finetuning."""

    plain_control: bool = field(
        default=False, metadata={"help": "Also finetune without noise for as many steps, and compare."}
    )
    base_max_steps: int = field(
        default=DIGITS_BASE["max_steps"], metadata={"help": "Steps that the digits model is trained for first."}
    )
    max_robustness_samples: int = field(
        default=500, metadata={"help": "Images of the validation split that robustness is measured on."}
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of a moving average of the weights, which training ends with; 0 averages none."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the files of another run in the output folder first."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, base_max_steps=1, max_robustness_samples=1)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in [0, 1), but got {self.ema_decay!r}.")

    def callbacks(self) -> list[TrainerCallback]:
        """What the finetuning is given, with noise or without."""
        return [WeightAverageCallback(self.ema_decay)] if self.ema_decay else []


@dataclass
class FinetuneTrainingArguments(NullspaceTrainingArguments):
    """[`NullspaceTrainingArguments`] of a command that trains and evaluates unless it is told not to."""

    do_train: bool = field(
        default=True, metadata={"help": "Finetune. Without it a model is evaluated and measured as it is."}
    )
    do_eval: bool = field(default=True, metadata={"help": "Evaluate on the validation split at the end."})

    def __post_init__(self):
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()  # in a log, every update of a bar is a line
        super().__post_init__()


ARGUMENT_TYPES = (ModelArguments, DataArguments, FinetuneArguments, FinetuneTrainingArguments)


def parse_finetune_arguments(
    argv: Sequence[str], prog: str
) -> tuple[ModelArguments, DataArguments, FinetuneArguments, FinetuneTrainingArguments]:
    """
    The flags, after those of a JSON file where one comes first; the model may come before them, without its flag.

    Raises:
        `ValueError`: If flags do not fit together.
    """
    rules = [*method_rules("noise_"), *RECIPE_RULES]
    rules.append(FlagRule("base_max_steps", "it is of the digits model", excludes=("model_name_or_path", *SOURCES)))
    parsed = parse_arguments(ARGUMENT_TYPES, argv, DIGITS_DEFAULTS, prog, ["model_name_or_path"], rules)
    model_args, data_args, finetune_args, args = parsed
    metric = str(args.metric_for_best_model or "loss").removeprefix("eval_")
    if (args.load_best_model_at_end or args.save_strategy == "best") and metric not in EVALUATED:
        raise ValueError(
            f"`metric_for_best_model={args.metric_for_best_model}` is not evaluated here; it may be {list(EVALUATED)}."
        )
    args.remove_unused_columns = False  # the transform reads the image column
    if args.do_predict:
        raise ValueError("`do_predict` has no images to predict. Measure a model with `hf-nullspace evaluate`.")
    if args.do_train:
        check_package(finetune_args.augmentation)
    else:
        _check_without_training(model_args, finetune_args, args)
    if finetune_args.plain_control and not args.noise_weight:
        logger.warning("Without noise the run itself is plain finetuning: no control is trained.")
        finetune_args.plain_control = False
    return parsed


def _check_without_training(
    model_args: ModelArguments,
    finetune_args: FinetuneArguments,
    args: FinetuneTrainingArguments,
) -> None:
    """Refuses flags that need training, if no training was requested."""
    if model_args.model_name_or_path is None:
        raise ValueError("Without `do_train` there must be a trained model: name it with `model_name_or_path`.")
    asked = {
        "plain_control": finetune_args.plain_control,
        "push_to_hub": args.push_to_hub,
        "resume_from_checkpoint": args.resume_from_checkpoint,
        "head_first_steps": finetune_args.head_first_steps,
    }
    names = [f"`{name}`" for name, value in asked.items() if value]
    if names:
        raise ValueError(f"{', '.join(names)} and no `do_train` do not fit together: nothing is trained.")
