"""An attack from one module outside the package, in profiles, reports, comparisons, repetitions and the command line."""

import json

import pytest
import torch
from added import Evaluations, added, help_text

from hf_nullspace.data.image_tables import read_folder
from hf_nullspace.models.loading import ModelArguments, load_model
from hf_nullspace.robustness import ATTACKS, Attack, Column, Profile, compare_reports, register_attack
from hf_nullspace.robustness.packages import check_packages
from hf_nullspace.robustness.repetition import Repetition
from hf_nullspace.robustness.shards import passes_per_image
from hf_nullspace.robustness.sources import image_source


COLUMNS = [
    {"name": "dim", "attack": "darken", "settings": {"epsilon": 0.8, "steps": 2}},
    {"name": "fgsm", "attack": "fgsm"},
    {"name": "clean"},
]


@pytest.fixture
def module():
    with added("added_attack", ATTACKS) as found:
        yield found


@pytest.fixture
def report(module, photos, tmp_path):
    return Evaluations(photos, tmp_path, COLUMNS).run()


def test_it_is_evaluated_and_reported(report, photos, tmp_path):
    row, outcomes = report.columns["dim"], report.outcomes["dim"]
    assert (
        row["mean_dimmed"] == pytest.approx(outcomes.others["dimmed"].mean().item(), rel=1e-6) and row["count"] == 32
    )
    assert outcomes.linf.max() <= 0.8 + 1e-6 and torch.equal(outcomes.others["dimmed"], outcomes.linf)
    assert not outcomes.others["has_zero_gradients"].any() and "warnings" not in row
    assert row["success_rate"] == pytest.approx(100 * (1 - row["correct"] / report.columns["clean"]["correct"]))
    values = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert values["columns"]["dim"]["mean_dimmed"] == row["mean_dimmed"]
    text = report.to_markdown()
    assert "mean dimming" in text and f"{row['mean_dimmed']:.4f} |" in text and "epsilon 0.8, steps 2" in text


def test_it_is_resumed(report, photos, tmp_path):
    again, measured = Evaluations(photos, tmp_path, COLUMNS).run_interrupted()
    assert again == report and measured == {"clean"}
    for name, values in report.outcomes["dim"].named.items():
        assert torch.equal(again.outcomes["dim"].named[name], values)


def test_reports_are_compared_and_images_repeated(report, photos):
    other = type(report)(**{**vars(report), "model_name": "other"})
    (line,) = [line for line in compare_reports([report, other]).splitlines() if line.startswith("| dim |")]
    assert line.endswith("+0.00 [+0.00, +0.00] |")
    model, processor = load_model(ModelArguments(str(photos / "model")))
    source = image_source(read_folder(str(photos / "images"), "images"), model, "evaluation")
    ((name, again),) = Repetition(model, processor, source, report.profile, 4).run({"dim": [3, 8, 20]})
    assert name == "dim"
    assert torch.equal(again.others["dimmed"], report.outcomes["dim"].others["dimmed"][[3, 8, 20]])


def test_its_time_its_packages_and_its_help(module, capsys, monkeypatch):
    assert [
        passes_per_image(Column("dim", attack="darken", settings=settings)) for settings in ({}, {"steps": 9})
    ] == [
        14,
        29,
    ]
    text = help_text(capsys)
    assert "darken: Dims pictures until they are misclassified. By default in the Linf ball of radius 0.5." in text
    monkeypatch.setattr("hf_nullspace.robustness.packages.find_spec", lambda package: None)
    with pytest.raises(ImportError, match="needs PIL for dim: `pip install 'pillow'`"):
        check_packages(Profile("mine", (Column("dim", attack="darken"),)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"stepps": 3},
            "Column 'dim' has the unknown attack settings ['stepps']; 'darken' takes ['epsilon', 'steps']",
        ),
        ({"epsilon": 2}, "so it is 1 at most, but got 2"),
        ({"steps": 0}, "Column 'dim' cannot be measured: `steps` of the dimming must be 1 or more, but got 0"),
    ],
)
def test_its_errors(module, photos, tmp_path, capsys, settings, message):
    columns = [{"name": "dim", "attack": "darken", "settings": settings}]
    assert message in Evaluations(photos, tmp_path, columns).error(capsys)


def test_too_few_classes_are_known_first(photos, tmp_path, capsys):
    with added("added_attack", ATTACKS) as module:
        del ATTACKS["darken"]
        register_attack(Attack("darken", module.darken, "Dims.", reports={"dimmed": "mean dimming"}, min_classes=3))
        error = Evaluations(photos, tmp_path, COLUMNS).error(capsys)
    assert (
        "Column 'dim' cannot be measured: The attack 'darken' needs at least 3 classes, but the model has 2" in error
    )


def test_records_that_do_not_fit_are_refused(module):
    with pytest.raises(ValueError, match="There is already an attack 'darken'"):
        register_attack(ATTACKS["darken"])
    with pytest.raises(ValueError, match="'bare' must take model, pixels and labels first.*takes \\['images'\\]"):
        register_attack(Attack("bare", lambda images: images, "Nothing."))
    with pytest.raises(ValueError, match=r"cannot report \['l2'\]"):
        register_attack(Attack("norms", module.darken, "Dims.", reports={"l2": "mean"}))


def test_without_its_module_it_is_unknown(photos, tmp_path, capsys):
    error = Evaluations(photos, tmp_path, COLUMNS).error(capsys)
    assert "Column 'dim' has the unknown attack 'darken'; expected one of ['autoattack'" in error
