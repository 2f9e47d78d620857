"""Two runs in one folder do not mix, clocks delete nothing, and what would not go on exactly is refused."""

import logging
import os
import shutil
import time

import killed_run
import pytest
import torch
from kills import start_run
from launching import finish, start

from hf_nullspace.training.checkpoints import checkpoints_of_other_runs, last_whole_checkpoint, rotate_checkpoints
from hf_nullspace.training.run_identity import Run, read_run


SHORT = {"max_steps": 8, "save_steps": 2, "save_total_limit": None, "noise_weight": 0.0}


def build(folder, **changes):
    return killed_run.build(str(folder), **{**SHORT, **changes})


def names(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def stop_at(trainer, step):
    """Raises in a step, as an interruption would."""
    parent = trainer.training_step

    def training_step(*args, **kwargs):
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return parent(*args, **kwargs)

    trainer.training_step = training_step
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


# ---- Two runs ---------------------------------------------------------------------------------------------------


def test_a_new_run_does_not_go_on_with_the_old_one(tmp_path, caplog):
    first = build(tmp_path)
    first.train()
    old = read_run(tmp_path)
    stop_at(build(tmp_path, learning_rate=1e-2), 3)
    new = read_run(tmp_path)
    assert new.id != old.id
    assert [path.name for path in checkpoints_of_other_runs(tmp_path)] == [
        "checkpoint-8",
        "checkpoint-6",
        "checkpoint-4",
    ]
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = build(tmp_path, learning_rate=1e-2)
    assert resumed.train(resume_from_checkpoint=True).global_step == 8
    other = build(tmp_path.parent / f"{tmp_path.name}-alone", learning_rate=1e-2)
    other.train()
    weights, expected = resumed.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert checkpoints_of_other_runs(tmp_path) == []  # all were written again


def test_a_new_run_that_died_before_its_first_checkpoint_has_none(tmp_path):
    build(tmp_path).train()
    stop_at(build(tmp_path), 1)
    assert last_whole_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        build(tmp_path).train(resume_from_checkpoint=True)


def test_a_path_takes_up_an_older_run_again(tmp_path):
    build(tmp_path).train()
    old = read_run(tmp_path)
    stop_at(build(tmp_path), 1)
    build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert read_run(tmp_path) == old
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")


def test_going_on_from_an_earlier_checkpoint_leaves_the_later_ones(tmp_path):
    build(tmp_path).train()
    trainer = build(tmp_path, learning_rate=1e-2, save_steps=3)
    parent = trainer.training_step

    def training_step(*args, **kwargs):
        if trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return parent(*args, **kwargs)

    trainer.training_step = training_step
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints_of_other_runs(tmp_path)] == ["checkpoint-8"]
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    shutil.rmtree(tmp_path / "checkpoint-6")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")  # shared by both


def test_checkpoints_alone_in_a_folder_are_one_run(tmp_path):
    build(tmp_path / "a").train()
    shutil.copytree(tmp_path / "a" / "checkpoint-6", tmp_path / "b" / "checkpoint-6")
    assert read_run(tmp_path / "b") is None
    assert build(tmp_path / "b").train(resume_from_checkpoint=True).global_step == 8
    assert read_run(tmp_path / "b") == read_run(tmp_path / "a")


def test_the_best_checkpoint_of_a_copied_run_is_the_copy(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.05}
    build(tmp_path / "a", **best).train()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    resumed = build(tmp_path / "b", **best)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint.startswith(str(tmp_path / "b"))
    path = tmp_path / "b" / f"checkpoint-{resumed.state.best_global_step}" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="not whole: its model.safetensors changed"):
        build(tmp_path / "b", **best).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-8"))


# ---- Rotation ---------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_deletes_no_new_checkpoint(tmp_path):
    trainer = build(tmp_path, save_total_limit=2)
    parent = trainer._save_checkpoint

    def save(model, trial):
        parent(model, trial)
        past = time.time() - 1000 * trainer.state.global_step
        os.utime(tmp_path / f"checkpoint-{trainer.state.global_step}", (past, past))

    trainer._save_checkpoint = save
    trainer.train()
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8"]
    assert torch.load(tmp_path / "checkpoint-8" / "training_args.bin", weights_only=False).save_total_limit == 2


def test_checkpoints_of_another_run_are_neither_counted_nor_deleted(tmp_path):
    build(tmp_path, max_steps=20, save_steps=10).train()
    build(tmp_path, save_total_limit=1).train()
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20", "checkpoint-8"]


def test_the_best_and_the_last_are_kept_and_those_cut_short_go_first(tmp_path):
    build(tmp_path).train()
    run = read_run(tmp_path)
    list_path = tmp_path / "checkpoint-6" / "nullspace_checkpoint.json"
    list_path.write_text(list_path.read_text()[:-20])
    rotate_checkpoints(tmp_path, run, 3, [tmp_path / "checkpoint-8", tmp_path / "checkpoint-2"])
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-8"]
    rotate_checkpoints(tmp_path, run, 1, [tmp_path / "checkpoint-8", tmp_path / "checkpoint-2"])
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-8"]
    rotate_checkpoints(tmp_path, Run("other"), 1, [])
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-8"]


@pytest.mark.parametrize("limit, left", [(1, 1), (2, 2)])
def test_the_end_leaves_the_best(tmp_path, limit, left):
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    worst = {"metric_for_best_model": "loss", "greater_is_better": True}  # the loss falls: the first one
    trainer = build(tmp_path, save_total_limit=limit, **evaluated, **worst)
    trainer.train()
    best = f"checkpoint-{trainer.state.best_global_step}"
    assert best != "checkpoint-8"
    assert names(tmp_path) == ([best, "checkpoint-8"] if left == 2 else [best])


# ---- What is not exact ------------------------------------------------------------------------------------------


def test_save_only_model_is_refused_with_its_reason(tmp_path):
    trainer = build(tmp_path, save_only_model=True)
    trainer.train()
    with pytest.raises(ValueError, match="checkpoint-8 is not whole: .*save_only_model"):
        build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    with pytest.raises(ValueError, match="No checkpoint .*save_only_model"):
        build(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "changes", [{"gradient_accumulation_steps": 2}, {"data_seed": 7}, {"per_device_train_batch_size": 2}]
)
def test_other_images_are_said(tmp_path, caplog, changes):
    build(tmp_path).train()
    shutil.rmtree(tmp_path / "checkpoint-8")
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        build(tmp_path, **changes).train(resume_from_checkpoint=True)
    finally:
        logger.propagate = False
    warnings = [record.message for record in caplog.records if "other images" in record.message]
    assert len(warnings) == 1
    assert next(iter(changes)) in warnings[0]


def try_to_resume(folder, told):
    from pathlib import Path

    try:
        build(folder).train(resume_from_checkpoint=True)
    except ValueError as error:
        Path(f"{told}-{os.environ.get('RANK', 0)}").write_text(str(error))


@pytest.mark.parametrize("saved, now", [(1, 2), (2, 1)])
def test_another_number_of_processes_is_refused(tmp_path, saved, now):
    folder, told = tmp_path / "run", tmp_path / "told"
    folder.mkdir()
    finish(start_run(folder, saved, SHORT | {"noise_weight": 0.0, "save_steps": 4, "max_steps": 4}))
    finish(start(try_to_resume, now, str(folder), str(told)))
    for rank in range(now):
        text = (tmp_path / f"told-{rank}").read_text()
        assert f"saved by {saved} process(es), but now there are {now}" in text


@pytest.mark.slow
@pytest.mark.parametrize("has_list", [True, False])
def test_a_lost_random_state_of_a_process_is_refused_by_all(tmp_path, has_list):
    folder, told = tmp_path / "run", tmp_path / "told"
    folder.mkdir()
    finish(start_run(folder, 2, SHORT | {"save_steps": 4, "max_steps": 4}))
    checkpoint = folder / "checkpoint-4"
    assert (checkpoint / "rng_state_0.pth").exists()
    (checkpoint / "rng_state_1.pth").unlink()
    if not has_list:
        (checkpoint / "nullspace_checkpoint.json").unlink()
        (folder / "nullspace_run.json").unlink()
    finish(start(try_to_resume, 2, str(folder), str(told)))
    for rank in range(2):
        assert "rng_state_1.pth" in (tmp_path / f"told-{rank}").read_text()
