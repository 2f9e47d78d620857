"""The wings of the package, and its modules."""

from pathlib import Path

import hf_nullspace


REPOSITORY = Path(__file__).parents[2]
PACKAGE = Path(hf_nullspace.__file__).parent
# From the highest to the lowest: a module imports from its own wing and from those below it.
WINGS = [
    "cli",
    "comparison",
    "baselines",
    "training",
    "hub",
    "probing",
    "robustness",
    "noise",
    "exact_nullspace",
    "models",
    "data",
    "utils",
]


def module_names() -> dict[str, Path]:
    """Dotted name below the package -> file, without the package's own `__init__`."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            names[".".join(parts)] = path
    return names
