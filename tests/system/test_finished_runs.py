"""A run that is finished is finished: resuming it trains nothing and changes nothing."""

import copy

import killed_run
import pytest
import torch
from adversarial_runs import adversarial
from quick_cases import others_slow
from transformers import EarlyStoppingCallback

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.baselines.adversarial import AdversarialTrainer, TradesTrainer
from hf_nullspace.training.weight_average import WeightAverageCallback


# Sixteen steps in a pass, so that 6 and 21 end in the middle of one; a round of 3 steps would be due at step 6.
RUN = {"max_steps": 6, "noise_refresh_steps": 3, "save_steps": 100, "save_total_limit": None}
RUNS = {
    "steps": {},
    "second pass": {"max_steps": 21, "noise_refresh_steps": 7, "noise_weight": 0.5},
    "epochs": {"max_steps": -1, "num_train_epochs": 1.25, "noise_refresh_steps": 10},
    "whole epochs": {"max_steps": -1, "num_train_epochs": 1, "save_strategy": "epoch"},
    "plain": {"noise_weight": 0.0},
    "average": {},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 9},
    "best model": {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "learning_rate": 0.05,
    },
}


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.glob("checkpoint-*/*")
        if path.name != "training_args.bin"
    }


def state_of(trainer):
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    state = {**vars(trainer.state), "log_history": trainer.state.log_history}
    ended = [row for row in state["log_history"] if "train_runtime" not in row]
    return weights, {**state, "log_history": ended}, trainer.optimizer.state_dict(), trainer.lr_scheduler.state_dict()


def check_resumed_run_is_unchanged(build, folder):
    trainer = build()
    step = trainer.train().global_step
    weights, state, optimizer, schedule = copy.deepcopy(state_of(trainer))
    noise, history = trainer.noise, copy.deepcopy(trainer.noise_history)
    before = files_of(folder)
    for given in (True, str(folder / f"checkpoint-{step}")):
        resumed = build()
        output = resumed.train(resume_from_checkpoint=given)
        assert output.global_step == step
        assert "train_loss" not in output.metrics  # of no step
        found_weights, found_state, found_optimizer, found_schedule = state_of(resumed)
        assert weights.keys() == found_weights.keys()
        assert [name for name in weights if not torch.equal(weights[name], found_weights[name])] == []
        assert found_state == state
        assert found_state["log_history"] == resumed.state.log_history
        torch.testing.assert_close(found_optimizer, optimizer, rtol=0, atol=0)
        assert found_schedule == schedule
        assert resumed.noise_history == history
        assert noise is None or torch.equal(resumed.noise.tensor, noise.tensor)
        assert files_of(folder) == before


@pytest.mark.parametrize("name", others_slow(RUNS, ["second pass", "average", "best model"]))
def test_nothing_changes(tmp_path, name):
    def build():
        callbacks = [WeightAverageCallback(0.5)] if name == "average" else []
        return killed_run.build(str(tmp_path), callbacks=callbacks, **{**RUN, **RUNS[name]})

    check_resumed_run_is_unchanged(build, tmp_path)


@pytest.mark.parametrize("trainer_class", [AdversarialTrainer, TradesTrainer])
def test_nothing_changes_in_adversarial_training(make_vit, make_pictures, tmp_path, trainer_class):
    def build():
        changes = {"max_steps": 3, "adversarial_steps": 1, "save_strategy": "steps", "save_steps": 100}
        return adversarial(trainer_class, make_vit(), make_pictures(64), tmp_path, **changes)

    check_resumed_run_is_unchanged(build, tmp_path)


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(tmp_path):
    killed_run.build(str(tmp_path), **RUN).train()
    longer = killed_run.build(str(tmp_path), **{**RUN, "max_steps": 8, "lr_scheduler_type": "constant"})
    assert longer.train(resume_from_checkpoint=True).global_step == 8


def test_fewer_steps_than_there_were_train_nothing(tmp_path):
    killed_run.build(str(tmp_path), **RUN).train()
    assert (
        killed_run.build(str(tmp_path), **{**RUN, "max_steps": 4}).train(resume_from_checkpoint=True).global_step == 6
    )


class TestEarlyStopping:
    """Counts on where it was, and a run that it stopped is finished."""

    def build(self, folder, model, examples, patience=2, max_steps=20):
        args = NullspaceTrainingArguments(
            str(folder),
            max_steps=max_steps,
            noise_weight=0.0,
            per_device_train_batch_size=4,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            learning_rate=0.0,  # the loss never gets better than the first one
            metric_for_best_model="loss",
            greater_is_better=False,
            load_best_model_at_end=True,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        callbacks = [EarlyStoppingCallback(patience)]
        return NullspaceTrainer(model, args, NullspaceDataCollator(), examples, examples[:8], callbacks=callbacks)

    def test_stopped_is_finished(self, make_vit, examples, tmp_path):
        assert self.build(tmp_path, make_vit(), examples).train().global_step == 6
        assert self.build(tmp_path, make_vit(), examples).train(resume_from_checkpoint=True).global_step == 6

    def test_it_counts_on(self, make_vit, examples, tmp_path):
        self.build(tmp_path, make_vit(), examples).train()
        earlier = str(tmp_path / "checkpoint-4")
        assert self.build(tmp_path, make_vit(), examples).train(resume_from_checkpoint=earlier).global_step == 6

    def test_more_patience_goes_on(self, make_vit, examples, tmp_path):
        self.build(tmp_path, make_vit(), examples).train()
        assert self.build(tmp_path, make_vit(), examples, 4).train(resume_from_checkpoint=True).global_step == 10
