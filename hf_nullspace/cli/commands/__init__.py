"""
The commands of the package, one per module. The module's file name is the command's name, the first line of its
docstring is the summary, and its `run(argv)` runs it. A module is imported only when its command runs.
"""

from __future__ import annotations

import pkgutil
import pydoc
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..command import Command, register_command


def _run(module: str, argv: list[str]) -> Any:
    return import_module(module).run(argv)


for _info in pkgutil.iter_modules(__path__):
    _module = f"{__name__}.{_info.name}"
    register_command(Command(_info.name, pydoc.synopsis(find_spec(_module).origin) or "", partial(_run, _module)))
