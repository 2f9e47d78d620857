"""Resuming and best-model reload without any noise: every weight comes back (with noise, and killed: test_killed.py)."""

import pytest
import torch
from transformers import TrainingArguments

from hf_nullspace import NullspaceDataCollator
from hf_nullspace.training.checkpointing_trainer import CheckpointingTrainer


def build(make_vit, examples, folder, **changes):
    args = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=8,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        metric_for_best_model="loss",
        greater_is_better=True,  # the loss falls: an early one is the best
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **changes,
    )
    return CheckpointingTrainer(make_vit(), args, NullspaceDataCollator(), examples, examples[:10])


def assert_same_weights(first, second):
    second = second.state_dict()
    assert [name for name, weight in first.state_dict().items() if not torch.equal(weight, second[name])] == []


def test_resumed_and_best_weights_are_exact(make_vit, examples, tmp_path):
    whole = build(make_vit, examples, tmp_path / "a")
    whole.train()
    best = build(make_vit, examples, tmp_path / "b", load_best_model_at_end=True)
    best.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    found = best.state.best_model_checkpoint
    assert not found.endswith("checkpoint-6")
    assert_same_weights(best.model, type(best.model).from_pretrained(found))
    last = type(best.model).from_pretrained(tmp_path / "b" / "checkpoint-6")
    assert_same_weights(whole.model, last)


def test_a_checkpoint_that_is_not_whole_is_refused(make_vit, examples, tmp_path):
    build(make_vit, examples, tmp_path).train()
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    trainer = build(make_vit, examples, tmp_path)
    with pytest.raises(ValueError, match="checkpoint-6 is not whole.*last whole .*checkpoint-4"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
