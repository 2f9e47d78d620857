"""Evaluation datasets whose classes are not ImageNet's, from one module outside the package, by every way in."""

import json
import shutil

import numpy as np
import pytest
from added import Evaluations, added, help_text
from PIL import Image

from hf_nullspace.robustness import DATASETS, DatasetSpec, NamedClasses, load_robustness_dataset, register_dataset


COLUMNS = [
    {"name": "shades", "dataset": "shades"},
    {"name": "dimmed", "dataset": "shades", "corruption": "contrast", "severity": 5},
    {"name": "mist_1", "dataset": "shades-c", "corruption": "mist", "severity": 1},
    {"name": "mist_2", "dataset": "shades-c", "corruption": "mist", "severity": 2},
    {"name": "fgsm", "dataset": "found", "attack": "fgsm"},
    {"name": "clean"},
]


@pytest.fixture
def module():
    with added("added_dataset", DATASETS) as found:
        yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The datasets as folders; the classes of the first have other case and order than the model's."""
    root = tmp_path_factory.mktemp("datasets")
    for place in ("shades", "shades-c/mist/1", "shades-c/mist/2", "found"):
        for name, level in (("Light", 200), ("dark", 50)):
            folder = root / place / name
            folder.mkdir(parents=True)
            for index in range(5):
                picture = np.full((20, 24, 3), level + index, dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{index}.png")
    return root


@pytest.fixture
def evaluations(module, photos, folders, tmp_path):
    named = [f"{name}={folders / name}" for name in ("shades", "shades-c", "found")]
    return Evaluations(photos, tmp_path, COLUMNS, ["--datasets", *named])


def test_they_are_evaluated_reported_and_resumed(evaluations, tmp_path):
    report = evaluations.run()
    assert report.not_measured == {}
    assert {name: row["count"] for name, row in report.columns.items()} == {
        **dict.fromkeys(("shades", "dimmed", "mist_1", "mist_2", "fgsm"), 10),
        "clean": 32,
    }
    shades = report.outcomes["shades"]  # class "dark" is the model's logit 0, "light" its logit 1
    labels = [1] * 5 + [0] * 5
    assert shades.correct.tolist() == [
        int(guess) == label for guess, label in zip(shades.prediction, labels, strict=True)
    ]
    assert report.columns["mist_1"] == report.columns["mist_2"] == {**report.columns["shades"]}
    assert list(report.summary) == ["shades", "corruptions", "shades-c", "fgsm", "clean"]
    values = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert set(values["run"]["datasets"]) == {"shades", "shades-c/mist/1", "shades-c/mist/2", "found", "evaluation"}
    text = report.to_markdown()
    assert "## Shades-C" in text and "| mist | " in text and "## Corruptions, C-style and generated here" in text
    again, measured = evaluations.run_interrupted()
    assert again == report and measured == {"clean"}


def test_a_dataset_without_a_folder_is_said_to_be_not_measured(module, photos, tmp_path):
    report = Evaluations(photos, tmp_path, [COLUMNS[0], COLUMNS[-1]]).run()
    assert report.not_measured == {"shades": "no location of the dataset 'shades' was given"}


def test_classes_that_compete_by_its_rule(module, folders):
    more = {0: "grey", 1: "dark", 2: "light"}
    loaded = load_robustness_dataset("shades", folders / "shades", id2label=more)
    assert loaded.class_indices == (1, 2) and loaded.dataset["label"][:] == [2] * 5 + [1] * 5
    assert load_robustness_dataset("found", folders / "found", id2label=more).class_indices is None
    assert (
        str(loaded) == "Shades of grey: 10 pictures, 2 classes, others masked; resizing: the model's image processor"
    )
    one = load_robustness_dataset("shades", folders / "shades", class_subset=["DARK"], id2label=more)
    assert one.class_indices == (1, 2) and set(one.dataset["label"]) == {1}


def test_a_hub_dataset_is_read_by_the_names_of_its_classes(module, folders, tmp_path):
    from datasets import load_dataset

    hub = load_dataset("imagefolder", data_dir=str(folders / "shades"), split="train")
    (tmp_path / "hub").mkdir()
    hub.to_parquet(tmp_path / "hub" / "test-00000-of-00001.parquet")
    loaded = load_robustness_dataset("shades", tmp_path / "hub", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded.dataset["label"]) == [0] * 5 + [1] * 5
    assert np.asarray(loaded.dataset[0]["image"]).mean() > 190 and loaded.dataset[0]["label"] == 0
    with pytest.raises(ValueError, match=r"class names of Other do not fit: There is no class \['Light'\]"):
        register_dataset(DatasetSpec("other", "Other", NamedClasses(("dark", "bright"))))
        load_robustness_dataset("other", tmp_path / "hub", cache_dir=str(tmp_path / "cache"))


def test_help_and_errors(evaluations, module, photos, folders, tmp_path, capsys):
    assert "shades (Shades of grey): grey pictures, dark and light" in help_text(capsys)
    shutil.copytree(folders / "shades", tmp_path / "other")
    (tmp_path / "other" / "dark").rename(tmp_path / "other" / "gloom")
    other = Evaluations(photos, tmp_path, COLUMNS[:1], ["--datasets", f"shades={tmp_path / 'other'}"])
    error = other.error(capsys)
    assert "expected: 2 class folders named by their names, such as 'Light'" in error and "'gloom'" in error
    other.columns = [{"name": "mist_3", "dataset": "shades-c", "corruption": "mist", "severity": 3}]
    assert "'shades-c', which needs a `corruption` of ['mist', 'haze'] and a `severity` of [1, 2]" in other.error(
        capsys
    )
    with pytest.raises(ValueError, match="There is already a dataset 'shades'"):
        register_dataset(DATASETS["shades"])
    with pytest.raises(ValueError, match="both corruptions and severities"):
        DatasetSpec("half", "Half", corruptions=("fog",))
    with pytest.raises(ValueError, match="`preprocessing` must be one of"):
        DatasetSpec("odd", "Odd", preprocessing="stretch")
    with pytest.raises(ValueError, match="names that differ"):
        NamedClasses(("dark", "Dark "))


def test_without_its_module_it_is_unknown(photos, tmp_path, capsys):
    error = Evaluations(photos, tmp_path, COLUMNS).error(capsys)
    assert "Column 'shades' has the unknown dataset 'shades'; expected one of ['damagenet'" in error
