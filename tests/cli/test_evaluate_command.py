"""`hf-nullspace evaluate` and `examples/evaluate_robustness.py` as users run them."""

import json
import re
from pathlib import Path

import pytest
from example_scripts import load_example
from random_pictures import PROCESSOR, save_class_folders

from hf_nullspace import RobustnessReport
from hf_nullspace.cli.commands.evaluate import distinct_names, parse_evaluate_arguments
from hf_nullspace.cli.main import main


EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_robustness.py"
QUIET = ["--disable_tqdm", "true", "--batch_size", "16"]


@pytest.fixture(scope="module")
def folders(make_vit, tmp_path_factory):
    """Two models with five classes, and four pictures of each class in a folder of its own."""
    root = tmp_path_factory.mktemp("evaluate")
    save_class_folders(root / "pictures")
    for name, seed in (("one", 0), ("two", 1)):
        make_vit(classifier_scale=20, seed=seed).save_pretrained(root / name)
        PROCESSOR.save_pretrained(root / name)
    return root


def test_example_measures_a_digits_model(tmp_path, capsys):
    example = load_example("evaluate_robustness")
    options = ["--digits_max_steps", "5", "--max_images", "32", "--profile", "preview"]
    (report,) = example.main([*options, *QUIET, "--output_dir", str(tmp_path)])
    assert (report.model_name, report.columns["fgsm"]["count"]) == ("digits-vit", 32)
    assert RobustnessReport.load(tmp_path) == report
    assert "Weakest under" in capsys.readouterr().out


def test_command_compares_models_on_a_folder_of_pictures(folders, tmp_path, capsys):
    models = [str(folders / "one"), str(folders / "two")]
    options = ["--images", str(folders / "pictures"), "--profile", "preview", "--output_dir", str(tmp_path), *QUIET]
    main(["evaluate", *models, *options])
    reports = [RobustnessReport.load(tmp_path / name) for name in ("one", "two")]
    assert [report.columns["clean"]["count"] for report in reports] == [20, 20]
    difference = reports[1].accuracies["fgsm"] - reports[0].accuracies["fgsm"]
    table = (tmp_path / "comparison.md").read_text()
    assert f"| {difference:+.2f} [" in next(line for line in table.splitlines() if line.startswith("| fgsm"))
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "# Robustness of one" in out and table.strip() in out


def test_own_profile_and_dataset(folders, tmp_path):
    from datasets import load_dataset

    pictures = load_dataset("imagefolder", data_dir=str(folders / "pictures"), split="train")
    (tmp_path / "data").mkdir()
    pictures.rename_column("label", "kind").to_parquet(tmp_path / "data" / "validation.parquet")
    profile = {"name": "mine", "columns": [{"name": "weak", "attack": "fgsm", "settings": {"epsilon": 0}}]}
    (tmp_path / "mine.json").write_text(json.dumps(profile))
    options = ["--dataset_name", str(tmp_path / "data"), "--label_column_name", "kind", "--max_images", "9"]
    options += ["--profile", str(tmp_path / "mine.json"), "--output_dir", str(tmp_path / "out")]
    main(["evaluate", str(folders / "one"), *options, *QUIET])
    assert RobustnessReport.load(tmp_path / "out").columns["weak"]["count"] == 9


def test_a_second_model_that_does_not_fit_is_refused_before_any_image_is_measured(
    folders, make_vit, tmp_path, capsys, monkeypatch
):
    """Whether its classes are wrong or its channels."""

    def measured(*args):
        raise AssertionError("an image was measured")

    monkeypatch.setattr("hf_nullspace.robustness.shards.ShardRunner.measure", measured)
    few, grey = (tmp_path / name for name in ("few classes", "grey"))
    make_vit(num_labels=3).save_pretrained(few), PROCESSOR.save_pretrained(few)
    make_vit(num_channels=4).save_pretrained(grey), PROCESSOR.save_pretrained(grey)
    for second, words in ((few, "few classes: "), (grey, "grey: .*4 channels")):
        out = tmp_path / f"out {second.name}"
        options = ["--images", str(folders / "pictures"), "--profile", "preview", "--output_dir", str(out), *QUIET]
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", str(folders / "one"), str(second), *options])
        assert stopped.value.code == 2
        assert re.search(words, capsys.readouterr().err)
        assert not list(out.rglob("robustness.json"))


def test_models_of_one_name_are_told_apart():
    assert distinct_names(["/a/model-3", "/b/model", "/c/model"]) == ["model-3", "model", "model-2"]
    assert distinct_names(["/a/model", "google/vit", "/b/model", "/c/model"]) == [
        "model",
        "google/vit",
        "model-2",
        "model-3",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "a", "--dataset_name", "b"], "--images.*--dataset_name.*do not fit together"),
        (["--datasets", "imagenet-a"], r"NAME=FOLDER_OR_HUB_ID.*\['imagenet-a'\]"),
        (["--images", "nowhere"], "'nowhere'"),
        (["--profile", "slow"], "Unknown profile 'slow'"),
    ],
)
def test_bad_flags_are_refused(folders, flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(folders / "one"), *flags])
    assert re.search(f"^hf-nullspace evaluate: error: .*{message}", capsys.readouterr().err, re.MULTILINE)


def test_flags_may_name_the_model_too():
    _, args = parse_evaluate_arguments(["--model_name_or_path", "some/model"], "evaluate")
    assert args.models == ["some/model"] and args.profile == "quick"


def test_a_model_for_other_classes_is_refused(folders, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(folders / "one"), "--output_dir", str(tmp_path), *QUIET])
    assert re.search("error: .*no class.*'0', '1'", capsys.readouterr().err)
