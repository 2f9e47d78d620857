"""
The commands of the package: each module here is one. It is called as its file, its summary is the first line of its
docstring, and its `run(argv)` runs it; none is imported before it runs.
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
