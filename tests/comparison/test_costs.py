"""What a step costs: measured in turn, kept on disk, and the steps that follow from it."""

import time

import pytest
from trainer_runs import arguments, assert_same_weights, build

from hf_nullspace import NullspaceTrainer, synthesize_noise
from hf_nullspace.comparison.costs import COSTS_NAME, TIMED_STEPS, Cost, CostFile, mean_cost, measure_costs
from hf_nullspace.training import noise_rounds


def test_steps_are_the_most_that_fit():
    plain, nullspace = Cost(0.1), Cost(0.2, synthesis=1.0, round_steps=4)
    assert [nullspace.seconds(steps) for steps in (1, 4, 5, 8)] == pytest.approx([1.2, 1.8, 3.0, 3.6])
    for steps in (1, 7, 30, 1000):
        assert plain.steps_within(plain.seconds(steps)) == steps
        assert nullspace.steps_within(nullspace.seconds(steps)) == steps
    assert [nullspace.steps_within(seconds) for seconds in (0.1, 1.79, 2.9, 2.999, 3.0)] == [1, 3, 4, 4, 5]
    assert mean_cost([Cost(0.1, 1.0, 4), Cost(0.3, 2.0, 4)]) == Cost(pytest.approx(0.2), pytest.approx(1.5), 4)


class ClockedTrainer(NullspaceTrainer):
    """Each step takes 2 seconds of a clock of its own, or 1 where the row is fast; the first of a round 9 more."""

    seconds = 0.0

    def training_step(self, *args, **kwargs):
        ClockedTrainer.seconds += 1 if "fast" in self.args.output_dir else 2
        if self.state.global_step == 0 and "noisy" in self.args.output_dir:
            ClockedTrainer.seconds += 9
        return super().training_step(*args, **kwargs)


def test_rows_take_turns_and_a_round_is_told_from_its_steps(make_vit, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: ClockedTrainer.seconds)
    order = []

    def make_trainer(name):
        order.append(name)
        args = arguments(tmp_path / name, max_steps=TIMED_STEPS + 1, noise_weight=0.0)
        return build(make_vit(), examples, args, ClockedTrainer)

    costs = measure_costs(make_trainer, {"fast": None, "slow": None, "noisy": 40}, turns=2)
    assert order == ["fast", "slow", "noisy"] * 2
    assert costs == {"fast": Cost(1.0), "slow": Cost(2.0), "noisy": Cost(2.0, 9.0, 40)}


def test_noise_is_searched_for_once_and_trained_on_in_every_turn(make_vit, examples, tmp_path, monkeypatch):
    trainers, searches = [], []

    def counted(*args, **kwargs):
        searches.append(synthesize_noise(*args, **kwargs))
        return searches[-1]

    monkeypatch.setattr(noise_rounds, "synthesize_noise", counted)

    def make_trainer(name):
        trainers.append(build(make_vit(classifier_scale=20), examples, arguments(tmp_path / name, max_steps=3)))
        return trainers[-1]

    measure_costs(make_trainer, {"nullspace": 40}, turns=3)
    assert len(searches) == 1 and all(trainer.noise is searches[0] for trainer in trainers)
    for trainer in trainers[1:]:
        assert_same_weights(trainer.model, trainers[0].model)


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
