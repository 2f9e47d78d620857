"""Imports point down the wings, run in no circle, and importing the package is light."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from wings import PACKAGE, WINGS, module_names


HEAVY = ("datasets", "evaluate", "matplotlib", "scipy", "sklearn")
MODULES = module_names()


def imported_modules(name: str) -> set[str]:
    """Modules of the package that `name` imports anywhere, its own `__init__` as the empty name."""
    package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
            targets = [target[1:] for target in targets]
        elif isinstance(node, ast.ImportFrom):
            source = (node.module or "").split(".") if node.module else []
            if node.level:
                source = package[: len(package) - node.level + 1] + source
            elif source[0] == PACKAGE.name:
                source = source[1:]
            else:
                continue
            targets = [
                [*source, alias.name] if ".".join([*source, alias.name]) in MODULES else source for alias in node.names
            ]
        else:
            continue
        found |= {".".join(target) for target in targets}
    return found


def wing_of(name: str) -> str:
    return name.split(".")[0]


def test_the_package_is_made_of_wings():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__.py", "py.typed", *WINGS}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_the_wings(name):
    imported = imported_modules(name)
    assert "" not in imported, "a module imports the package itself, which imports everything"
    assert imported <= set(MODULES)
    place = WINGS.index(wing_of(name))
    assert [other for other in sorted(imported) if WINGS.index(wing_of(other)) < place] == []


def test_imports_run_in_no_circle():
    graph = {name: imported_modules(name) for name in MODULES}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)
    assert "noise.synthesis" in graph["training.noise_rounds"] and "hub.manifest" in graph["training.card"]


def test_package_import_is_light():
    script = f"""
import json, os, sys, warnings
from transformers import AutoImageProcessor, Trainer
modules, environment, filters = set(sys.modules), dict(os.environ), list(warnings.filters)
import hf_nullspace
print(json.dumps({{
    "heavy": [name for name in {HEAVY!r} if name in sys.modules and name not in modules],
    "environment": dict(os.environ) == environment,
    "filters": warnings.filters == filters,
    "loaded": "hf_nullspace.training.trainer" in sys.modules,
    "trainer": issubclass(hf_nullspace.NullspaceTrainer, Trainer),
}}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "heavy": [],
        "environment": True,
        "filters": True,
        "loaded": False,
        "trainer": True,
    }
