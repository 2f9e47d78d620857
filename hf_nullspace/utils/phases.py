"""Progress of long commands: bars on a terminal; in a log a line a phase, and one when its duration can be estimated."""

from __future__ import annotations

import logging as python_logging
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerControl, TrainerState
from transformers.utils import logging


logger = logging.get_logger(__name__)

# An estimate is made after so many steps, or after so many seconds if steps are slow.
ESTIMATE_STEPS = 10
ESTIMATE_SECONDS = 5.0


def in_words(seconds: float) -> str:
    """A time as people say it: `"40 s"`, `"12 min"`, `"3 h 20 min"`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def announce(text: str) -> None:
    """Logs a line, once for all processes."""
    if PartialState().is_main_process:
        logger.info(text)


@contextmanager
def announced(name: str, estimate: float | None = None) -> Iterator[None]:
    """Logs a line before a part of the work, with its estimate in seconds, and one after it."""
    announce(f"{name}" + (f": about {in_words(estimate)}" if estimate is not None else "") + " ...")
    start = time.perf_counter()
    yield
    announce(f"{name}: done in {in_words(time.perf_counter() - start)}.")


class PhaseBar:
    """
    Progress of a phase: on a terminal a bar, which says what runs, how far it is and how long it still takes. Elsewhere,
    where every update of a bar would be a line, one line when a part or the phase is done, and once how long it will take.

    Args:
        name (`str`): What runs.
        total (`int`): Its steps.
        unit (`str`, *optional*, defaults to `"step"`): What a step is.
        hidden (`bool`, *optional*, defaults to `False`): Whether to show neither.
    """

    def __init__(self, name: str, total: int, unit: str = "step", hidden: bool = False):
        self.name = name
        self.total = total
        self.units = unit if total == 1 else f"{unit}es" if unit.endswith("s") else f"{unit}s"
        self.done = 0
        self._part: str | None = None
        self._parts = 0
        self._in_log = not hidden and not sys.stderr.isatty()
        self._start = self._part_start = time.perf_counter()
        self._is_estimated = False
        self._bar = tqdm(
            total=total, desc=name, unit=unit, unit_scale=True, leave=False, disable=hidden or self._in_log
        )

    def __enter__(self) -> PhaseBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._bar.close()
        if kind is None and self._in_log:
            if self._parts > 1:
                self._end_part()
            took = in_words(time.perf_counter() - self._start)
            name = f"{self.name} {self._part}" if self._parts == 1 else self.name
            logger.info(f"{name}: {self.done} of {self.total} {self.units} in {took}.")

    def begin(self, part: str) -> None:
        """Names the part of the phase that runs from now on."""
        if part == self._part:
            return
        self._end_part()
        self._part = part
        self._parts += 1
        self._part_start = time.perf_counter()
        self._bar.set_description(f"{self.name}: {part}")

    def update(self, steps: int = 1) -> None:
        """Counts finished steps."""
        self.done += steps
        self._bar.update(steps)
        if self._in_log and not self._is_estimated and time.perf_counter() - self._start >= ESTIMATE_SECONDS:
            self._is_estimated = True
            if 0 < self.done < self.total:
                logger.info(f"{self.name}: {self._progress()}.")

    def _end_part(self) -> None:
        if self._in_log and self._part is not None:
            took = in_words(time.perf_counter() - self._part_start)
            logger.info(f"{self.name}: {self._part} done in {took}; {self._progress()}.")

    def _progress(self) -> str:
        """How far it is, and how long it takes at the pace so far."""
        far = f"{self.done} of {self.total} {self.units}"
        if not 0 < self.done < self.total:
            return far
        left = (time.perf_counter() - self._start) * (self.total - self.done) / self.done
        return f"{far}, about {in_words(left)} left"


class PhaseCallback(TrainerCallback):
    """
    Announces a training: its steps when it begins, the time that is left once some were timed, and its end.

    Args:
        name (`str`): What is trained, for the lines and the progress bar.
        round_steps (`int`, *optional*): Steps between two noises, the first of which takes longer.
        bar ([`~transformers.trainer_callback.ProgressCallback`], *optional*): Whose bar shall have the name.
    """

    def __init__(self, name: str, round_steps: int | None = None, bar: ProgressCallback | None = None):
        self.name = name
        self.round_steps = round_steps
        self.bar = bar

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._first = state.global_step
        self._start = time.perf_counter()
        self._plain_steps: list[float] = []
        self._round_steps: list[float] = []
        self._is_estimated = False
        steps = state.max_steps - state.global_step
        if steps <= 0:
            return announce(f"{self.name}: finished before, at step {state.global_step}.")
        done = f" from step {state.global_step} on" if state.global_step else ""
        rounds = self._rounds(state.global_step, state.max_steps)
        noises = f", {rounds} round{'s' if rounds != 1 else ''} of noise synthesis" if self.round_steps else ""
        announce(f"{self.name}: {steps} step{'s' if steps != 1 else ''}{done}{noises} ...")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._step_start = time.perf_counter()
        if self.bar is not None and self.bar.training_bar is not None and state.global_step == self._first:
            self.bar.training_bar.set_description(self.name)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._is_estimated:
            return
        now = time.perf_counter()
        is_first = state.global_step - 1 == self._first
        begins_round = bool(self.round_steps) and (is_first or (state.global_step - 1) % self.round_steps == 0)
        (self._round_steps if begins_round else self._plain_steps).append(now - self._step_start)
        count = state.global_step - self._first
        if not self._plain_steps or (count <= ESTIMATE_STEPS and now - self._start < ESTIMATE_SECONDS):
            return
        self._is_estimated = True
        left = self.seconds_left(state.global_step, state.max_steps)
        if state.global_step < state.max_steps:
            announce(f"{self.name}: step {state.global_step} of {state.max_steps}, about {in_words(left)} left.")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        steps = state.global_step - self._first
        if steps > 0:
            announce(f"{self.name}: {steps} steps done in {in_words(time.perf_counter() - self._start)}.")

    def seconds_left(self, step: int, max_steps: int) -> float:
        """Estimated seconds of the remaining steps, from the steps that were timed."""
        pace = statistics.median(self._plain_steps)
        synthesis = max(0.0, statistics.mean(self._round_steps) - pace) if self._round_steps else 0.0
        return (max_steps - step) * pace + self._rounds(step, max_steps) * synthesis

    def _rounds(self, step: int, max_steps: int) -> int:
        """Number of rounds that begin at `step` or later. A run that resumes within a round already has its noise."""
        if not self.round_steps:
            return 0
        return math.ceil(max_steps / self.round_steps) - math.ceil(step / self.round_steps)


def bar_of(trainer: Trainer) -> ProgressCallback | None:
    """The trainer's progress bar, if it has one."""
    bars = [each for each in trainer.callback_handler.callbacks if isinstance(each, ProgressCallback)]
    return bars[0] if bars else None


@contextmanager
def logged_to_terminal(level: int) -> Iterator[None]:
    """Prints what this package logs at `level` or above inside the `with` block, whatever other loggers do."""
    root = python_logging.getLogger(__package__.partition(".")[0])
    handler = python_logging.StreamHandler(sys.stderr)
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


@contextmanager
def progress_shown() -> Iterator[None]:
    """For a command: this package's lines on stderr, and the bars of other packages on a terminal only."""
    with logged_to_terminal(python_logging.INFO), without_bars(not sys.stderr.isatty()):
        yield


@contextmanager
def without_bars(hidden: bool) -> Iterator[None]:
    """If `hidden`, turns off the progress bars of Transformers and Datasets: in a log, every update is a line."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = (logging.is_progress_bar_enabled(), not are_progress_bars_disabled())
    if hidden:
        logging.disable_progress_bar()
        disable_progress_bars()
    try:
        yield
    finally:
        if shown[0]:
            logging.enable_progress_bar()
        if shown[1]:
            enable_progress_bars()
