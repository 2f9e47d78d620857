"""The main command does what it says: every way to ask for it trains, and every report says what happened."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from transformers.utils import logging as logging_of_transformers

from hf_nullspace import NullspaceTrainer
from hf_nullspace.cli import finetune_run
from hf_nullspace.cli.commands.finetune import main
from hf_nullspace.cli.finetune_arguments import parse_finetune_arguments
from hf_nullspace.cli.finetune_run import FinetuneRun, predicted_classes
from hf_nullspace.cli.main import main as cli
from hf_nullspace.hub.manifest import compare_with_manifest
from hf_nullspace.training.weight_average import AVERAGE_NAME


QUICK = ["--max_steps", "4", "--noise_refresh_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu"]
QUICK += ["--noise_num_images", "16", "--noise_num_certificate_images", "16", "--learning_rate", "1e-3"]


@pytest.fixture(scope="module")
def source(photos, tmp_path_factory):
    """Flags of a model of one layer and 32 pictures in two classes."""
    folder = tmp_path_factory.mktemp("source") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **size, **names))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return ["--model_name_or_path", str(folder), "--train_dir", str(photos / "images")]


@pytest.fixture
def run(source, tmp_path):
    """`run(*flags)` finetunes into `tmp_path/out`, or what `--output_dir` says, and returns the accuracies."""

    def finetune(*flags: str) -> dict[str, dict[str, float]]:
        return main([*QUICK, *source, "--output_dir", str(tmp_path / "out"), *flags])

    return finetune


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """A finished run with a control and a checkpoint at every second step, and its accuracies."""
    folder = tmp_path_factory.mktemp("finished")
    flags = [*QUICK, *source, "--plain_control", "--save_strategy", "steps", "--save_steps", "2"]
    return folder, flags, main([*flags, "--output_dir", str(folder)])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    weights = weights_of(second)
    return all(torch.equal(value, weights[name]) for name, value in weights_of(first).items())


# ---- It trains unless told not to ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--do_eval"],
        ["--eval_strategy", "epoch"],
        ["--no_do_eval"],
        ["--do_eval", "false", "--eval_strategy", "no"],
    ],
)
def test_every_way_to_ask_trains_the_same(finished, run, tmp_path, flags):
    results = run(*flags)
    assert same(finished[0], tmp_path / "out")
    assert results == {"nullspace": finished[2]["nullspace"]}
    training = json.loads((tmp_path / "out" / "nullspace_training.json").read_text())
    assert [row["step"] for row in training["rounds"]] == [0, 2]
    assert (tmp_path / "out" / "eval_results.json").is_file() == ("--no_do_eval" not in flags and "false" not in flags)


def test_without_training_a_model_is_measured_and_nothing_claims_more(run, tmp_path, capsys):
    results = run("--no_do_train")
    assert list(results) == ["model"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"eval_results.json", "robustness.json"} <= names
    assert not {"README.md", "model.safetensors", "nullspace_training.json"} & names
    assert "nullspace" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no_do_train", "--plain_control"], "`--plain_control` and no `--do_train`"),
        (["--no_do_train", "--head_first_steps", "2"], "`--head_first_steps` and no `--do_train`"),
        (["--no_do_train", "--push_to_hub"], "`--push_to_hub` and no `--do_train`"),
        (["--no_do_train", "--resume_from_checkpoint", "last"], "`--resume_from_checkpoint` and no `--do_train`"),
        (["--do_predict"], "`--do_predict`"),
        (["--ema_decay", "1"], "`--ema_decay` must lie in"),
        (["--crop_scale", "0"], "`--crop_scale` must lie in"),
        (["--augmentation", "none", "--crop_scale", "0.5"], "`--crop_scale` does nothing with `--augmentation none`"),
        (["--overwrite_output_dir", "--resume_from_checkpoint", "last"], "`--overwrite_output_dir`"),
        (["--resume_from_checkpoint", "no/such/checkpoint-4"], "no checkpoint no/such/checkpoint-4"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_read(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(finetune_run, "load_data", lambda *args, **kwargs: pytest.fail("images were read"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*flags)
    assert not (tmp_path / "out").exists()


def test_the_digits_without_training_are_refused(tmp_path):
    with pytest.raises(ValueError, match="name it with `--model_name_or_path`"):
        main(["--no_do_train", "--output_dir", str(tmp_path / "out")])


@pytest.mark.slow
def test_the_command_and_its_positional_model_are_the_same_code(finished, source, tmp_path):
    _, model, *others = source
    cli(["finetune", model, *others, *QUICK, "--output_dir", str(tmp_path)])
    assert same(finished[0], tmp_path)
    assert {"accuracy", "eval_accuracy"} & set(json.loads((tmp_path / "eval_results.json").read_text()))


def test_pictures_are_augmented_and_log_and_card_say_so(run, finished, tmp_path, capsys):
    said = "default (random crops of 64 to 100 % of the area, mirrored half of the time)"
    run("--no_do_eval")
    log = capsys.readouterr().err
    assert f"Training pictures are augmented: {said}." in log and "head" not in log
    assert f"| augmentation | {said} |" in (tmp_path / "out" / "README.md").read_text()
    run("--no_do_eval", "--augmentation", "none", "--output_dir", str(tmp_path / "none"))
    assert "augmented" not in capsys.readouterr().err
    assert "augmentation" not in (tmp_path / "none" / "README.md").read_text()
    assert not same(tmp_path / "out", tmp_path / "none")
    with pytest.raises(ValueError, match="other settings: augmentation 'default' instead of 'trivial'"):
        run("--augmentation", "trivial", "--resume_from_checkpoint", "last")


@pytest.mark.slow
def test_a_new_head_is_trained_first_for_control_and_treatment(run, tmp_path, capsys, monkeypatch):
    """Killed in training, and before that with the head: what goes on is the uninterrupted run."""
    config = tmp_path / "config"
    flags = ["--ignore_mismatched_sizes", "--plain_control", "--save_strategy", "steps", "--save_steps", "2"]
    flags += ["--config_name", str(config), "--learning_rate", "1e-4"]
    names = {"id2label": {0: "night", 1: "day"}, "label2id": {"night": 0, "day": 1}}
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTConfig(image_size=16, patch_size=8, **size, **names).save_pretrained(config)
    results = run(*flags)
    said = capsys.readouterr().err
    (words,) = re.findall(
        r"The head was trained first: (500 steps on the features of 27 training images, loss .*)\.", said
    )
    assert f"| head_first | {words} |" in (tmp_path / "out" / "README.md").read_text()
    assert results["base"]["clean"] == 100.0, "the head alone tells dark from light"

    other = ["--output_dir", str(tmp_path / "other")]
    monkeypatch.setattr(finetune_run, "save_head", lambda *args: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        run(*flags, *other)
    monkeypatch.undo()
    step = NullspaceTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise RuntimeError("killed")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(NullspaceTrainer, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run(*flags, *other, "--resume_from_checkpoint", "last")
    monkeypatch.undo()
    assert (tmp_path / "other" / "checkpoint-2").is_dir()
    assert run(*flags, *other, "--resume_from_checkpoint", "last") == results
    for folder in ("", "plain"):
        assert same(tmp_path / "out" / folder, tmp_path / "other" / folder)
    assert f"| head_first | {words} |" in (tmp_path / "other" / "README.md").read_text()


def test_a_trained_head_is_trained_first_if_wanted(run, finished, tmp_path, capsys):
    run("--no_do_eval", "--head_first_steps", "7")
    assert "The head was trained first: 7 steps" in capsys.readouterr().err
    assert not same(finished[0], tmp_path / "out")
    with pytest.raises(ValueError, match="head_first_steps 7 instead of 8"):
        run("--head_first_steps", "8", "--resume_from_checkpoint", "last")


def test_a_missing_package_is_said_before_anything_is_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_nullspace.training.augmentation.find_spec", lambda package: None)
    monkeypatch.setattr(finetune_run, "load_data", lambda *args, **kwargs: pytest.fail("images were read"))
    with pytest.raises(ImportError, match=r"needs kornia: `pip install 'hf_nullspace\[augment\]'"):
        run()
    assert not (tmp_path / "out").exists()


# ---- Control and treatment ----------------------------------------------------------------------------------------


def test_the_control_is_a_run_without_noise(finished, run, tmp_path, caplog):
    folder, _, results = finished
    run("--noise_weight", "0", "--plain_control")
    assert same(folder / "plain", tmp_path / "out")
    assert not same(folder, tmp_path / "out")
    assert "no control is trained" in caplog.text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "it saw clean images alone" in card
    assert list(results) == ["base", "plain", "nullspace"]


@pytest.mark.slow
def test_the_best_checkpoint_is_restored_in_control_and_treatment(run, tmp_path):
    """At a learning rate that ruins the model the best checkpoint is not the last one, and must come back whole."""
    flags = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    flags += ["--load_best_model_at_end", "--metric_for_best_model", "eval_loss", "--plain_control"]
    run(*flags, "--learning_rate", "0.5", "--lr_scheduler_type", "constant")
    for folder in (tmp_path / "out", tmp_path / "out" / "plain"):
        states = [json.loads(path.read_text()) for path in folder.glob("checkpoint-*/trainer_state.json")]
        losses = {
            row["step"]: row["eval_loss"] for state in states for row in state["log_history"] if "eval_loss" in row
        }
        best = min(losses, key=losses.get)
        assert same(folder, folder / f"checkpoint-{best}")


@pytest.mark.slow
def test_weights_are_averaged_in_control_and_treatment(finished, run, tmp_path):
    run("--ema_decay", "0.5", "--plain_control", "--save_strategy", "steps", "--save_steps", "4")
    for folder in (tmp_path / "out", tmp_path / "out" / "plain"):
        average = load_file(folder / "checkpoint-4" / AVERAGE_NAME)
        weights = weights_of(folder)
        assert all(torch.equal(weights[name], average[name]) for name in ("classifier.weight", "classifier.bias"))
        assert not same(folder, folder / "checkpoint-4")
    settings = json.loads((tmp_path / "out" / "nullspace_training.json").read_text())["settings"]
    assert settings["ema_decay"] == 0.5
    with pytest.raises(ValueError, match="other settings: .*ema_decay"):
        run("--plain_control", "--resume_from_checkpoint", "last")


# ---- A folder belongs to one run ------------------------------------------------------------------------------------


def test_a_second_run_needs_a_folder_of_its_own(finished, tmp_path):
    folder, flags, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for others in (
        [],
        ["--resume_from_checkpoint", "last", "--seed", "1"],
        ["--resume_from_checkpoint", "last", "--epsilon", "0.1"],
    ):
        with pytest.raises(ValueError, match="another `--output_dir`"):
            main([*flags, "--output_dir", str(folder), *others])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_emptied_folder_holds_nothing_of_the_run_before(finished, source, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    main([*QUICK, *source, "--output_dir", str(folder), "--overwrite_output_dir", "--noise_weight", "0"])
    assert "Deleting the files of another run" in capsys.readouterr().err
    left = {path.name for path in folder.iterdir()}
    assert not {"plain", "checkpoint-2", "noise_norm.png", "nullspace_noise.safetensors", ".measuring"} & left
    assert "noise_norm.png" not in compare_with_manifest(folder)
    assert set(compare_with_manifest(folder).values()) == {""}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["last", "checkpoint-2"])
def test_a_finished_run_that_is_resumed_ends_where_it_was(finished, tmp_path, checkpoint):
    before, flags, results = finished
    folder = tmp_path / "out"
    shutil.copytree(before, folder)
    (folder / "trainer_state.json").unlink()  # as if it was killed before it was written
    resume = checkpoint if checkpoint == "last" else str(folder / checkpoint)
    assert main([*flags, "--output_dir", str(folder), "--resume_from_checkpoint", resume]) == results
    assert same(before, folder) and same(before / "plain", folder / "plain")
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 4
    texts = [(each / "robustness.md").read_text() for each in (before, folder)]
    assert texts[0] == texts[1]
    assert set(compare_with_manifest(folder).values()) == {""}


# ---- Saved first, then measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["evaluate", "evaluate_noise", "_measure"])
def test_what_is_measured_costs_no_model(run, tmp_path, monkeypatch, stage):
    def fail(*args, **kwargs):
        raise RuntimeError("killed")

    owner = FinetuneRun if stage == "_measure" else NullspaceTrainer
    monkeypatch.setattr(owner, stage, fail)
    with pytest.raises(RuntimeError, match="killed"):
        run()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "nullspace_noise.safetensors", "README.md", "nullspace_manifest.json"} <= names


def test_too_few_validation_images_for_the_noise_are_said(run, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise ValueError("1 image is too few; give `num_certificate_images`")

    monkeypatch.setattr(NullspaceTrainer, "evaluate_noise", refuse)
    assert list(run()) == ["nullspace"]
    assert "The noise is not measured on the" in capsys.readouterr().err


def test_one_validation_image_is_enough(photos, source, tmp_path):
    for name in ("dark", "light"):
        shutil.copytree(photos / "images" / name, tmp_path / "train" / name)
        (tmp_path / "validation" / name).mkdir(parents=True)
    shutil.move(tmp_path / "train" / "dark" / "0.png", tmp_path / "validation" / "dark")
    (tmp_path / "validation" / "light").rmdir()
    # The class list of the split must be that of the training images.
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "light" / "more.png")
    flags = [
        "--train_dir",
        str(tmp_path / "train"),
        "--train_val_split",
        "0.05",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    results = main([*QUICK, *source[:2], *flags, "--max_eval_samples", "1"])
    assert list(results) == ["nullspace"]
    assert (tmp_path / "out" / "model.safetensors").is_file()


# ---- Optional packages ----------------------------------------------------------------------------------------------


def test_without_matplotlib_everything_else_is_there(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert list(run()) == ["nullspace"]
    errors = capsys.readouterr().err
    assert errors.index("matplotlib is missing, so no figures will be drawn") < errors.index(
        "Loading images and model"
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "robustness.json", "robustness_results.json", "nullspace_manifest.json"} <= names
    assert not [name for name in names if name.endswith(".png")]
    assert ".png" not in (tmp_path / "out" / "README.md").read_text()


def test_a_figure_that_fails_costs_no_results(run, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise AttributeError("a broken drawing package")

    monkeypatch.setattr(finetune_run, "plot_noise_history", fail)
    assert list(run()) == ["nullspace"]
    assert "noise_norm.png is not drawn. AttributeError: a broken drawing package" in capsys.readouterr().err
    assert (tmp_path / "out" / "robustness_results.json").is_file()


# ---- What it says -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rounds_without_noise_are_said(run, tmp_path, capsys):
    run("--epsilon", "1e-12", "--noise_on_failure", "skip", "--noise_method", "paper", "--noise_max_steps", "1")
    errors = capsys.readouterr().err
    assert "In 2 of 2 rounds the noise was not certified within `--epsilon` (1e-12)" in errors
    assert "(and as many `--noise_num_certificate_images`, where that is set), or a larger `--epsilon`" in errors
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Finetuning without noise" in card
    assert "none of its 2 rounds" in card


def test_every_phase_is_announced_and_loggers_are_left_as_they_were(run, capsys):
    package = logging.getLogger("hf_nullspace")
    before = (package.level, list(package.handlers))
    run("--plain_control")
    errors = capsys.readouterr().err
    expected = [
        "Loading images and model ...",
        "Nullspace finetuning: 4 steps, 2 rounds",
        "Round 1 at step 2: synthesising noise on 16 images, measuring it on 16 more",
        "Plain finetuning: 4 steps ...",
    ]
    expected += [
        "Evaluating on 5 validation images",
        "Measuring the noise on 5 validation images: about 1 s",
        "(model 1 of 3) on 5 images: about 1 s",
        "(model 3 of 3)",
    ]
    places = [errors.index(line) for line in expected]
    assert places == sorted(places)
    assert "%|" not in errors and "\r" not in errors, "no bar fills a log"
    assert logging_of_transformers.is_progress_bar_enabled()
    assert (package.level, package.handlers) == before


def test_bars_are_for_terminals():
    *_, args = parse_finetune_arguments(["--output_dir", "out"], "finetune.py")
    assert args.disable_tqdm
    *_, args = parse_finetune_arguments(["--output_dir", "out", "--disable_tqdm", "false"], "finetune.py")
    assert not args.disable_tqdm


def test_models_with_several_outputs_are_measured():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert predicted_classes((logits, logits.flip(-1)), None).tolist() == [1, 0]
    assert predicted_classes(logits, None).tolist() == [1, 0]
