"""The moving average of the weights: its recursion, what training ends with, and what checkpoints hold of it."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.hub.manifest import publishable_files
from hf_nullspace.training.weight_average import AVERAGE_NAME, WeightAverage
from hf_nullspace.utils.checkpoint_files import LIST_NAME


DECAY = 0.75


class Recorder(TrainerCallback):
    """The weights after every step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})


@pytest.fixture
def model(make_vit):
    return make_vit()


@pytest.fixture
def examples(make_examples):
    return make_examples(32)


def settings(folder, args_class=NullspaceTrainingArguments, **changes):
    common = {"max_steps": 4, "per_device_train_batch_size": 8, "save_strategy": "no", "learning_rate": 1e-2}
    common |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return args_class(str(folder), **{**common, **changes})


def build(model, examples, folder, **changes):
    args = settings(folder, **{"ema_decay": DECAY, "noise_weight": 0.0, **changes})
    return NullspaceTrainer(copy.deepcopy(model), args, NullspaceDataCollator(), train_dataset=examples)


def averages(start, weights):
    """The recursion, by hand."""
    for current in weights:
        start = {name: DECAY * start[name] + (1 - DECAY) * weight for name, weight in current.items()}
    return start


def test_training_ends_with_the_recursion(model, examples, tmp_path):
    recorder, trainer = Recorder(), build(model, examples, tmp_path)
    trainer.add_callback(recorder)
    trainer.train()
    assert len(recorder.weights) == 4
    expected = averages(dict(model.named_parameters()), recorder.weights)
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6, msg=name)
        assert not torch.equal(weight, recorder.weights[-1][name]), name


def test_steps_are_those_of_training_without_an_average(model, examples, tmp_path):
    recorder, trainer = Recorder(), build(model, examples, tmp_path / "a")
    trainer.add_callback(recorder)
    plain = Trainer(
        copy.deepcopy(model),
        settings(tmp_path / "b", TrainingArguments, data_seed=42),
        NullspaceDataCollator(),
        train_dataset=examples,
    )
    trainer.train(), plain.train()
    for name, weight in plain.model.named_parameters():
        assert torch.equal(weight, recorder.weights[-1][name]), name


def test_a_second_run_averages_anew(model, examples, tmp_path):
    trainer = build(model, examples, tmp_path, max_steps=2)
    trainer.train()
    start, recorder = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}, Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    expected = averages(start, recorder.weights)
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6, msg=name)


def test_frozen_weights_have_no_average(model, examples, tmp_path):
    model.vit.requires_grad_(False)
    trainer = build(model, examples, tmp_path)
    trainer.train()
    assert set(trainer.weight_average.weights) == {"classifier.weight", "classifier.bias"}


class Thawing(TrainerCallback):
    """Trains the head alone, then the encoder too, then without the head's bias."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.vit.requires_grad_(state.global_step >= 2)

    def on_step_begin(self, args, state, control, model, **kwargs):
        model.vit.requires_grad_(state.global_step >= 2)
        model.classifier.bias.requires_grad_(state.global_step < 3)


def thawing(model, examples, folder, *recorders, **changes):
    trainer = build(model, examples, folder, **changes)
    for callback in (Thawing(), *recorders):
        trainer.callback_handler.callbacks.insert(0, callback)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.05)
    trainer.optimizer = optimizer
    return trainer


def test_weights_are_paired_by_name_when_layers_thaw(model, examples, tmp_path):
    recorder = Recorder()
    trainer = thawing(model, examples, tmp_path, recorder)
    trainer.train()
    start, after = dict(model.named_parameters()), recorder.weights
    for name, weight in trainer.model.named_parameters():
        first = 2 if name.startswith("vit.") else 0  # averaged from the step before which it was thawed
        expected = (after[first - 1][name] if first else start[name]).double()
        for step in range(first, 4):
            expected = DECAY * expected + (1 - DECAY) * after[step][name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6, msg=name)
    assert not torch.equal(after[1]["vit.layernorm.weight"], after[3]["vit.layernorm.weight"])


def test_a_run_with_thawed_layers_resumes(model, examples, tmp_path):
    whole = thawing(model, examples, tmp_path / "a", save_strategy="steps", save_steps=3)
    whole.train()
    resumed = thawing(model, examples, tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(weight, other[1]), name


def test_half_precision_is_averaged_in_full(model):
    average, model = WeightAverage(0.999), model.to(torch.bfloat16)
    average.on_train_begin(None, None, None, model)
    with torch.no_grad():
        model.classifier.bias.fill_(1.0)
    for _ in range(100):  # each step is below the spacing of bfloat16 at 1
        average.on_step_end(None, None, None, model)
    average.on_train_end(None, None, None, model)
    expected = torch.full_like(model.classifier.bias, 1 - 0.999**100)
    torch.testing.assert_close(model.classifier.bias, expected)


# ---- Checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(model, examples, tmp_path):
    build(model, examples, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2).train()
    return tmp_path / "run" / "checkpoint-2"


def test_a_checkpoint_holds_weights_and_average(model, examples, tmp_path, checkpoint):
    trainer = build(model, examples, tmp_path / "again", max_steps=2)
    trainer.train()
    held = load_file(checkpoint / AVERAGE_NAME)
    assert held.keys() == dict(model.named_parameters()).keys()
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(held[name], weight), name
    trained = type(model).from_pretrained(checkpoint)
    assert not torch.equal(trained.classifier.weight, held["classifier.weight"])
    assert AVERAGE_NAME not in publishable_files(checkpoint)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def replace_by_another(path):
    save_file({"weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.unlink(), FileNotFoundError, f"has no {AVERAGE_NAME}: it was trained without `ema_decay`"),
        (cut, ValueError, f"{AVERAGE_NAME} in .* is damaged"),
        (replace_by_another, ValueError, "holds the weights of another model"),
    ],
)
def test_a_checkpoint_without_its_average_is_refused(model, examples, tmp_path, checkpoint, damage, error, message):
    damage(checkpoint / AVERAGE_NAME)
    with pytest.raises(ValueError, match=f"not whole: .*{AVERAGE_NAME}"):
        build(model, examples, tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / LIST_NAME).unlink()  # as one of an older version
    with pytest.raises(error, match=message):
        build(model, examples, tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))
