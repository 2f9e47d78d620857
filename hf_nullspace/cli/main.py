"""`hf-nullspace COMMAND`: the public functions from a shell."""

from __future__ import annotations

import difflib
import sys
from importlib.metadata import version

from accelerate import PartialState

from .command_line import run_command
from .evaluate import evaluate
from .finetune import main as run_finetune
from .hub import push, verify
from .probe import probe
from .synthesize import synthesize


def finetune(argv: list[str]) -> None:
    """Finetune a classifier on its own nullspace noise, and save it with the noise: `finetune [MODEL] [--train_dir DIR]`."""
    run_finetune(argv, "hf-nullspace finetune")
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends


COMMANDS = {command.__name__: command for command in (evaluate, finetune, probe, push, synthesize, verify)}


LISTED_COMMANDS = "\n".join(f"  {name:12}{command.__doc__}" for name, command in COMMANDS.items())


USAGE = f"""usage: hf-nullspace COMMAND [options]

{LISTED_COMMANDS}

hf-nullspace COMMAND --help lists its options. --version prints the version, and --debug the traceback of an error."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names; an error is one line and exit code 2, see [`run_command`]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = ["--debug"] if argv[:1] == ["--debug"] else []
    argv = argv[len(debug) :]
    if argv[:1] == ["--version"]:
        print(f"hf-nullspace {version('hf_nullspace')}")
    elif argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
    elif not argv:
        print(f"hf-nullspace: error: no command; one of {', '.join(COMMANDS)} (`--help` lists them)", file=sys.stderr)
        raise SystemExit(2)
    elif argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; the commands are {', '.join(COMMANDS)}"
        print(f"hf-nullspace: error: unknown command {argv[0]!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    else:
        run_command(f"hf-nullspace {argv[0]}", COMMANDS[argv[0]], [*argv[1:], *debug])
