"""Runs a command as a shell expects: errors of one line, exit codes, and messages that name settings as flags."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ..utils.current_command import made_by
from ..utils.wording import as_flags, worded


# Errors that a user can fix. Other errors are shown with their type, since their message alone may say little.
EXPECTED_ERRORS = (ValueError, OSError, ImportError, RuntimeError)
# The settings of the command that was parsed last: messages write them as flags.
FLAG_NAMES: set[str] = set()
TRANSFORMERS_DEBUG_OPTIONS = ("underflow_overflow", "tpu_metrics_debug")  # of `TrainingArguments.debug`


def run_command(prog: str, command: Callable[[list[str]], Any], argv: Sequence[str]) -> None:
    """
    Runs a command as a shell expects: an error is one line on stderr and exit code 2, an interrupt is exit code 130.
    Messages name the command's settings as its flags.

    `--debug` prints the traceback before that line. In front of an option of `TrainingArguments.debug`, such as
    `--debug underflow_overflow`, it is that flag instead.

    Args:
        prog (`str`): Name that errors begin with, such as `"hf-nullspace probe"`.
        command (`Callable[[list[str]], Any]`): Called with the flags. Its `SystemExit` is passed on.
        argv (`Sequence[str]`): The command line without the program.
    """
    argv = list(argv)
    places = [
        place
        for place, word in enumerate(argv)
        if word == "--debug" and not set(argv[place + 1 : place + 2]) & set(TRANSFORMERS_DEBUG_OPTIONS)
    ]
    argv = [word for place, word in enumerate(argv) if place not in places]
    try:
        with worded(lambda text: as_flags(text, FLAG_NAMES)), made_by([*prog.split(), *argv]):
            command(argv)
        if sys.stdout is not None:  # a shell may start a command with its output closed
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (Exception, KeyboardInterrupt) as error:
        if places:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            print(f"{prog}: interrupted", file=sys.stderr)
            raise SystemExit(130) from error
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with the type of error unless it is one of `EXPECTED_ERRORS`."""
    message = " ".join(str(error).split())
    if isinstance(error, EXPECTED_ERRORS) and message:
        return message
    kind = type(error).__name__
    return (f"{kind}: {message}" if message else kind) + " (`--debug` shows where)"
