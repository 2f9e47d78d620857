"""What a long command says of itself: its parts, and how long they will take."""

import logging
from types import SimpleNamespace

import pytest

from hf_nullspace.utils import phases
from hf_nullspace.utils.phases import PhaseBar, PhaseCallback, announced, in_words, logged_to_terminal


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (40.4, "40 s"), (99, "99 s"), (100, "2 min"), (725, "12 min"), (12000, "3 h 20 min")],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for `clock.now`."""
    now = SimpleNamespace(now=0.0)
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now.now)
    return now


@pytest.fixture(autouse=True)
def loud(caplog):
    caplog.set_level(logging.INFO, logger="hf_nullspace")


def train(callback: PhaseCallback, clock, seconds_of, first: int, last: int) -> None:
    state = SimpleNamespace(global_step=first, max_steps=last)
    callback.on_train_begin(None, state, None)
    for step in range(first, last):
        callback.on_step_begin(None, state, None)
        clock.now += seconds_of(step)
        state.global_step = step + 1
        callback.on_step_end(None, state, None)
    callback.on_train_end(None, state, None)


def test_the_time_left_counts_steps_and_rounds(clock, caplog):
    # A step takes 2 s; each of four rounds 60 s more.
    train(PhaseCallback("Training", round_steps=10), clock, lambda step: 2.0 + 60.0 * (step % 10 == 0), 0, 40)
    assert caplog.messages == [
        "Training: 40 steps, 4 rounds of noise synthesis ...",
        "Training: step 2 of 40, about 4 min left.",  # 38 steps of 2 s and 3 rounds of 60 s: 256 s
        "Training: 40 steps done in 5 min.",  # 320 s
    ]


def test_a_resumed_run_counts_what_is_left(clock, caplog):
    train(PhaseCallback("Training"), clock, lambda step: 0.1, 20, 40)
    assert caplog.messages == [
        "Training: 20 steps from step 20 on ...",
        "Training: step 31 of 40, about 1 s left.",
        "Training: 20 steps done in 2 s.",
    ]
    caplog.clear()
    train(PhaseCallback("Training"), clock, lambda step: 0.1, 40, 40)
    assert caplog.messages == ["Training: finished before, at step 40."]


def test_the_bar_says_what_runs(clock):
    names = []
    bar = SimpleNamespace(training_bar=SimpleNamespace(set_description=names.append))
    train(PhaseCallback("Plain finetuning", bar=bar), clock, lambda step: 1.0, 0, 3)
    assert names == ["Plain finetuning"]


def test_parts_are_announced(clock, caplog):
    with announced("Measuring", estimate=30.0):
        clock.now += 45
    assert caplog.messages == ["Measuring: about 30 s ...", "Measuring: done in 45 s."]


def test_the_package_is_heard_and_left_as_it_was(capsys):
    package = logging.getLogger("hf_nullspace")
    before = (package.level, list(package.handlers))
    with pytest.raises(RuntimeError), logged_to_terminal(logging.INFO):
        logging.getLogger("hf_nullspace.utils.phases").info("a line")
        logging.getLogger("hf_nullspace.utils.phases").debug("a detail")
        raise RuntimeError
    assert (package.level, package.handlers) == before
    assert capsys.readouterr().err.endswith(" INFO a line\n")


def test_a_log_has_a_line_a_part_and_the_time_left(clock, caplog):
    with PhaseBar("Measuring", 40, "pass") as bar:
        for part, steps in (("clean", 10), ("pgd", 30)):
            bar.begin(part)
            for _ in range(steps):
                clock.now += 2
                bar.update()
    assert caplog.messages == [
        "Measuring: 3 of 40 passes, about 74 s left.",  # once five seconds have passed
        "Measuring: clean done in 20 s; 10 of 40 passes, about 60 s left.",
        "Measuring: pgd done in 60 s; 40 of 40 passes.",
        "Measuring: 40 of 40 passes in 80 s.",
    ]


def test_a_phase_of_one_part_has_one_line(clock, caplog):
    with PhaseBar("Measuring", 1, "picture") as bar:
        bar.begin("clean")
        clock.now += 3
        bar.update()
    assert caplog.messages == ["Measuring clean: 1 of 1 picture in 3 s."]


def test_hidden_or_broken_off_progress_says_nothing(caplog, capsys):
    with PhaseBar("Measuring", 1, hidden=True) as bar:
        bar.update()
    with pytest.raises(RuntimeError), PhaseBar("Measuring", 1):
        raise RuntimeError
    assert caplog.messages == [] and capsys.readouterr().err == ""
