"""What a step costs: measured in turn, kept on disk, and the steps that follow from it."""

import time

import pytest
from trainer_runs import arguments, build

from hf_nullspace import NullspaceTrainer
from hf_nullspace.comparison.costs import COSTS_NAME, TIMED_STEPS, Cost, CostFile, mean_cost, measure_costs


def test_steps_are_the_most_that_fit():
    plain, nullspace = Cost(0.1), Cost(0.2, synthesis=1.0, round_steps=4)
    assert [nullspace.seconds(steps) for steps in (1, 4, 5, 8)] == pytest.approx([1.2, 1.8, 3.0, 3.6])
    for steps in (1, 7, 30, 1000):
        assert plain.steps_within(plain.seconds(steps)) == steps
        assert nullspace.steps_within(nullspace.seconds(steps)) == steps
    assert [nullspace.steps_within(seconds) for seconds in (0.1, 1.79, 2.9, 2.999, 3.0)] == [1, 3, 4, 4, 5]
    assert mean_cost([Cost(0.1, 1.0, 4), Cost(0.3, 2.0, 4)]) == Cost(pytest.approx(0.2), pytest.approx(1.5), 4)


class SlowTrainer(NullspaceTrainer):
    """Each step waits, and the first of a round longer."""

    def training_step(self, *args, **kwargs):
        time.sleep(0.2 if self.state.global_step == 0 and "noisy" in self.args.output_dir else 0.02)
        return super().training_step(*args, **kwargs)


def test_rows_take_turns_and_a_round_is_told_from_its_steps(make_vit, examples, tmp_path):
    order = []

    def make_trainer(name):
        order.append(name)
        args = arguments(tmp_path / name, max_steps=TIMED_STEPS + 1, noise_weight=0.0)
        return build(make_vit(), examples, args, SlowTrainer if name != "fast" else NullspaceTrainer)

    costs = measure_costs(make_trainer, {"fast": None, "slow": None, "noisy": 40}, turns=2)
    assert order == ["fast", "slow", "noisy"] * 2
    assert costs["slow"].step > 0.02 and costs["slow"].synthesis == 0 and costs["slow"].round_steps == 1
    assert costs["noisy"].synthesis > 0.1 and costs["noisy"].round_steps == 40
    assert costs["fast"].step < costs["slow"].step


def test_costs_are_kept_and_later_rows_are_scaled_to_the_first(tmp_path):
    keys = {"plain": "a", "pgd": "b", "sam": "c"}
    file = CostFile(tmp_path, "a")
    assert file.missing({"plain": "a", "pgd": "b"}) == ["plain", "pgd"]
    file.add({"a": Cost(0.1), "b": Cost(0.4)})
    file = CostFile(tmp_path, "a")
    assert file.missing({"plain": "a", "pgd": "b"}) == [] and file.missing(keys) == ["plain", "sam"]
    file.add({"a": Cost(0.2), "c": Cost(0.5, 2.0, 8)})  # the machine is half as fast now
    assert CostFile(tmp_path, "a").costs == {"a": Cost(0.1), "b": Cost(0.4), "c": Cost(0.25, 1.0, 8)}
    (tmp_path / COSTS_NAME).write_text("[1]")
    with pytest.raises(ValueError, match="costs.json is damaged"):
        CostFile(tmp_path, "a")
