"""The tests themselves: they mirror the wings, import no other test, and use public names only."""

import ast
import re
from collections.abc import Iterator

from wings import PACKAGE, REPOSITORY, WINGS


TESTS = REPOSITORY / "tests"
PATCHES = ("setattr", "delattr", "object")
FILES = sorted(TESTS.rglob("*.py"))


def imports_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """The modules that a text imports, each with the names that it takes from it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]


def is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def names_of_package(text: str) -> dict[str, str]:
    """Names in a text that stand for a module, class or function of the package, with what they stand for."""
    found = {}
    for module, names in imports_of(text):
        if module.split(".")[0] == PACKAGE.name:
            found |= {name: f"{module}.{name}" for name in names}
    return found


def private_names(text: str) -> list[str]:
    """
    Private names of the package that a text imports, reads from an imported name (`module._x`), or reaches through a
    string, as `monkeypatch.setattr` takes it.
    """
    known = names_of_package(text)
    found = [dotted for dotted in known.values() if is_private(dotted)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            if is_private(node.attr):
                found.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(rf"{PACKAGE.name}(\.\w+)+", node.value) and is_private(node.value):
                found.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATCHES:
            owner, name = [*node.args, None, None][:2]
            if isinstance(owner, ast.Name) and owner.id in known and isinstance(name, ast.Constant):
                if is_private(str(name.value)):
                    found.append(f"{owner.id}.{name.value}")
    return found


def test_no_test_imports_another():
    found = {
        str(path.relative_to(TESTS)): module
        for path in FILES
        for module, _ in imports_of(path.read_text(encoding="utf-8"))
        if module.split(".")[-1].startswith("test_") or module == "conftest"
    }
    assert found == {}


def test_tests_use_public_names():
    found = {str(path.relative_to(TESTS)): private_names(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: names for name, names in found.items() if names} == {}


def test_a_private_name_is_found():
    text = """
import pytest
from PACKAGE.noise import draws
from PACKAGE.noise.draws import _draw, Draws
def test_it(monkeypatch):
    monkeypatch.setattr("PACKAGE.noise.draws._step", None)
    monkeypatch.setattr(draws, "_size", 3)
    monkeypatch.setattr(draws, "size", 3)
    assert draws._scale and Draws.__name__ and pytest._version
""".replace("PACKAGE", PACKAGE.name)
    assert sorted(private_names(text)) == [
        "draws._scale",
        "draws._size",
        f"{PACKAGE.name}.noise.draws._draw",
        f"{PACKAGE.name}.noise.draws._step",
    ]


def test_the_tests_mirror_the_wings():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*WINGS, "support", "system", "recorded"}
    for wing in WINGS:
        assert any((TESTS / wing).glob("test_*.py")), wing


def test_ruff_is_one_version():
    (pinned,) = re.findall(r"^    ruff==(\S+)$", (REPOSITORY / "setup.cfg").read_text(), flags=re.MULTILINE)
    (hooked,) = re.findall(
        r"ruff-pre-commit\n    rev: v(\S+)", (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    )
    run = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert hooked == pinned
    assert '-e ".[quality]"' in run and "ruff==" not in run and "ruff>" not in run
