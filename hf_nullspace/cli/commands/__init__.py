"""
The commands of the package: each module here is one. It is called as its file, its summary is the first line of its
docstring, and its `run(argv)` runs it; none is imported before it runs.
"""

from __future__ import annotations

import pkgutil
import pydoc
from functools import partial
from importlib import import_module
from typing import Any

from ..command import Command, register_command


def _run(module: str, argv: list[str]) -> Any:
    return import_module(module).run(argv)


for _finder, _name, _ in pkgutil.iter_modules(__path__):
    _path = _finder.find_spec(_name).origin
    register_command(Command(_name, pydoc.synopsis(_path) or "", partial(_run, f"{__name__}.{_name}")))
