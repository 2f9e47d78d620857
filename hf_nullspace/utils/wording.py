"""Translates settings in messages to the names that the user knows: config fields, trainer arguments or flags."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager


# `name` or `name=value`, as messages write settings.
SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")
# Values that are written differently on the command line.
FLAG_VALUES = {"resume_from_checkpoint": {"True": "last"}}


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A message in which every setting of `names` (old name -> new name) has its new name."""
    return SETTING.sub(lambda match: match[0].replace(match[1], names.get(match[1], match[1]), 1), text)


def as_flags(text: str, names: Collection[str]) -> str:
    """A message in which every setting of `names` is a flag: `max_steps=3` becomes `--max_steps 3`."""

    def flag(match: re.Match) -> str:
        name, value = match.groups()
        if name not in names:
            return match[0]
        value = (value or "").strip("'\"")
        value = FLAG_VALUES.get(name, {}).get(value, value)
        return f"`--{name} {value}`" if value else f"`--{name}`"

    return SETTING.sub(flag, text)


# How settings are named now: the innermost last.
_translations: list[Callable[[str], str]] = []


@contextmanager
def worded(translate: Callable[[str], str]) -> Iterator[None]:
    """Applies `translate` to this package's log messages and to errors that leave the block, inner blocks first."""
    make_record = logging.getLogRecordFactory()
    if not _translations:
        logging.setLogRecordFactory(lambda *args, **kwargs: _worded_record(make_record(*args, **kwargs)))
    _translations.append(translate)
    try:
        yield
    except Exception as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (translate(error.args[0]),)
        raise
    finally:
        _translations.pop()
        if not _translations:
            logging.setLogRecordFactory(make_record)


def _worded_record(record: logging.LogRecord) -> logging.LogRecord:
    if record.name.partition(".")[0] == __package__.partition(".")[0]:
        text = record.getMessage()
        for translate in reversed(_translations):
            text = translate(text)
        record.msg = text
        record.args = ()
    return record
