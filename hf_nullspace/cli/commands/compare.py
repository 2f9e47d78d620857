"""Compare ways of finetuning over seeds, with intervals: `compare [--methods NAME ...] [--train_dir DIR]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from ...comparison.arguments import CompareArguments
from ...comparison.comparison import Comparison, save_comparison
from ...comparison.runner import Runner
from ...data.loading import DataArguments
from ...models.loading import ModelArguments
from ...training.arguments import NullspaceTrainingArguments
from ...training.recipe import RECIPE_RULES
from ...utils.phases import progress_shown
from ..arguments import DIGITS_BASE, DIGITS_TRAINING, parse_arguments


DIGITS_DEFAULTS = {**DIGITS_TRAINING, "output_dir": "outputs/compare", "max_steps": 300, "logging_strategy": "no"}


def parse_compare_arguments(
    argv: Sequence[str], prog: str
) -> tuple[ModelArguments, DataArguments, CompareArguments, NullspaceTrainingArguments, dict[str, Any]]:
    """
    The flags of `compare`, after those of a JSON file where one comes first, and the training arguments of the model that
    all rows start from.
    """
    types = (ModelArguments, DataArguments, CompareArguments, NullspaceTrainingArguments)
    model_args, data_args, compare_args, args = parse_arguments(types, argv, DIGITS_DEFAULTS, prog, rules=RECIPE_RULES)
    is_digits = data_args.source is None and model_args.model_name_or_path is None
    base_arguments = DIGITS_BASE if is_digits else {}
    if compare_args.base_max_steps is None:
        compare_args.base_max_steps = base_arguments.get("max_steps", 0)
    if compare_args.evaluate_on is None:
        compare_args.evaluate_on = "test" if data_args.source is None else "validation"
    args.disable_tqdm = args.disable_tqdm or not sys.stderr.isatty()  # in a log, every update of a bar is a line
    return model_args, data_args, compare_args, args, base_arguments


def main(argv: Sequence[str], prog: str = "compare_methods.py") -> dict[str, Any]:
    """
    Runs the command.

    Args:
        argv (`Sequence[str]`): The command line without the program.
        prog (`str`, *optional*, defaults to `"compare_methods.py"`): Name of the command in its help and errors.

    Returns:
        `dict[str, Any]`: What `results.json` holds.

    Raises:
        `ValueError`: If a row cannot be run or measured, before anything is trained.
    """
    with progress_shown():
        comparison = Comparison(Runner(*parse_compare_arguments(argv, prog)))
        results = comparison.run()
    if comparison.runner.accelerator.is_main_process:
        save_comparison(comparison, results)
    return results


def run(argv: list[str]) -> None:
    main(argv, "hf-nullspace compare")
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
