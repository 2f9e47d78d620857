"""Killed with SIGKILL at any moment and resumed, a run ends with the weights and the noise it would have had."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from launching import free_port
from safetensors.torch import load_file


# Forks a server that has imported everything, so that a run starts in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_nullspace", "transformers.models.vit.modeling_vit"])

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


def start(folder: Path, world: int, changes: dict, linger: float) -> list:
    import killed_run

    port = free_port()
    processes = [
        CONTEXT.Process(target=killed_run.main, args=(str(folder), rank, world, port, linger, changes))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list) -> None:
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def events_of(folder: Path) -> list[str]:
    path = folder / "events.txt"
    return path.read_text().splitlines() if path.exists() else []


def kill_at(processes: list, folder: Path, event: str, delay: float) -> None:
    """Sends SIGKILL to every process of a run, `delay` seconds after it told of `event`."""
    already = len(events_of(folder))
    deadline = time.monotonic() + 300
    while event not in events_of(folder)[already:]:
        assert all(process.is_alive() for process in processes), f"the run ended before {event!r}"
        assert time.monotonic() < deadline, f"{event!r} did not come"
        time.sleep(0.002)
    time.sleep(delay)
    for process in processes:
        process.kill()
    for process in processes:
        process.join(60)
    assert {process.exitcode for process in processes} == {-signal.SIGKILL}


def choose_moments(events: list[str], count: int, seed: int) -> list[str]:
    """`count` events in the order of the run, as many of each kind."""
    generator = random.Random(seed)
    chosen = []
    for index, kind in enumerate(KINDS):
        candidates = sorted({event for event in events if event.startswith(kind)}, key=events.index)
        # Not the final step: a run that is killed must not have ended before.
        chosen += generator.sample(candidates, count // 3 + (index < count % 3))
    return sorted(chosen, key=events.index)


def check_killed_run_ends_as_the_uninterrupted_one(tmp_path, name, kills, seed):
    changes, world = RUNS[name], 2 if name == "two processes" else 1
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    finish(start(whole, world, changes, linger=0.0))
    generator = random.Random(seed)
    for event in choose_moments(events_of(whole), kills, seed):
        kill_at(start(killed, world, changes, linger=0.01), killed, event, generator.uniform(0, 0.02))
    assert not (killed / "result.safetensors").exists()
    finish(start(killed, world, changes, linger=0.0))
    expected, found = (load_file(folder / "result.safetensors") for folder in (whole, killed))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", ["plain"])
def test_killed_three_times(tmp_path, name):
    check_killed_run_ends_as_the_uninterrupted_one(tmp_path, name, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_twelve_times(tmp_path, name):
    check_killed_run_ends_as_the_uninterrupted_one(tmp_path, name, kills=12, seed=1)
