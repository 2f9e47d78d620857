"""The package's public names are imported when they are asked for, and type checkers see the same."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hf_nullspace


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(hf_nullspace.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname: f".{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert set(typed) == set(hf_nullspace.__all__) <= set(dir(hf_nullspace))
    for name, module in typed.items():
        assert getattr(hf_nullspace, name) is getattr(importlib.import_module(module, "hf_nullspace"), name)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        hf_nullspace.no_such_name  # noqa: B018


def test_help_of_the_commands_imports_no_torch():
    script = """
import sys
from hf_nullspace.cli.main import main
main(["--version"])
main(["--help"])
print([name for name in ("numpy", "torch", "transformers") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
