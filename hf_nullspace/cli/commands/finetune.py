"""Finetune a classifier on its own nullspace noise, and save it with the noise: `finetune [MODEL] [--train_dir DIR]`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from accelerate import PartialState

from ...utils.phases import logged_to_terminal, without_bars
from ...utils.wording import as_flags, worded
from ..finetune_arguments import ARGUMENT_TYPES, parse_finetune_arguments
from ..finetune_run import FinetuneRun


FLAGS = frozenset(item.name for arguments in ARGUMENT_TYPES for item in fields(arguments))


def main(argv: Sequence[str], prog: str = "finetune.py") -> dict[str, dict[str, float]]:
    """
    Runs the command: `[FILE.json] [MODEL] [flags]`.

    Args:
        argv (`Sequence[str]`): The command line without the program.
        prog (`str`, *optional*, defaults to `"finetune.py"`): Name of the command in its help and errors.

    Returns:
        `dict[str, dict[str, float]]`: Accuracy in per cent by model (`"base"` and `"plain"` where there is a control,
        and `"nullspace"`) and column.

    Raises:
        `ValueError`: If flags do not fit together or `output_dir` holds another run, before anything is read; if model
            and images do not fit, before anything is trained.
    """
    with worded(partial(as_flags, names=FLAGS)):
        model_args, data_args, finetune_args, args = parse_finetune_arguments(argv, prog)
        level = args.get_process_log_level() if args.log_level != "passive" else logging.INFO
        level = level if args.should_log else logging.WARNING
        with logged_to_terminal(level), without_bars(args.disable_tqdm):
            return FinetuneRun(model_args, data_args, finetune_args, args).run()


def run(argv: list[str]) -> None:
    main(argv, "hf-nullspace finetune")
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
