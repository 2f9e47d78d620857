"""Runs that are killed, and started again."""

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import killed_run
import torch
from launching import start
from safetensors.torch import load_file


def start_run(folder: Path, world: int, changes: dict) -> list[BaseProcess]:
    return start(killed_run.train, world, str(folder), world, changes)


def phases_of(folder: Path) -> list[tuple[float, str]]:
    """When the run passed into which phase, as `(seconds, "kind step")`."""
    path = folder / "phases.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(seconds), phase) for seconds, phase in (line.split(" ", 1) for line in lines)]


def wait_for(folder: Path, phase: str, already: int, is_running) -> None:
    """Returns once a run that has told of `already` phases tells of `phase`."""
    deadline = time.monotonic() + 300
    while all(found != phase for _, found in phases_of(folder)[already:]):
        assert is_running(), f"the run ended before {phase!r}"
        assert time.monotonic() < deadline, f"{phase!r} did not come"
        time.sleep(0.002)


def kill_in(
    processes: list[BaseProcess], folder: Path, phase: str, delay: float = 0.0, by: int = signal.SIGKILL
) -> str:
    """Sends a signal to every process of a run `delay` seconds after it came into `phase`; says what it was in."""
    already = len(phases_of(folder))
    wait_for(folder, phase, already, lambda: all(process.is_alive() for process in processes))
    time.sleep(delay)
    for process in processes:
        os.kill(process.pid, by)
    for process in processes:
        process.join(60)
    assert {process.exitcode for process in processes} == {-by}
    return phases_of(folder)[-1][1]


def assert_same_result(first: Path, second: Path) -> None:
    left, right = (load_file(folder / "result.safetensors") for folder in (first, second))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def make_folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    return folders
