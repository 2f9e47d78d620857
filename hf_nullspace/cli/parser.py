"""The flags of a command: fields of dataclasses, a JSON file of them, and errors that name the nearest flag."""

from __future__ import annotations

import copy
import difflib
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from transformers import HfArgumentParser
from transformers.utils import logging

from ..utils.flags import FlagRule, check_seed
from .command_line import FLAG_NAMES
from .field_help import TRAINER_GROUP, field_descriptions, group_of
from .json_settings import read_settings


logger = logging.get_logger(__name__)

SEEDS = ("seed", "data_seed")


class CommandParser(HfArgumentParser):
    """
    [`HfArgumentParser`] with one-line errors and the nearest name for an unknown flag.

    Flags are not abbreviated. A field without help takes it from the `Args` of its dataclass' docstring. The values of
    `words` may be given without their flags, as the first words.

    `--help` shows the flags in groups: one for each dataclass, or those that its class attribute `argument_groups` names,
    and last the flags of [`~transformers.TrainingArguments`]. Its class attribute `removed_arguments` says of flags of
    earlier versions what to use instead. A field's `help` may be a function, called when the flags are read.

    Args:
        dataclass_types (`Sequence[type]`): The dataclasses.
        prog (`str`): Name of the command.
        words (`Sequence[str]`, *optional*): Fields whose values need no flag, in their order. A list takes all that
            are left, and comes last.
        defaults (`Callable[[set[str]], dict]`, *optional*): Called with the names of the fields that were given, it
            returns the defaults that differ from the dataclasses' own.
        rules (`Sequence[FlagRule]`, *optional*): Which flags do not fit together.
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        prog: str,
        words: Sequence[str] = (),
        defaults: Callable[[set[str]], dict[str, Any]] | None = None,
        rules: Sequence[FlagRule] = (),
    ):
        self.words = list(words)
        self.find_defaults = defaults
        self.rules = list(rules)
        self.hints = {name: hint for kind in dataclass_types for name, hint in typing.get_type_hints(kind).items()}
        self.removed = {
            name: sentence
            for kind in dataclass_types
            for name, sentence in getattr(kind, "removed_arguments", {}).items()
        }
        FLAG_NAMES.clear()
        FLAG_NAMES.update(self.hints)
        super().__init__(
            tuple(dataclass_types),
            prog=prog,
            allow_abbrev=False,
            epilog="A JSON file of these settings may come first; flags after it go before it. Errors are one line; "
            "`--debug` adds the traceback.",
        )
        self._action_groups.sort(key=lambda group: group.title == TRAINER_GROUP)  # the longest, and not our own: last
        release = f"hf_nullspace {version('hf_nullspace')}"
        self.add_argument("--version", action="version", version=release, help="Print the version of the package.")
        self._describe(dataclass_types, {} if defaults is None else defaults(set()))

    def _add_dataclass_arguments(self, dtype: type) -> None:
        """Overrides the parent, which supports only one group per dataclass."""
        hints = typing.get_type_hints(dtype)
        groups = {}
        for item in (item for item in fields(dtype) if item.init):
            title, description = group_of(dtype, item.name)
            if title not in groups:
                groups[title] = self.add_argument_group(title, description)
            item.type = hints[item.name]
            if callable(item.metadata.get("help")):
                item = copy.copy(item)
                text = item.metadata["help"]().replace("%", "%%")
                item.metadata = MappingProxyType({**item.metadata, "help": text})
            self._parse_dataclass_field(groups[title], item)

    def _describe(self, dataclass_types: Sequence[type], digits: dict[str, Any]) -> None:
        """Help from docstrings where a field has none, and the defaults that differ for the digits model."""
        described = {name: text for kind in dataclass_types for name, text in field_descriptions(kind).items()}
        for action in self._actions:
            if action.help is None and action.dest in described:
                action.help = described[action.dest].replace("%", "%%")
            if action.dest in digits:
                action.help += f" For the digits model: {digits[action.dest]}.".replace("%", "%%")

    def error(self, message: str) -> typing.NoReturn:
        print(f"{self.prog}: error: {' '.join(message.split())} (`--help` lists all flags)", file=sys.stderr)
        raise SystemExit(2)

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """
        The dataclasses that a command line fills.

        Raises:
            `SystemExit`: With code 2 and a line on stderr if a flag is unknown, missing or has a wrong value.
            `ValueError`: If a dataclass refuses its values, a seed is out of range, or flags do not fit together.
        """
        argv = list(argv)
        given = set()
        if argv and argv[0].endswith(".json"):
            values = self._read_file(argv.pop(0))
            given |= {name for name, value in values.items() if value != self.get_default(name)}
            self._set_defaults(values)
        argv = self._name_words(argv)
        actions = [self._flags[flag] for flag in map(_flag, argv) if flag in self._flags]
        for action in {action.dest: action for action in actions if actions.count(action) > 1}.values():
            if action.nargs == "+":  # argparse would drop all values but the last without a word
                self.error(f"--{action.dest} is given more than once; give it once, with all of its values")
            logger.warning(f"`--{action.dest}` is given more than once; the last one counts.")
        given |= {action.dest for action in actions}
        if self.find_defaults is not None and not {"-h", "--help"} & set(argv):  # help shows the general ones
            own = {name: value for name, value in self.find_defaults(given).items() if name not in given}
            self._set_defaults(own)
        _, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(self._explain(unknown))
        parsed = self.parse_args_into_dataclasses(argv)
        values = {name: value for part in parsed for name, value in vars(part).items()}
        for name in SEEDS:
            check_seed(name, values.get(name))
        for rule in self.rules:
            rule.check(given, values)
        return parsed

    @property
    def _flags(self) -> dict[str, Any]:
        return self._option_string_actions

    def _read_file(self, path: str) -> dict[str, Any]:
        actions = {action.dest: action for action in self._actions}
        hints = {name: hint for name, hint in self.hints.items() if name in actions}
        try:
            return read_settings(path, hints, {name: actions[name].choices for name in hints}, self.removed)
        except ValueError as error:
            self.error(str(error))

    def _set_defaults(self, values: dict[str, Any]) -> None:
        self.set_defaults(**values)
        for action in self._actions:
            action.required = action.required and action.dest not in values

    def _name_words(self, argv: list[str]) -> list[str]:
        """The command line with the flags of `words` written out."""
        count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
        first = argv[:count]
        rest = argv[count:]
        named = []
        flags = set(map(_flag, rest))
        for name in self.words:
            action = self._flags[f"--{name}"]
            size = len(first) if action.nargs == "+" else 1
            taken = first[:size]
            first = first[size:]
            if taken and flags & set(action.option_strings):
                self.error(f"{' '.join(taken)!r} and --{name} are the same setting; give one of them")
            named += [f"--{name}", *taken] if taken else []
        return [*first, *named, *rest]  # the caller reports words that are left over

    def _explain(self, unknown: list[str]) -> str:
        """The error for words that no flag accepts."""
        flags = [word for word in unknown if word.startswith("-")]
        if not flags:
            first = f"; only {', '.join(self.words)} may be given without a flag, first" if self.words else ""
            return f"unexpected {' '.join(map(repr, unknown))}, which no flag takes{first}"
        return "; ".join(self._suggest(flag) for flag in map(_flag, flags))

    def _suggest(self, flag: str) -> str:
        names = [name[2:] for name in self._flags if name.startswith("--") and "-" not in name[2:]]
        names = [name for name in names if name not in ("help", "version")]  # never what was meant
        word = flag.lstrip("-").replace("-", "_")
        if word in self.removed:
            return self.removed[word]
        near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
        guess = near or [name for name in names if name.startswith(word)][:1]
        return f"unknown flag {flag}" + (f", did you mean --{guess[0]}?" if guess else "")


def _flag(word: str) -> str:
    return word.partition("=")[0]
