"""An output folder belongs to one run."""

import json

import pytest

from hf_nullspace.cli.run_folder import RECORD_NAME, RunFolder, own_files


SETTINGS = {"train_dir": "photos", "seed": 42}


def begin(folder, settings=SETTINGS, resume=False, overwrite=False) -> RunFolder:
    run = RunFolder(folder, settings, resume, overwrite)
    run.begin()
    return run


@pytest.fixture
def finished(tmp_path):
    """A folder with a run: a model, a checkpoint and results."""
    run = begin(tmp_path)
    for name in ("checkpoint-4", "base"):
        (tmp_path / name).mkdir()
    for name in ("model.safetensors", "robustness.json", "noise_norm.png", "checkpoint-4/model.safetensors"):
        (tmp_path / name).touch()
    run.finish("base")
    return tmp_path


def test_an_empty_folder_and_one_with_logs_are_fine(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.log").touch()
    (tmp_path / "out" / "runs").mkdir()
    begin(tmp_path / "out")
    begin(tmp_path / "new" / "out")
    begin(tmp_path / "new" / "out")  # a run that made nothing yet is in nobody's way


def test_another_run_is_refused_and_nothing_changes(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(
        ValueError, match="holds another run .*base, checkpoint-4, model.safetensors.*`overwrite_output_dir`"
    ):
        begin(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_run_is_deleted_where_asked_and_logs_stay(finished, caplog):
    (finished / "train.log").touch()
    run = RunFolder(finished, {"seed": 1}, resume=False, overwrite=True)
    assert (finished / "model.safetensors").is_file(), "nothing goes before all is checked"
    run.begin()
    assert sorted(path.name for path in finished.iterdir()) == [RECORD_NAME, "train.log"]
    assert "Deleting the files of another run" in caplog.text
    assert "checkpoint-4" in caplog.text
    assert run.finished == []


def test_only_what_a_run_wrote_is_deleted(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match="Nothing says that a run wrote .*README.md, base"):
        begin(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_would_be_published_are_refused(tmp_path, overwrite):
    (tmp_path / "notes.csv").touch()
    with pytest.raises(ValueError, match="would be published .*notes.csv"):
        begin(tmp_path, overwrite=overwrite)


def test_a_run_goes_on_with_its_own_folder_alone(finished):
    assert begin(finished, resume=True).finished == ["base"]
    with pytest.raises(ValueError, match="other settings: seed 42 instead of 1.*another `output_dir`"):
        begin(finished, {**SETTINGS, "seed": 1}, resume=True)
    with pytest.raises(ValueError, match="would delete"):
        begin(finished, resume=True, overwrite=True)


def test_a_damaged_record_is_an_error(finished):
    (finished / RECORD_NAME).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        begin(finished, resume=True)


def test_what_is_not_finished_any_more_is_done_again(finished):
    run = begin(finished, resume=True)
    run.reopen("base")
    assert json.loads((finished / RECORD_NAME).read_text())["finished"] == []


def test_own_files_are_found_by_name(finished):
    (finished / "photos.txt").touch()
    assert own_files(finished) == ["base", "checkpoint-4", "model.safetensors", "noise_norm.png", "robustness.json"]
    for name in ("examples.safetensors", "report.html"):
        (finished / name).touch()
    assert set(own_files(finished)) >= {"examples.safetensors", "report.html"}, "pictures and page of its report"
    assert own_files(finished / "absent") == []
