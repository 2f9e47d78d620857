"""Killed at any moment and resumed, a run ends with the weights and the noise it would have had."""

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from kills import assert_same_result, kill_in, make_folders, phases_of, start_run, wait_for
from launching import begin_launch, finish

from hf_nullspace.training.checkpoints import last_whole_checkpoint


RUNS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "refresh at the save": {"noise_refresh_steps": 4},
    "best model": {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "load_best_model_at_end": True,
        "learning_rate": 0.05,
    },
    "two processes": {},
}
KINDS = ("training", "synthesis", "saving")
LAST_STEP = 30


def choose_moments(folder: Path, count: int, seed: int) -> list[tuple[str, float]]:
    """`count` moments in the order of the run, as `(phase, seconds since it began)`, as many in each kind of phase."""
    generator, told, lengths = random.Random(seed), phases_of(folder), {}
    for (begin, phase), (end, _) in zip(told, told[1:], strict=False):
        if not phase.endswith(f" {LAST_STEP}"):  # a run that is killed must not have ended before
            lengths.setdefault(phase, end - begin)
    chosen = []
    for index, kind in enumerate(KINDS):
        candidates = [phase for phase in lengths if phase.startswith(kind)]
        chosen += generator.sample(candidates, count // 3 + (index < count % 3))
    return [(phase, generator.uniform(0, lengths[phase])) for phase in lengths if phase in chosen]


def check_killed_run_ends_as_the_uninterrupted_one(tmp_path, name, signals, seed):
    changes, world = RUNS[name], 2 if name == "two processes" else 1
    whole, killed = make_folders(tmp_path)
    finish(start_run(whole, world, changes))
    died_in = Counter()
    for by, (phase, delay) in zip(signals, choose_moments(whole, len(signals), seed), strict=True):
        # The run waits at the end of that phase, so that a late signal does not miss it.
        found = kill_in(start_run(killed, world, {**changes, "hold": phase}), killed, phase, delay, by)
        assert found == phase
        died_in[found.split()[0].split("-")[0]] += 1
    assert died_in == dict.fromkeys(KINDS, len(signals) // 3)
    assert not (killed / "result.safetensors").exists()
    finish(start_run(killed, world, changes))
    assert_same_result(whole, killed)


@pytest.mark.slow
def test_killed_three_times(tmp_path):
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    check_killed_run_ends_as_the_uninterrupted_one(tmp_path, "plain", signals, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_twelve_times(tmp_path, name):
    check_killed_run_ends_as_the_uninterrupted_one(tmp_path, name, [signal.SIGKILL] * 12, seed=1)


@pytest.mark.slow
def test_ended_with_sigterm_six_times(tmp_path):
    check_killed_run_ends_as_the_uninterrupted_one(tmp_path, "plain", [signal.SIGTERM] * 6, seed=2)


def test_sigterm_saves_at_once_where_asked_to(tmp_path):
    """With `enable_jit_checkpoint`, Transformers' answer to SIGTERM: a checkpoint of the step it came in."""
    # That checkpoint is taken after the forward pass, hence with random states that dropout has drawn from.
    changes = {"enable_jit_checkpoint": True, "dropout": 0.0, "save_steps": 100, "max_steps": 16}
    whole, killed = make_folders(tmp_path)
    finish(start_run(whole, 1, changes))
    processes = start_run(killed, 1, changes)
    wait_for(killed, "training 9", 0, processes[0].is_alive)
    os.kill(processes[0].pid, signal.SIGTERM)
    finish(processes)
    assert not (killed / "result.safetensors").exists()
    saved = Path(last_whole_checkpoint(killed))
    assert 9 <= int(saved.name.split("-")[1]) < 16
    finish(start_run(killed, 1, changes))
    assert_same_result(whole, killed)


# ---- A process of several ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("victim, by", [("process-1", signal.SIGKILL), ("launcher", signal.SIGTERM)])
def test_launched_run_ends_and_goes_on(tmp_path, victim, by):
    """`accelerate launch` ends all processes when one dies, and when it is told to end."""
    script, changes = Path(__file__).parents[1] / "support" / "killed_run.py", RUNS["two processes"]
    whole, killed = make_folders(tmp_path)
    finish(start_run(whole, 2, changes))
    arguments = [str(killed), "2", json.dumps({**changes, "hold": "training 10", "held": 1})]
    with begin_launch(script, arguments, processes=2) as launcher:
        wait_for(killed, "training 10", 0, lambda: launcher.poll() is None)
        pids = [int((killed / f"process-{rank}.txt").read_text()) for rank in range(2)]
        os.kill({"process-1": pids[1], "launcher": launcher.pid}[victim], by)
        launcher.communicate(timeout=120)
        assert launcher.returncode not in (0, None)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert last_whole_checkpoint(killed) == str(killed / "checkpoint-8")
    arguments[-1] = json.dumps(changes)
    with begin_launch(script, arguments, processes=2) as launcher:
        _, errors = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, errors[-3000:]
    assert_same_result(whole, killed)
