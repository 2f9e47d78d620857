"""A way of finetuning comes from one module outside the package: scripts train by it, and `compare` has it as a row."""

import importlib
import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from transformers import Trainer

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer
from hf_nullspace.baselines import PLAIN, WAYS, Way, register_way
from hf_nullspace.cli.main import main
from hf_nullspace.comparison.runs import read_run


QUICK = "--max_steps 2 --per_device_train_batch_size 8 --report_to none --use_cpu --disable_tqdm true"
QUICK += " --num_seeds 1 --train_val_split 0.25 --profile preview"


@pytest.fixture
def added():
    """The module, imported anew; its way is unknown again after the test."""
    before = dict(WAYS)
    sys.modules.pop("added_way", None)
    yield importlib.import_module("added_way")
    WAYS.clear()
    WAYS.update(before)


def test_a_script_trains_by_it(added, make_vit, examples, tmp_path):
    way, weights = WAYS["flipped"], {}
    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none"}
    settings |= {"save_strategy": "no", "disable_tqdm": True}
    for name, each, changes in (
        ("flipped", way, {}),
        ("all", way, {"flipped_images": 8}),
        ("plain", PLAIN, {}),
    ):
        args = each.arguments(str(tmp_path / name), **settings, **changes)
        trainer = each.trainer_class(make_vit(), args, NullspaceDataCollator(), examples)
        trainer.train()
        weights[name] = trainer.model.classifier.weight.detach()
    assert not torch.equal(weights["flipped"], weights["plain"])
    assert not torch.equal(weights["flipped"], weights["all"])


@pytest.mark.slow
def test_it_is_a_row_of_a_comparison(added, photos, tmp_path, capsys):
    (tmp_path / "variants.json").write_text(json.dumps({"flipped-8": {"method": "flipped", "flipped_images": 8}}))
    flags = f"{QUICK} --model_name_or_path {photos}/model --train_dir {photos}/images --methods plain flipped"
    main(["compare", *flags.split(), "--variants", f"{tmp_path}/variants.json", "--output_dir", f"{tmp_path}/out"])
    out = capsys.readouterr().out
    assert "| flipped - plain |" in out and "- flipped-8: flipped from base with `flipped_images` 8" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows"]["flipped"] == {
        "name": "flipped",
        "method": "flipped",
        "start": "base",
        "arguments": {},
        "kind": "method",
    }
    assert results["training"]["flipped-equal-steps"]["steps"] == 2
    run = read_run(tmp_path / "out" / "runs" / "flipped-8-42")
    assert run["settings"]["arguments"]["flipped_images"] == 8


def test_its_help_and_its_errors_are_those_of_any_way(added, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    assert "; flipped (1): some of the images upside down." in " ".join(capsys.readouterr().out.split())
    path = tmp_path / "variants.json"
    for variant, message in (
        (
            {"method": "flipped", "flipped_images": 0},
            "The variant 'x': `flipped_images` must be at least 1, but got 0",
        ),
        (
            {"method": "flipped", "flipped": 1},
            r"unknown training arguments \['flipped'\]. .* FlippedTrainingArguments",
        ),
        (
            {"method": "flipped", "noise_weight": 1.0},
            "sets .'noise_weight'., which the comparison or the way 'flipped'",
        ),
    ):
        path.write_text(json.dumps({"x": variant}))
        with pytest.raises(SystemExit, match="2"):
            main(["compare", "--variants", str(path), "--output_dir", str(tmp_path / "out")])
        assert re.search(f"^hf-nullspace compare: error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"trainer_class": Trainer},
            TypeError,
            "`trainer_class` of the way 'x' must be derived from `NullspaceTrainer`",
        ),
        ({"args_class": dict}, TypeError, "`args_class` of the way 'x' must be derived from `NullspaceTrainingArg"),
        ({"cost": 0}, ValueError, "`cost` of the way 'x' must be a positive number, but got 0"),
        ({"fixed_arguments": {"flip": 1}}, ValueError, r"fixes \['flip'\], which are no arguments of NullspaceTr"),
    ],
)
def test_a_record_that_cannot_work_is_refused(changes, error, message):
    values = {"name": "x", "summary": "nothing", "cost": 1.0, "trainer_class": NullspaceTrainer}
    with pytest.raises(error, match=message):
        Way(**{**values, **changes})


def test_names_are_given_once_and_fixed_arguments_are_fixed(tmp_path):
    with pytest.raises(ValueError, match="There is already a way of finetuning 'plain'"):
        register_way(PLAIN)
    with pytest.raises(ValueError, match="name of a new way of finetuning must be letters, digits, .*'a/b'"):
        register_way(replace(PLAIN, name="a/b"))
    with pytest.raises(ValueError, match="`noise_weight` is 0.0 in the way 'plain', but got 1.0"):
        PLAIN.arguments(str(tmp_path), noise_weight=1.0)
