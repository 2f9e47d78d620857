"""The trainer: its loss, its rounds, what evaluation sees, exact resume, and every refusal before training."""

import copy
import functools

import pytest
import torch
from trainer_runs import arguments, assert_same_weights, batch_of, build
from transformers import Trainer

from hf_nullspace import (
    NullspaceDataCollator,
    NullspaceNoise,
    NullspaceTrainer,
    NullspaceTrainingArguments,
)


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture
def examples(make_examples):
    return make_examples(64)


# ---- The loss ---------------------------------------------------------------------------------------------------


def test_weight_zero_trains_as_plain_trainer(model, examples, tmp_path):
    nullspace = build(model, examples, arguments(tmp_path / "a", noise_weight=0.0))
    plain = build(model, examples, arguments(tmp_path / "b"), Trainer)
    nullspace.train(), plain.train()
    assert_same_weights(nullspace.model, plain.model)
    assert [row.get("loss") for row in nullspace.state.log_history] == [
        row.get("loss") for row in plain.state.log_history
    ]
    assert nullspace.noise is None


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("label_smoothing_factor", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_accumulated_batches_equal_one_batch(model, make_examples, tmp_path, label_smoothing_factor, share):
    # All images are the same: which of them get a noisy copy makes no difference.
    examples = make_examples(64) if share == 1 else make_examples(1) * 64
    shared = {
        "noise_share": share,
        "label_smoothing_factor": label_smoothing_factor,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "learning_rate": 0.1,
        "noise_batch_size": 16,
    }
    whole = build(model, examples, arguments(tmp_path / "a", per_device_train_batch_size=32, **shared))
    parts = build(
        model,
        examples,
        arguments(tmp_path / "b", per_device_train_batch_size=8, gradient_accumulation_steps=4, **shared),
    )
    whole.train(), parts.train()
    assert_same_weights(whole.model, parts.model, atol=1e-5)
    for name in ("loss", "noise/loss"):
        left = [row[name] for row in whole.state.log_history if name in row]
        right = [row[name] for row in parts.state.log_history if name in row]
        assert len(left) == 6
        assert left == pytest.approx(right, abs=1e-5)


# ---- Rounds and logs --------------------------------------------------------------------------------------------


def test_a_round_every_refresh_steps(model, examples, tmp_path):
    trainer = build(model, examples, arguments(tmp_path, max_steps=7, noise_refresh_steps=3))
    trainer.train()
    assert [(row["round"], row["step"]) for row in trainer.noise_history] == [(0, 0), (1, 3), (2, 6)]
    logged = [row for row in trainer.state.log_history if "noise/norm" in row]
    assert [row["noise/norm"] for row in logged] == [row["norm"] for row in trainer.noise_history]
    assert trainer.noise.certificate.probability_mse <= trainer.args.epsilon


def test_logged_loss_is_the_sum_of_its_parts(model, examples, tmp_path):
    trainer = build(model, examples, arguments(tmp_path, max_steps=1, noise_weight=2.0, logging_steps=1))
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "noise/loss" in row]
    first = next(iter(build(model, examples, arguments(tmp_path / "b")).get_train_dataloader()))
    clean = model(**first).loss.item()
    assert row["loss"] == pytest.approx(clean + 2 * row["noise/loss"], rel=1e-5)


def test_a_skipped_round_trains_plainly(model, examples, tmp_path):
    args = arguments(tmp_path / "a", epsilon=1e-12, noise_on_failure="skip", noise_method="paper")
    skipped = build(model, examples, args)
    plain = build(model, examples, arguments(tmp_path / "b"), Trainer)
    skipped.train(), plain.train()
    assert not skipped.noise.converged
    assert_same_weights(skipped.model, plain.model)


def test_training_again_begins_with_round_zero(model, examples, tmp_path):
    trainer = build(model, examples, arguments(tmp_path))
    trainer.train()
    trainer.train()
    assert [row["round"] for row in trainer.noise_history] == [0, 1]


def test_model_init_gets_noise_too(model, examples, tmp_path):
    trainer = NullspaceTrainer(
        model_init=lambda: copy.deepcopy(model),
        args=arguments(tmp_path / "a"),
        data_collator=NullspaceDataCollator(),
        train_dataset=examples,
    )
    direct = build(model, examples, arguments(tmp_path / "b"))
    trainer.train(), direct.train()
    assert_same_weights(trainer.model, direct.model)


# ---- Evaluation never sees noise --------------------------------------------------------------------------------


def test_evaluation_and_prediction_are_clean(model, examples, tmp_path):
    trainer = build(model, examples, arguments(tmp_path, eval_strategy="steps", eval_steps=6))
    trainer.train()
    plain = build(trainer.model, examples, arguments(tmp_path / "b"), Trainer)
    logged = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert logged == [plain.evaluate()["eval_loss"]]
    batch = batch_of(examples, 10)
    expected = trainer.model.eval()(batch["pixel_values"]).logits.detach().numpy()
    assert (trainer.predict(examples[:10]).predictions == expected).all()


# ---- Saving and resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("save_steps", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(
    "noise",
    [
        {},
        {"noise_method": "sample", "noise_ascent": 2.0},
    ],
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(model, examples, tmp_path, accumulation, save_steps, noise):
    changes = {
        "save_strategy": "steps",
        "save_steps": save_steps,
        "gradient_accumulation_steps": accumulation,
        **noise,
    }
    whole = build(model, examples, arguments(tmp_path / "a", **changes))
    whole.train()
    resumed = build(model, examples, arguments(tmp_path / "b", **changes))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{save_steps}"))
    assert_same_weights(whole.model, resumed.model)
    assert torch.equal(whole.noise.tensor, resumed.noise.tensor)
    assert [row["norm"] for row in whole.noise_history] == [row["norm"] for row in resumed.noise_history]


def test_best_model_comes_back_with_its_noise(model, examples, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = build(
        model,
        examples,
        # The loss falls, so that the "best" model is not the last one.
        arguments(tmp_path, load_best_model_at_end=True, greater_is_better=True, learning_rate=0.02, **changes),
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("checkpoint-6")
    assert_same_weights(trainer.model, type(model).from_pretrained(best))
    assert torch.equal(trainer.noise.tensor, NullspaceNoise.from_pretrained(best).tensor)


@pytest.fixture
def checkpoint(model, examples, tmp_path):
    build(model, examples, arguments(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2)).train()
    return tmp_path / "run" / "checkpoint-2"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "nullspace_schedule.json").unlink(), FileNotFoundError, "nullspace_schedule.json"),
        (lambda folder: (folder / "nullspace_noise.safetensors").unlink(), FileNotFoundError, "nullspace_noise"),
        (lambda folder: (folder / "nullspace_schedule.json").write_text("{"), ValueError, "damaged"),
        (lambda folder: (folder / "nullspace_noise.safetensors").write_bytes(b"1234"), ValueError, "damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), ValueError, "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused(model, examples, tmp_path, checkpoint, damage, error, message):
    damage(checkpoint)
    trainer = build(model, examples, arguments(tmp_path / "resumed"))
    with pytest.raises(ValueError, match="checkpoint-2 is not whole: its? .*(nullspace|model)"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "nullspace_checkpoint.json").unlink()  # as one of an older version
    with pytest.raises(error, match=message):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_another_refresh_interval_is_refused_on_resume(model, examples, tmp_path, checkpoint):
    trainer = build(model, examples, arguments(tmp_path / "resumed", noise_refresh_steps=5))
    with pytest.raises(ValueError, match="noise_refresh_steps=3.*5"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("changes", [{"noise_method": "sample"}, {"epsilon": 0.1, "noise_num_images": 40}])
def test_noise_of_other_settings_is_refused_on_resume(model, examples, tmp_path, checkpoint, changes):
    trainer = build(model, examples, arguments(tmp_path / "resumed", **changes))
    with pytest.raises(ValueError, match="noise of .*now it is .*Resume with the same settings"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_several_devices_in_one_process_are_refused(model, examples, tmp_path):
    args, plain = arguments(tmp_path), arguments(tmp_path, noise_weight=0.0)
    args._n_gpu = plain._n_gpu = 2
    with pytest.raises(ValueError, match="given 2 devices.*accelerate launch"):
        build(model, examples, args)
    build(model, examples, plain)


def test_saved_model_is_plain_transformers_with_the_noise_beside_it(model, examples, tmp_path):
    trainer = build(model, examples, arguments(tmp_path))
    trainer.train()
    trainer.save_model()
    assert_same_weights(trainer.model, type(model).from_pretrained(tmp_path))
    assert torch.equal(NullspaceNoise.from_pretrained(tmp_path).tensor, trainer.noise.tensor)


# ---- Refusals before training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon`.*0.0"),
        ({"noise_limit": -1.0}, "`noise_limit`.*-1.0"),
        ({"noise_learning_rate": 0.0}, "`noise_learning_rate`"),
        ({"noise_refresh_steps": 0}, "`noise_refresh_steps`.*0"),
        ({"noise_method": "sample", "noise_ascent": -1.0}, "`noise_ascent`.*-1.0"),
        (
            {"noise_method": "boundary", "noise_ascent": 3.0},
            "`noise_ascent` moves the draws of `noise_method='sample'`, but the method is 'boundary'",
        ),
        ({"noise_bank_size": 4}, "`noise_bank_size` was removed: .*`noise_method='sample'`"),
        ({"noise_weight": -0.5}, "`noise_weight`.*-0.5"),
        ({"noise_batch_size": 0}, "`noise_batch_size`.*0"),
        ({"noise_on_failure": "hope"}, "`noise_on_failure`.*hope"),
        ({"noise_forward": "sequential"}, "`noise_forward` was removed: .*Leave it out"),
        ({"noise_share": 0.0}, r"`noise_share` must lie in \(0, 1\], but got 0.0.*`noise_weight=0`"),
        ({"noise_share": 1.5}, r"`noise_share` must lie in \(0, 1\], but got 1.5"),
        ({"noise_share": True}, r"`noise_share` must lie in \(0, 1\], but got True"),
        (
            {"noise_method": "boundary", "noise_ascent_gradient": "noisy"},
            "`noise_ascent_gradient='noisy'` does nothing with `noise_method='boundary'` and `noise_ascent=0`",
        ),
        (
            {"noise_ascent_gradient": "both"},
            r"`noise_ascent_gradient` must be one of \['clean', 'noisy'\], but got 'both'",
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_draws_that_ascend_are_the_default_of_training(tmp_path):
    default = NullspaceTrainingArguments(str(tmp_path))
    assert (default.noise_method, default.noise_ascent) == ("sample", 3.0)
    assert (default.nullspace_config().method, default.nullspace_config().epsilon) == ("sample", 0.03)
    for method, ascent in (("boundary", 0.0), ("paper", 0.0), ("sample", 3.0)):
        assert NullspaceTrainingArguments(str(tmp_path), noise_method=method).noise_ascent == ascent
    assert NullspaceTrainingArguments(str(tmp_path), noise_ascent=0.0).noise_ascent == 0.0


def test_plain_training_arguments_are_refused(model, examples, tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="NullspaceTrainingArguments"):
        build(model, examples, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


def test_a_model_without_patches_is_refused(examples, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    with pytest.raises(ValueError, match="no patch projection"):
        build(BertForSequenceClassification(BertConfig(vocab_size=20, **tiny)), examples, arguments(tmp_path))


def test_images_of_another_size_are_refused(model, make_examples, tmp_path):
    examples = make_examples(32, size=24)
    with pytest.raises(ValueError, match="24x24.*16x16"):
        build(model, examples, arguments(tmp_path))


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_images_are_refused(model, examples, tmp_path, count):
    with pytest.raises(ValueError, match=f"{count} images.*8"):
        build(model, examples[:count], arguments(tmp_path))


def test_images_without_labels_are_refused(model, examples, tmp_path):
    unlabelled = [{"pixel_values": example["pixel_values"]} for example in examples]
    with pytest.raises(ValueError, match="no labels"):
        build(model, unlabelled, arguments(tmp_path))


def test_an_output_folder_that_cannot_be_written_is_refused(model, examples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        build(model, examples, arguments(tmp_path / "file" / "out"))


def test_non_finite_logits_stop_the_run_before_a_step(model, examples, tmp_path):
    broken = copy.deepcopy(model)
    broken.classifier.weight.data[0, 0] = float("nan")
    trainer = build(broken, examples, arguments(tmp_path))
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        trainer.train()
    assert trainer.state.global_step == 0


# ---- What is logged ---------------------------------------------------------------------------------------------


class Pooled(torch.nn.Module):
    """Without a bend: noise moves its logits by `weight @ mean(noise)`, whatever the image."""

    def __init__(self, output, loss):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Linear(8, 5)
        self.output, self.loss = output, loss

    def forward(self, pixel_values, labels=None, targets=None):
        logits = self.head(self.patches(pixel_values).flatten(2).mean(2))
        labels = labels if targets is None else targets
        if labels is None:
            return {"logits": logits} if self.output == "dict" else (logits,)
        loss = self.loss(logits, labels)
        return {"loss": loss, "logits": logits} if self.output == "dict" else (loss, logits)


@pytest.mark.parametrize("output", ["dict", "tuple"])
@pytest.mark.parametrize("label_name", ["labels", "targets"])
@pytest.mark.parametrize("several", [False, True])
def test_the_logged_error_of_the_noise_trained_on_is_its_closed_form(examples, tmp_path, output, label_name, several):
    """The mean over the images since the last log; of several labels an image, of the sigmoids."""
    functional = torch.nn.functional
    model = Pooled(output, functional.binary_cross_entropy_with_logits if several else functional.cross_entropy)
    rows = [{"pixel_values": 3 * row["pixel_values"], label_name: row["label"]} for row in examples[:24]]
    if several:
        rows = [{**row, label_name: torch.tensor([1.0, 1.0, 0.0, 1.0, index % 2])} for index, row in enumerate(rows)]

    def collate(chosen):
        return {name: torch.stack([torch.as_tensor(row[name]) for row in chosen]) for name in chosen[0]}

    changes = {"max_steps": 3, "logging_steps": 3, "learning_rate": 0.0, "gradient_accumulation_steps": 2}
    changes |= {"per_device_train_batch_size": 4, "noise_num_images": 8, "label_names": [label_name]}
    trainer = NullspaceTrainer(
        model, arguments(tmp_path, **changes, remove_unused_columns=False), collate, train_dataset=rows
    )
    trainer.train()
    probabilities = torch.sigmoid if several else functools.partial(torch.softmax, dim=-1)
    with torch.no_grad():
        clean = model.head(model.patches(torch.stack([row["pixel_values"] for row in rows])).flatten(2).mean(2))
        moved = clean + model.head.weight @ trainer.noise.tensor[0].mean(0)
        expected = (probabilities(moved) - probabilities(clean)).square().sum(-1).mean().item()
    logged = [row["noise/trained_probability_mse"] for row in trainer.state.log_history if "loss" in row]
    assert logged == [pytest.approx(expected, rel=1e-4)] and expected > 1e-4
    # The certificate is of the same probabilities, on some of the same images.
    assert trainer.noise.certificate.probability_mse == pytest.approx(expected, rel=0.5)
