"""`hf-nullspace COMMAND`: the public functions from a shell."""

from __future__ import annotations

import difflib
import sys
from importlib.metadata import entry_points, version

from . import commands  # noqa: F401 (registers those of the package)
from .command import COMMANDS
from .command_line import run_command


# Entry points of other packages: modules that register a command, a noise method, a way of finetuning and so on.
PLUGINS = "hf_nullspace.plugins"


def main(argv: list[str] | None = None) -> None:
    """Runs the command named by the first argument. An error is one line and exit code 2, see [`run_command`]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = ["--debug"] if argv[:1] == ["--debug"] else []
    argv = argv[len(debug) :]
    if argv[:1] == ["--version"]:
        print(f"hf-nullspace {version('hf_nullspace')}")
        return
    run_command("hf-nullspace", lambda _: load_plugins(), debug)
    if argv[:1] in (["-h"], ["--help"]):
        print(usage())
    elif not argv:
        fail(f"no command; one of {', '.join(COMMANDS)} (`--help` lists them)")
    elif argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; the commands are {', '.join(COMMANDS)}"
        fail(f"unknown command {argv[0]!r}{hint}")
    else:
        run_command(f"hf-nullspace {argv[0]}", COMMANDS[argv[0]].run, [*argv[1:], *debug])


def load_plugins() -> None:
    """
    Imports the modules that installed packages name as entry points of the group `hf_nullspace.plugins`.

    Raises:
        `ImportError`: If one cannot be imported; the package is named.
    """
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:
            raise ImportError(
                f"The plugin {plugin.name!r} ({plugin.value}) cannot be imported: {type(error).__name__}: {error}. "
                "Mend or uninstall the package that brings it."
            ) from error


def usage() -> str:
    """What `--help` prints."""
    listed = "\n".join(f"  {command.name:12}{command.summary}" for command in COMMANDS.values())
    return f"""usage: hf-nullspace COMMAND [options]

{listed}

hf-nullspace COMMAND --help lists its options. --version prints the version, and --debug the traceback of an error."""


def fail(message: str) -> None:
    """Prints an error of the command line itself and exits with code 2."""
    print(f"hf-nullspace: error: {message}", file=sys.stderr)
    raise SystemExit(2)
