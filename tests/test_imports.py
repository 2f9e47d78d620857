"""Imports point downward through the floor plan, run in no circle, and importing the package is light."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_nullspace


ROOT = Path(hf_nullspace.__file__).parent
FLOORS = {
    5: ["cli", "evaluate_command", "finetune_command"],
    4: [
        "trainer",
        "adversarial_trainer",
        "baselines",
        "training_args",
        "noise_schedule",
        "noise_forward",
        "hardest_noise",
        "batch_parts",
        "checkpointing",
        "checkpointing_trainer",
        "run_identity",
        "data_position",
        "weight_average",
        "noisy_pictures",
        "evaluation_loss",
        "soft_labels",
        "training_checks",
        "sharding",
        "training_images",
        "run_folder",
    ],
    3: [
        "data_collator",
        "data",
        "digits",
        "command_line",
        "image_folders",
        "image_tables",
        "loading",
        "trained_head",
        "method_rows",
        "method_runs",
        "probe_report",
        "image_size",
        "robustness",
        "hub",
        "plotting",
        "adversarial_examples",
    ],
    2: [
        "synthesis",
        "probing",
        "noise_controls",
        "noise_search",
        "encoder_probing",
        "encoder_search",
        "encoder_experiments",
        "exact_noise",
    ],
    1: [
        "nullspace",
        "patch_matrix",
        "patch_grid",
        "box_filling",
        "pixel_box",
        "pictures",
        "preprocessing",
        "noise",
        "injection",
        "certificate",
        "frozen",
        "sensitivity",
        "image_noise",
        "checkpoint_files",
        "full_precision",
    ],
    0: [
        "model_inputs",
        "adapter_folders",
        "patch_embedding",
        "configuration",
        "confidence",
        "objectives",
        "randomness",
        "uploading",
        "escaping",
        "strict_json",
        "wording",
        "phases",
    ],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
HEAVY = ("datasets", "evaluate", "matplotlib", "scipy", "sklearn")


def module_names() -> dict[str, Path]:
    """Dotted name below the package -> file, without the package's own `__init__`."""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            names[".".join(parts)] = path
    return names


MODULES = module_names()


def imported_modules(name: str) -> set[str]:
    """Modules of the package that `name` imports anywhere, its own `__init__` as the empty name."""
    package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == ROOT.name]
            targets = [target[1:] for target in targets]
        elif isinstance(node, ast.ImportFrom):
            source = (node.module or "").split(".") if node.module else []
            if node.level:
                source = package[: len(package) - node.level + 1] + source
            elif source[0] == ROOT.name:
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


def test_every_module_has_a_floor():
    assert [name for name in MODULES if name.split(".")[0] not in FLOOR_OF] == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name):
    floor = FLOOR_OF[name.split(".")[0]]
    imported = imported_modules(name)
    assert "" not in imported, "a module imports the package itself, which imports everything"
    assert imported <= set(MODULES)
    assert [other for other in sorted(imported) if FLOOR_OF[other.split(".")[0]] > floor] == []


def test_imports_run_in_no_circle():
    graph = {name: imported_modules(name) for name in MODULES}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)
    assert {"synthesis", "hub"} <= graph["trainer"]


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
    "loaded": "hf_nullspace.trainer" in sys.modules,
}}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "heavy": [],
        "environment": True,
        "filters": True,
        "loaded": True,
    }
