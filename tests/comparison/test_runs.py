"""Finished runs: what tells two apart, and what does not."""

import pytest

from hf_nullspace import NullspaceTrainingArguments
from hf_nullspace.comparison.runs import RUN_NAME, begin_run, read_run, training_settings, write_run
from hf_nullspace.utils.files import json_hash


def settings_of(**arguments):
    return training_settings(NullspaceTrainingArguments(**{"output_dir": "out", "use_cpu": True, **arguments}))


def test_settings_are_what_differs_from_the_defaults():
    found = settings_of(learning_rate=1e-3, lr_scheduler_type="cosine", epsilon=0.1, max_steps=7, seed=3)
    assert found["seed"] == 3
    changed = {name: found[name] for name in ("learning_rate", "lr_scheduler_type", "epsilon", "max_steps")}
    assert changed == {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "epsilon": 0.1, "max_steps": 7}
    assert "learning_rate" not in settings_of() and "lr_scheduler_type" not in settings_of()


def test_where_and_how_a_run_is_logged_and_read_does_not_tell_it_apart():
    ours = settings_of()
    for changes in (
        {"output_dir": "elsewhere"},
        {"logging_steps": 3},
        {"disable_tqdm": True},
        {"report_to": "none"},
        {"dataloader_num_workers": 2},
        {"save_strategy": "no"},
        {"run_name": "mine"},
    ):
        assert settings_of(**changes) == ours
    for changes in (
        {"weight_decay": 0.1},
        {"seed": 1},
        {"bf16": True},
        {"noise_num_images": 2},
        {"max_grad_norm": 0.0},
    ):
        assert json_hash(settings_of(**changes)) != json_hash(ours)


def test_the_noise_tells_runs_apart_only_where_it_has_a_weight():
    assert settings_of(epsilon=0.1, noise_num_images=3) != settings_of()
    assert settings_of(noise_weight=0.0, epsilon=0.1, noise_num_images=3) == settings_of(noise_weight=0.0)


def test_a_finished_run_is_read_and_another_refused(tmp_path):
    settings = {"method": "plain", "arguments": {"seed": 1, "max_steps": 3}}
    assert read_run(tmp_path, settings) is None
    write_run(tmp_path, settings, {"seconds": 1.5})
    found = read_run(tmp_path, settings)
    assert found == {"settings": settings, "settings_hash": json_hash(settings), "seconds": 1.5} == read_run(tmp_path)
    other = {"method": "pgd", "arguments": {"seed": 1, "weight_decay": 0.1}}
    with pytest.raises(ValueError, match="other settings") as error:
        read_run(tmp_path, other)
    for text in (
        "method 'plain' instead of 'pgd'",
        "arguments.max_steps 3 instead of 'its default'",
        "arguments.weight_decay 'its default' instead of 0.1",
        str(tmp_path),
    ):
        assert text in str(error.value)
    assert "seed" not in str(error.value)


def test_a_run_begins_in_an_empty_folder_and_deletes_only_what_a_run_left(tmp_path):
    folder = tmp_path / "runs" / "plain-42"
    assert not begin_run(folder, {"seed": 1})
    (folder / "model.safetensors").write_text("half a model")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "file").write_text("half a checkpoint")
    for settings in ({"seed": 1}, {"seed": 2}):
        assert not begin_run(folder, settings)
        assert [path.name for path in folder.iterdir()] == ["unfinished"]
    write_run(folder, {}, {})
    assert [path.name for path in folder.iterdir()] == [RUN_NAME]
    mine = tmp_path / "base"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"\['thesis.txt'\], but no run of a comparison"):
        begin_run(mine, {})
    assert (mine / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / RUN_NAME).write_text(text)
    with pytest.raises(ValueError, match=f"{RUN_NAME} is damaged.*Delete"):
        read_run(tmp_path, {})
