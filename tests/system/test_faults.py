"""What a run leaves behind when something breaks, and what it says: disks, losses, processes and files."""

import hashlib
import json
import resource
import shutil
import subprocess
import time

import killed_run
import pytest
import torch
from kills import assert_same_result, kill_in, make_folders, start_run
from launching import finish, start
from safetensors.torch import load_file

from hf_nullspace.training.checkpoints import (
    check_whole,
    checkpoints_of_other_runs,
    last_whole_checkpoint,
    what_is_missing,
)


SHORT = {"max_steps": 16, "save_total_limit": None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A short run with checkpoints 4, 8, 12 and 16, and its result."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start_run(folder, 1, SHORT))
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of that run up to checkpoint 12."""
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-16", "result.*", "phases.txt"))
    return tmp_path / "run"


@pytest.fixture
def old_run(run):
    """The same as an older version of the package wrote it: without lists of files, and of no named run."""
    for path in [run / "nullspace_run.json", *run.glob("checkpoint-*/nullspace_checkpoint.json")]:
        path.unlink()
    return run


def cut(name, size):
    def damage(checkpoint):
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def flip(name):
    """Another bit in the middle of a file, whose size stays."""

    def damage(checkpoint):
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)

    return damage


def remove(*names):
    return lambda checkpoint: [(checkpoint / name).unlink() for name in names]


def swap_noise(checkpoint):
    """The tensor of another round beside this round's JSON: same shape, same names."""
    other = checkpoint.with_name("checkpoint-4")
    shutil.copy(other / "nullspace_noise.safetensors", checkpoint)


# ---- Checkpoints that are not whole -----------------------------------------------------------------------------


FILES = [
    "config.json",
    "model.safetensors",
    "nullspace_noise.json",
    "nullspace_noise.safetensors",
    "nullspace_schedule.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
]


def test_every_file_is_listed_but_the_arguments(run):
    listed = json.loads((run / "checkpoint-12" / "nullspace_checkpoint.json").read_text())["files"]
    assert sorted(listed) == FILES
    for name, row in listed.items():
        content = (run / "checkpoint-12" / name).read_bytes()
        assert row == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    remove("training_args.bin")(run / "checkpoint-12")
    assert what_is_missing(run / "checkpoint-12") is None


@pytest.mark.parametrize("damage", [remove, flip, lambda name: cut(name, -3)])
@pytest.mark.parametrize("name", [*FILES, "nullspace_checkpoint.json"])
def test_what_is_not_as_its_list_says_is_skipped_by_name(run, damage, name):
    damage(name)(run / "checkpoint-12")
    if damage is remove and name == "nullspace_checkpoint.json":
        # Of a run that has lists, one without is another's: what it holds is not known.
        assert checkpoints_of_other_runs(run) == [run / "checkpoint-12"]
    else:
        assert name in what_is_missing(run / "checkpoint-12")
        with pytest.raises(ValueError, match=f"checkpoint-12 is not whole: .*{name}.*last whole .*checkpoint-8"):
            check_whole(run / "checkpoint-12")
    assert last_whole_checkpoint(run) == str(run / "checkpoint-8")


@pytest.mark.parametrize("names", [["config.json"], ["optimizer.pt", "scheduler.pt"]])
def test_a_damaged_checkpoint_is_refused_by_path_and_skipped_otherwise(whole, run, names):
    remove(*names)(run / "checkpoint-12")
    trainer = killed_run.build(str(run), **SHORT)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"checkpoint-12 is not whole: it has no {', '.join(names)}.*checkpoint-8"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-12"))
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())
    finish(start_run(run, 1, SHORT))
    assert_same_result(whole, run)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (remove("trainer_state.json"), "written last"),
        (cut("trainer_state.json", 100), "trainer_state.json cannot be read"),
        (remove("rng_state.pth"), "rng_state.pth"),
        (remove("optimizer.pt"), "optimizer.pt"),
        (remove("scheduler.pt"), "scheduler.pt"),
        (remove("optimizer.pt", "scheduler.pt"), "optimizer.pt and no scheduler.pt"),
    ],
)
def test_a_checkpoint_without_a_list_is_told_by_its_names(old_run, damage, reason):
    run = old_run
    assert last_whole_checkpoint(run) == str(run / "checkpoint-12")
    damage(run / "checkpoint-12")
    assert reason in what_is_missing(run / "checkpoint-12")
    assert last_whole_checkpoint(run) == str(run / "checkpoint-8")
    with pytest.raises(ValueError, match=f"checkpoint-12 is not whole: .*{reason}.*last whole .*checkpoint-8"):
        killed_run.build(str(run), **SHORT).train(resume_from_checkpoint=str(run / "checkpoint-12"))


def test_a_checkpoint_of_an_older_version_is_gone_on_from(whole, old_run):
    finish(start_run(old_run, 1, SHORT))
    assert_same_result(whole, old_run)
    assert checkpoints_of_other_runs(old_run) == []
    assert last_whole_checkpoint(old_run) == str(old_run / "checkpoint-16")


def test_resuming_after_a_save_that_was_cut_short_is_exact(whole, run):
    remove("trainer_state.json")(run / "checkpoint-12")
    finish(start_run(run, 1, SHORT))
    assert_same_result(whole, run)
    assert what_is_missing(run / "checkpoint-12") is None


def test_no_whole_checkpoint_at_all(run):
    for checkpoint in run.glob("checkpoint-*"):
        remove("trainer_state.json")(checkpoint)
    with pytest.raises(ValueError, match="No checkpoint in .* is whole .*checkpoint-4.*without"):
        killed_run.build(str(run), **SHORT).train(resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*nowhere"):
        check_whole(run / "nowhere")


def test_a_folder_without_checkpoints_is_the_parents_error(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        killed_run.build(str(tmp_path), **SHORT).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "damage, what",
    [
        (cut("model.safetensors", -4), "weights"),
        (cut("nullspace_noise.safetensors", -4), "noise"),
        (cut("nullspace_noise.json", 100), "noise"),
        (cut("nullspace_schedule.json", 100), "nullspace_schedule.json"),
        (remove("nullspace_noise.safetensors"), "nullspace_noise.safetensors"),
        (swap_noise, "the tensor is not the one that the JSON was written with"),
    ],
)
def test_a_damaged_file_without_a_list_is_refused_with_the_remedy(old_run, damage, what):
    run = old_run
    damage(run / "checkpoint-12")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        killed_run.build(str(run), **SHORT).train(resume_from_checkpoint=True)
    for text in (what, "checkpoint-12", "Delete that checkpoint and resume from an earlier one"):
        assert text in str(error.value)
    shutil.rmtree(run / "checkpoint-12")
    assert last_whole_checkpoint(run) == str(run / "checkpoint-8")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_without_a_list_is_not_whole_with_a_file_that_was_cut(old_run, name):
    cut(name, 100)(old_run / "checkpoint-12")
    assert what_is_missing(old_run / "checkpoint-12") == f"its {name} is cut short or damaged"
    assert last_whole_checkpoint(old_run) == str(old_run / "checkpoint-8")
    with pytest.raises(
        ValueError, match=f"checkpoint-12 is not whole: its {name} is cut short .*Delete it.*checkpoint-8"
    ):
        killed_run.build(str(old_run), **SHORT).train(resume_from_checkpoint=str(old_run / "checkpoint-12"))


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(run, monkeypatch):
    trainer = killed_run.build(str(run), **SHORT)

    def fail(output_dir):
        raise KeyError("cut")

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(KeyError, match="cut"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-8"))
    assert "written last" in what_is_missing(run / "checkpoint-12")


def test_a_checkpoint_without_its_config_is_refused_in_any_case(old_run):
    remove("config.json")(old_run / "checkpoint-12")
    with pytest.raises(ValueError, match="checkpoint-12 has no config.json"):
        killed_run.build(str(old_run), **SHORT).train(resume_from_checkpoint=True)


# ---- A full disk ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("part, limit", [("model", 20_000), ("optimizer", 120_000)])
def test_a_full_disk_leaves_earlier_checkpoints(whole, tmp_path, part, limit):
    folder, told = tmp_path / "run", tmp_path / "error.txt"
    folder.mkdir()
    finish(start(killed_run.run_out_of_space, 1, str(folder), limit, str(told), SHORT))
    message = told.read_text()
    for text in ("could not be saved", "MiB free", str(folder / "checkpoint-8"), "resume_from_checkpoint=True"):
        assert text in message
    assert (folder / "checkpoint-12" / "model.safetensors").exists() == (part == "optimizer")
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-8")
    finish(start_run(folder, 1, SHORT))
    assert_same_result(whole, folder)


@pytest.mark.slow  # and only for root
@pytest.mark.parametrize("size", ["500k", "700k", "900k"])
def test_a_file_system_that_is_full(whole, tmp_path, size):
    mount, told = tmp_path / "mount", tmp_path / "error.txt"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        finish(start(killed_run.run_out_of_space, 1, str(mount), resource.RLIM_INFINITY, str(told), SHORT))
        assert "could not be saved" in told.read_text()
        assert "disk has 0 MiB free" in told.read_text()
        whole_one = last_whole_checkpoint(mount)
        assert whole_one is None or whole_one in told.read_text()
        subprocess.run(["mount", "-o", "remount,size=20m", str(mount)], check=True)
        finish(start_run(mount, 1, SHORT))
        assert_same_result(whole, mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# ---- A lost loss ------------------------------------------------------------------------------------------------


def lose_the_loss_of(trainer, step):
    def loss_of(outputs, labels, num_items_in_batch=None):
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return loss * float("nan") if trainer.state.global_step == step else loss

    trainer.compute_loss_func = loss_of


def test_a_lost_loss_stops_before_it_reaches_a_weight(tmp_path):
    trainer = killed_run.build(str(tmp_path), **SHORT)
    lose_the_loss_of(trainer, step=9)
    with pytest.raises(FloatingPointError, match="loss of step 9 is nan.*learning_rate.*resume_from_checkpoint=True"):
        trainer.train()
    assert trainer.state.global_step == 9
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    saved = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in saved.values())
    going_on = killed_run.build(str(tmp_path), **SHORT)
    going_on.train(resume_from_checkpoint=True)
    assert going_on.state.global_step == 16


def test_the_scaler_of_fp16_leaves_the_step_out(tmp_path):
    trainer = killed_run.build(str(tmp_path), **SHORT)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # Accelerate makes one for fp16 on a GPU only
    lose_the_loss_of(trainer, step=9)
    trainer.train()
    assert trainer.state.global_step == 16
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


# ---- A process that dies ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path):
    changes = {**SHORT, "save_total_limit": 2}
    whole, broken = make_folders(tmp_path)
    finish(start_run(whole, 2, changes))
    processes = start_run(broken, 2, {**changes, "hold": "training 10", "held": 1})
    kill_in(processes[1:], broken, "training 10")
    before = time.monotonic()
    processes[0].join(120)
    assert time.monotonic() - before < 60
    assert processes[0].exitcode not in (0, None)
    assert last_whole_checkpoint(broken) == str(broken / "checkpoint-8")
    finish(start_run(broken, 2, changes))
    assert_same_result(whole, broken)
