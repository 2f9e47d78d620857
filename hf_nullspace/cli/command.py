"""What a command of `hf-nullspace` is, and the table of those that are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """
    A command of `hf-nullspace`.

    Args:
        name (`str`): Its word on the command line: lower-case letters, digits and dashes.
        summary (`str`): What it does, in the line that `hf-nullspace --help` shows.
        run (`Callable[[list[str]], Any]`): Called with the words that follow the name. Its errors are shown in one line,
            see [`~command_line.run_command`].

    Raises:
        `ValueError`: If the name is none.
    """

    name: str
    summary: str
    run: Callable[[list[str]], Any]

    def __post_init__(self):
        if not re.fullmatch("[a-z][a-z0-9-]*", self.name):
            raise ValueError(
                f"The name of a command must be lower-case letters, digits and dashes, but got {self.name!r}."
            )


COMMANDS: dict[str, Command] = {}


def register_command(command: Command) -> Command:
    """
    Makes a command known to `hf-nullspace`.

    Raises:
        `ValueError`: If another command has its name.
    """
    if command.name in COMMANDS:
        raise ValueError(f"There is a command {command.name!r} already: {COMMANDS[command.name].summary} Rename one.")
    COMMANDS[command.name] = command
    return command
