"""The moving average of the weights, in `Trainer` and `NullspaceTrainer`: its recursion, its end, its checkpoints."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.hub.manifest import publishable_files
from hf_nullspace.training.weight_average import AVERAGE_NAME, WeightAverageCallback
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


KINDS = {
    "plain": (Trainer, TrainingArguments, {"data_seed": 42}),
    "nullspace": (NullspaceTrainer, NullspaceTrainingArguments, {"noise_weight": 0.0}),
}
BOTH = pytest.mark.parametrize("kind", KINDS)


def build(model, examples, folder, kind="nullspace", callbacks=None, eval_dataset=None, **changes):
    trainer_class, args_class, own = KINDS[kind]
    args = settings(folder, args_class, **{**own, **changes})
    callbacks = [WeightAverageCallback(DECAY)] if callbacks is None else callbacks
    return trainer_class(
        copy.deepcopy(model), args, NullspaceDataCollator(), examples, eval_dataset, callbacks=callbacks
    )


def average_of(trainer):
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, WeightAverageCallback))


def averages(start, weights):
    """The recursion, by hand."""
    for current in weights:
        start = {name: DECAY * start[name] + (1 - DECAY) * weight for name, weight in current.items()}
    return start


@BOTH
def test_training_ends_with_the_recursion(model, examples, tmp_path, kind):
    recorder, trainer = Recorder(), build(model, examples, tmp_path, kind)
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
    plain = build(model, examples, tmp_path / "b", "plain", callbacks=[])
    trainer.train(), plain.train()
    for name, weight in plain.model.named_parameters():
        assert torch.equal(weight, recorder.weights[-1][name]), name


@BOTH
def test_a_second_run_averages_anew(model, examples, tmp_path, kind):
    trainer = build(model, examples, tmp_path, kind, max_steps=2)
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
    assert set(average_of(trainer).weights) == {"classifier.weight", "classifier.bias"}


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
    average, model = WeightAverageCallback(), model.to(torch.bfloat16)
    average.on_step_begin(None, None, None, model)
    with torch.no_grad():
        model.classifier.bias.fill_(1.0)
    for _ in range(100):  # each step is below the spacing of bfloat16 at 1
        average.on_step_end(None, None, None, model)
    average.on_train_end(None, None, None, model)
    expected = torch.full_like(model.classifier.bias, 1 - 0.999**100)
    torch.testing.assert_close(model.classifier.bias, expected)


# ---- Checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture
def kind():
    return "nullspace"


@pytest.fixture
def checkpoint(model, examples, tmp_path, kind):
    build(model, examples, tmp_path / "run", kind, max_steps=2, save_strategy="steps", save_steps=2).train()
    return tmp_path / "run" / "checkpoint-2"


class Linear(torch.nn.Module):
    """A model that a plain `Trainer` resumes: it reads the file of a ViT under other names than the live weights have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Linear(8, 5)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.patches(pixel_values).flatten(2).mean(-1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@BOTH
@pytest.mark.parametrize("model", [Linear()], ids=["linear"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(model, examples, tmp_path, kind):
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    saves = {"save_strategy": "steps", "save_steps": 2, "resume_from_checkpoint": str(checkpoint)}
    whole, resumed = (build(model, examples, tmp_path / name, kind, **saves) for name in ("whole", "resumed"))
    whole.train(), resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    held = [load_file(tmp_path / name / "checkpoint-4" / AVERAGE_NAME) for name in ("whole", "resumed")]
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])
    assert (resumed.args.resume_from_checkpoint, average_of(resumed).decay) == (str(checkpoint), DECAY)


@BOTH
def test_a_checkpoint_in_the_output_folder_is_found(model, examples, tmp_path, kind, checkpoint):
    resumed = build(model, examples, tmp_path / "run", kind)
    assert resumed.train(resume_from_checkpoint=True).global_step == 4


def test_the_average_of_another_checkpoint_is_refused(model, examples, tmp_path):
    """A plain trainer does not say what it resumes from, and one of the same step lies in the output folder."""
    saves = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    for name in ("run", "other"):
        build(model, examples, tmp_path / name, "plain", **saves).train()
    resumed = build(model, examples, tmp_path / "run", "plain")
    with pytest.raises(
        ValueError, match="is not of the checkpoint that is resumed from. Set `resume_from_checkpoint`"
    ):
        resumed.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-2"))


def test_only_models_have_no_average_beside_them(model, examples, tmp_path):
    build(model, examples, tmp_path, "plain", save_strategy="steps", save_steps=2, save_only_model=True).train()
    assert not list(tmp_path.rglob(AVERAGE_NAME))


@BOTH
def test_a_checkpoint_holds_weights_and_average(model, examples, tmp_path, kind, checkpoint):
    trainer = build(model, examples, tmp_path / "again", kind, max_steps=2)
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
        (
            lambda path: path.unlink(),
            FileNotFoundError,
            f"There is no .*{AVERAGE_NAME}: the checkpoint was trained without `WeightAverageCallback`",
        ),
        (cut, ValueError, f"{AVERAGE_NAME} is damaged"),
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


@pytest.mark.parametrize("decay", [0.0, 1.0, "0.9"])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"`decay` must lie between 0 and 1, but got {decay!r}"):
        WeightAverageCallback(decay)


@BOTH
@pytest.mark.parametrize("spread", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_spread_weights_are_refused(model, examples, tmp_path, kind, spread, monkeypatch):
    callback = WeightAverageCallback(DECAY)
    trainer = build(model, examples, tmp_path, kind, callbacks=[])
    state = SimpleNamespace(distributed_type=spread)
    monkeypatch.setattr("hf_nullspace.training.weight_average.AcceleratorState", lambda: state)
    with pytest.raises(ValueError, match=f"averages whole weights, which {spread.value} spreads over processes"):
        callback.on_init_end(trainer.args, trainer.state, trainer.control)


@BOTH
def test_it_does_not_go_with_the_best_model(model, examples, tmp_path, kind):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    with pytest.raises(ValueError, match="averaged weights, and `load_best_model_at_end` with those of a checkpoint"):
        build(model, examples, tmp_path, kind, eval_dataset=examples, **best)
