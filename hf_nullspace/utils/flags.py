"""Checks of command-line flags: ranges, paths, and flags that exclude each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FlagRule:
    """
    What a flag does not fit together with.

    Args:
        flag (`str`): The flag, without dashes.
        reason (`str`): Why, as the end of a sentence.
        needs (`tuple[str, ...]`, *optional*): Without one of these the flag would do nothing.
        excludes (`tuple[str, ...]`, *optional*): With one of these it would.
        only_with (`tuple[str, tuple]`, *optional*): Another flag, and the values of it that the flag is for.
    """

    flag: str
    reason: str
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    only_with: tuple[str, tuple[Any, ...]] | None = None

    def check(self, given: set[str], values: dict[str, Any]) -> None:
        """
        Args:
            given (`set[str]`): The flags that were given.
            values (`dict[str, Any]`): The value of every flag.

        Raises:
            `ValueError`: If the flag was given and does not fit together with the others.
        """
        if self.flag not in given:
            return
        for other in self.excludes:
            if other in given:
                raise ValueError(f"`--{self.flag}` and `--{other}` do not fit together: {self.reason}.")
        if self.needs and not given & set(self.needs):
            needed = " or ".join(f"`--{name}`" for name in self.needs)
            raise ValueError(f"`--{self.flag}` does nothing without {needed}: {self.reason}.")
        if self.only_with is not None and values[self.only_with[0]] not in self.only_with[1]:
            name = self.only_with[0]
            raise ValueError(f"`--{self.flag}` does nothing with `--{name} {values[name]}`: {self.reason}.")


def expand_paths(settings: Any, *names: str) -> None:
    """Replaces a leading `~` in fields that hold a path or a list of them; a shell leaves it in `--flag=~/folder`."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, str):
            setattr(settings, name, os.path.expanduser(value))
        elif isinstance(value, list):
            setattr(settings, name, [os.path.expanduser(path) for path in value])


def check_at_least(settings: Any, **bounds: int) -> None:
    """
    Raises:
        `ValueError`: If a field is set to less than its bound; the message names the flag.
    """
    for name, bound in bounds.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"`--{name}` must be at least {bound}, but got {value!r}.")


def check_seed(name: str, value: int | None) -> None:
    """
    Raises:
        `ValueError`: If a seed is one that NumPy's generators do not take; the message names the flag.
    """
    if value is not None and not 0 <= value < 2**32:
        raise ValueError(f"`--{name}` must lie between 0 and {2**32 - 1}, but got {value!r}.")


def check_output_dir(path: str, **sources: str | None) -> None:
    """
    Args:
        path (`str`): Where results go.
        sources: By flag the folders that pictures are read from; what is none here is left out.

    Raises:
        `ValueError`: If results cannot be written into that folder: it, or what it would lie in, is a file or protected,
            or it lies in a folder of pictures, where figures would be taken for pictures the next time.
    """
    own = Path(path).resolve()
    for flag, source in sources.items():
        if source is not None and Path(source).is_dir() and Path(source).resolve() in (own, *own.parents):
            raise ValueError(
                f"`--output_dir {path}` lies in the pictures of `--{flag} {source}`, among which its files would be. "
                "Name a folder outside."
            )
    there = next(part for part in (Path(path).absolute(), *Path(path).absolute().parents) if os.path.lexists(part))
    if not there.is_dir():
        raise ValueError(f"`--output_dir` takes a folder, but {str(there)!r} is a file. Name another one.")
    if not os.access(there, os.W_OK):
        raise ValueError(f"`--output_dir {path}` cannot be written: {str(there)!r} is protected. Name another one.")


def dataset_locations(values: Sequence[str]) -> dict[str, str]:
    """
    The value of `--datasets`: folder or Hub id by name.

    Raises:
        `ValueError`: If one is not NAME=FOLDER_OR_HUB_ID.
    """
    unnamed = [value for value in values if "=" not in value]
    if unnamed:
        raise ValueError(f"`--datasets` takes NAME=FOLDER_OR_HUB_ID, but got {unnamed}.")
    return dict(value.split("=", 1) for value in values)
