"""The command that runs, for pages that say what made them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar


# What stands in a page for the value of a flag such as `--token`.
HIDDEN = "..."

_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def made_by(words: Sequence[str]) -> Iterator[None]:
    """Pages of the `with` block name this command; tokens among its words are hidden."""
    shown = list(words)
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.startswith("-") and "token" in name:
            if value:
                shown[place] = f"{name}={HIDDEN}"
            elif place + 1 < len(words):
                shown[place + 1] = HIDDEN
    before = _command.set(shlex.join(shown))
    try:
        yield
    finally:
        _command.reset(before)


def current_command() -> str | None:
    """The command that runs, as it was typed; `None` for a call from Python."""
    return _command.get()
