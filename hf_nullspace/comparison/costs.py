"""What a step of each row costs: measured alternately in one process, so that a busy machine slows all rows alike."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from ..noise.nullspace_noise import NullspaceNoise
from ..training.trainer import NullspaceTrainer
from ..utils.files import write_text


COSTS_NAME = "costs.json"
# Each row takes so many steps in a turn at most, after one that is not counted, and has so many turns.
TIMED_STEPS = 5
TURNS = 3


@dataclass(frozen=True)
class Cost:
    """
    The time that training takes.

    Args:
        step (`float`): Seconds of a step.
        synthesis (`float`): Seconds of the search for the noise of a round; 0 without noise.
        round_steps (`int`): Steps of a round.
    """

    step: float
    synthesis: float = 0.0
    round_steps: int = 1

    def seconds(self, steps: int) -> float:
        """Time of so many steps, with the rounds that begin in them."""
        return steps * self.step + self.synthesis_seconds(steps)

    def synthesis_seconds(self, steps: int) -> float:
        """Time of the rounds that begin in so many steps."""
        return math.ceil(steps / self.round_steps) * self.synthesis

    def steps_within(self, seconds: float) -> int:
        """As many steps as fit into a time, and at least one."""
        most = math.floor(seconds / self.step) + 1
        return max(1, bisect_right(range(1, most + 1), seconds * (1 + 1e-9), key=self.seconds))


class StepTimer(TrainerCallback):
    """Notes when the first step began, and when each step ended."""

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self.ends = [_now()]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(_now())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_costs(
    make_trainer: Callable[[str], NullspaceTrainer], rounds: Mapping[str, int | None], turns: int | None = None
) -> dict[str, Cost]:
    """
    Trains each row for a few steps in turn, several times, and takes medians over the turns. A row searches for its noise in
    its first turn only: in the others it would find the same one.

    Args:
        make_trainer (`Callable[[str], NullspaceTrainer]`): Makes a new trainer of a row, of two steps at least, and of the same
            weights and images each time.
        rounds (`Mapping[str, int | None]`): For each row the steps of a round of noise; `None` without noise.
        turns (`int`, *optional*, defaults to 3): Turns of each row.
    """
    steps: dict[str, list[float]] = {name: [] for name in rounds}
    firsts: dict[str, float] = {}
    noise: dict[str, NullspaceNoise | None] = {}
    for _ in range(TURNS if turns is None else turns):
        for name in rounds:
            trainer = make_trainer(name)
            timer = StepTimer()
            trainer.add_callback(timer)
            trainer.known_noise = noise.get(name)
            trainer.train()
            begin, first, *ends = timer.ends
            steps[name].append((ends[-1] - first) / len(ends))  # with the time that reading the images takes
            firsts.setdefault(name, first - begin)
            noise[name] = trainer.noise
    costs = {}
    for name, round_steps in rounds.items():
        step = median(steps[name])
        synthesis = 0.0 if round_steps is None else max(0.0, firsts[name] - step)
        costs[name] = Cost(step, synthesis, round_steps or 1)
    return costs


class CostFile:
    """
    The costs of rows on disk, by the hash of their settings. Rows that are measured later are measured beside the
    reference again, and scaled to its first cost, so a machine that became slower does not count.

    Args:
        folder (`Path`): Folder of the comparison.
        reference (`str`): Hash of the settings of the row that is always measured.
    """

    def __init__(self, folder: Path, reference: str):
        self.path = folder / COSTS_NAME
        self.reference = reference
        self.costs: dict[str, Cost] = {}
        if self.path.is_file():
            try:
                values = json.loads(self.path.read_text(encoding="utf-8"))
                self.costs = {key: Cost(**cost) for key, cost in values.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path} is damaged: {error!r}. Delete it, and the folder `runs`.") from error

    def missing(self, keys: Mapping[str, str]) -> list[str]:
        """The rows to measure, of hashes by row: those that are not known, and then the reference first."""
        first_of = {key: name for name, key in reversed(list(keys.items()))}  # rows of the same settings cost the same
        unknown = [key for key in dict.fromkeys(keys.values()) if key not in self.costs]
        others = [first_of[key] for key in unknown if key != self.reference]
        return [first_of[self.reference], *others] if unknown else []

    def add(self, measured: Mapping[str, Cost]) -> None:
        """Adds the costs that were measured together, by hash, and writes the file."""
        known = self.costs.get(self.reference)
        scale = 1.0 if known is None else known.step / measured[self.reference].step
        for key, cost in measured.items():
            self.costs.setdefault(key, Cost(scale * cost.step, scale * cost.synthesis, cost.round_steps))
        if PartialState().is_main_process:
            values: dict[str, Any] = {key: asdict(cost) for key, cost in self.costs.items()}
            write_text(self.path, json.dumps(values, indent=2) + "\n")


def mean_cost(costs: list[Cost]) -> Cost:
    """The cost that several processes agree on."""
    return Cost(fmean(cost.step for cost in costs), fmean(cost.synthesis for cost in costs), costs[0].round_steps)
