"""What all commands and examples share: flags from dataclasses, a JSON file of them, and errors of one line."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from ..utils.flags import FlagRule
from ..utils.wording import as_flags, worded


# What a user can put right; any other kind is named before its message, which alone may say little.
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
        with worded(lambda text: as_flags(text, FLAG_NAMES)):
            command(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has gone, as `| head` does
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
    """The message of an error without line breaks; with the kind of error where the message is not for users."""
    message = " ".join(str(error).split())
    if isinstance(error, EXPECTED_ERRORS) and message:
        return message
    kind = type(error).__name__
    return (f"{kind}: {message}" if message else kind) + " (`--debug` shows where)"


class CommandParser(HfArgumentParser):
    """
    [`HfArgumentParser`] with one-line errors and the nearest name for an unknown flag.

    Flags are not abbreviated. A field without help takes it from the `Args` of its dataclass' docstring. The values of
    `words` may be given without their flags, as the first words.

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
        self.words, self.find_defaults, self.rules = list(words), defaults, list(rules)
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
        release = f"hf_nullspace {version('hf_nullspace')}"
        self.add_argument("--version", action="version", version=release, help="Print the version of the package.")
        digits = {} if defaults is None else defaults(set())
        described = {name: text for kind in dataclass_types for name, text in field_descriptions(kind).items()}
        for action in self._actions:
            if action.help is None and action.dest in described:
                action.help = described[action.dest].replace("%", "%%")
            if action.dest in digits:
                action.help += f" For the digits model: {digits[action.dest]}.".replace("%", "%%")

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (`--help` lists all flags)\n")

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """
        The dataclasses that a command line fills.

        Raises:
            `SystemExit`: With code 2 and a line on stderr if a flag is unknown, missing or has a wrong value.
            `ValueError`: If a dataclass refuses its values, or flags do not fit together.
        """
        argv, given = list(argv), set()
        if argv and argv[0].endswith(".json"):
            values = self._read_json(argv.pop(0))
            given |= {name for name, value in values.items() if value != self.get_default(name)}
            self._set_defaults(values)
        argv = self._name_words(argv)
        given |= {self._flags[flag].dest for flag in map(_flag, argv) if flag in self._flags}
        if self.find_defaults is not None and not {"-h", "--help"} & set(argv):  # help shows the general ones
            own = {name: value for name, value in self.find_defaults(given).items() if name not in given}
            self._set_defaults(own)
        _, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(self._explain(unknown))
        parsed = self.parse_args_into_dataclasses(argv)
        values = {name: value for part in parsed for name, value in vars(part).items()}
        for rule in self.rules:
            rule.check(given, values)
        return parsed

    @property
    def _flags(self) -> dict[str, Any]:
        return self._option_string_actions

    def _set_defaults(self, values: dict[str, Any]) -> None:
        self.set_defaults(**values)
        for action in self._actions:
            action.required = action.required and action.dest not in values

    def _name_words(self, argv: list[str]) -> list[str]:
        """The command line with the flags of `words` written out."""
        count = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
        first, rest, named = argv[:count], argv[count:], []
        flags = set(map(_flag, rest))
        for name in self.words:
            action = self._flags[f"--{name}"]
            size = len(first) if action.nargs == "+" else 1
            taken, first = first[:size], first[size:]
            if taken and flags & set(action.option_strings):
                self.error(f"{' '.join(taken)!r} and --{name} are the same setting; give one of them")
            named += [f"--{name}", *taken] if taken else []
        return [*first, *named, *rest]  # words that are left over are named by the caller

    def _explain(self, unknown: list[str]) -> str:
        """What to say of words that no flag takes."""
        flags = [word for word in unknown if word.startswith("-")]
        if not flags:
            first = f"; only {', '.join(self.words)} may be given without a flag, first" if self.words else ""
            return f"unexpected {' '.join(map(repr, unknown))}, which no flag takes{first}"
        return "; ".join(self._suggest(flag) for flag in map(_flag, flags))

    def _suggest(self, flag: str) -> str:
        names = [name[2:] for name in self._flags if name.startswith("--") and "-" not in name[2:]]
        names = [name for name in names if name not in ("help", "version")]  # nobody meant these
        word = flag.lstrip("-").replace("-", "_")
        if word in self.removed:
            return self.removed[word]
        near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
        guess = near or [name for name in names if name.startswith(word)][:1]
        return f"unknown flag {flag}" + (f", did you mean --{guess[0]}?" if guess else "")

    def _read_json(self, path: str) -> dict[str, Any]:
        """The settings in a JSON file, each checked as a flag would be."""
        try:
            values = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.error(f"there is no file {path!r}")
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"the file {path!r} cannot be read: {error}")
        except json.JSONDecodeError as error:
            self.error(f"the file {path!r} is not JSON: {error}")
        if not isinstance(values, dict):
            self.error(f"the file {path!r} must hold one object of settings by name, but holds a {_kind(values)}")
        actions = {action.dest: action for action in self._actions}
        for name, value in values.items():
            if name in self.removed and name not in self.hints:
                self.error(f"the file {path!r} has an old setting: {self.removed[name]}")
            if name not in self.hints or name not in actions:
                known = difflib.get_close_matches(name, self.hints, n=1, cutoff=0.7)
                self.error(
                    f"the file {path!r} has an unknown setting {name!r}"
                    + (f", did you mean {known[0]!r}?" if known else "")
                )
            hint, choices = self.hints[name], actions[name].choices
            if not _fits(value, hint):
                self.error(
                    f"{name!r} in the file {path!r} must be {_describe(hint)}, but is the {_kind(value)} "
                    f"{json.dumps(value)}"
                )
            if choices and value is not None and value not in choices:
                self.error(f"{name!r} in the file {path!r} must be one of {list(choices)}, but is {value!r}")
        return values


@functools.cache
def field_descriptions(kind: type) -> dict[str, str]:
    """What the `Args` of a dataclass' docstring say of each field, in one line."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    described: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        entry = re.match(r"([\w, ]+) \(.*?\):\s*(.*)$", line.strip()) if indent == 4 else None
        if entry:
            names = entry.group(1).split(", ")
            described |= {name: [entry.group(2)] for name in names}
        elif names and line.strip():
            for name in names:
                described[name].append(line.strip())
    plain = {name: " ".join(lines).replace("[`", "`").replace("`]", "`").strip() for name, lines in described.items()}
    return {name: text for name, text in plain.items() if text}


def _flag(word: str) -> str:
    return word.partition("=")[0]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type that a field is annotated with."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_fits(part, typing.get_args(hint)[0]) for part in value)
    if isinstance(hint, type) and issubclass(hint, str):  # enumerations of text, too
        return isinstance(value, str)
    base = origin or hint
    return isinstance(value, base) if isinstance(base, type) and base in (bool, dict, list) else True


def _describe(hint: Any) -> str:
    words = {float: "a number", int: "an integer", str: "text", bool: "true or false", types.NoneType: "null"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list or hint is list:
        return "a list"
    return "an object" if (typing.get_origin(hint) or hint) is dict else words.get(hint, str(hint))


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "null")
