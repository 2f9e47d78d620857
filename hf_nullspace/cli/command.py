"""The class of a command of `hf-nullspace`, and the registry of commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..utils.registry import Registry


@dataclass(frozen=True)
class Command:
    """
    A command of `hf-nullspace`.

    Args:
        name (`str`): Its word on the command line.
        summary (`str`): What it does, in the line that `hf-nullspace --help` shows.
        run (`Callable[[list[str]], Any]`): Called with the words that follow the name. Its errors are shown in one line,
            see [`~command_line.run_command`].
    """

    name: str
    summary: str
    run: Callable[[list[str]], Any]


COMMANDS: Registry[Command] = Registry("command")


def register_command(command: Command) -> Command:
    """
    Adds a command to `hf-nullspace`.

    Raises:
        `ValueError`: If another command has its name, or it cannot be a name.
    """
    return COMMANDS.register(command)
