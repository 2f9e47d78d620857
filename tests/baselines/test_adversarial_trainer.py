"""PGD training and TRADES in the trainer: their losses, what evaluation sees, exact resume, and every refusal."""

import copy

import pytest
import torch
from adversarial_runs import adversarial, processor
from torch.nn import functional
from trainer_runs import arguments, assert_same_weights, batch_of, build
from transformers import CLIPTokenizer, Trainer

from hf_nullspace import NullspaceTrainingArguments
from hf_nullspace.baselines.adversarial import AdversarialTrainer, AdversarialTrainingArguments, TradesTrainer
from hf_nullspace.training.noise_schedule import NoiseSchedule


BOTH = pytest.mark.parametrize("trainer_class", [AdversarialTrainer, TradesTrainer])
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(64)


def plain(model, pictures, folder, **changes):
    return build(model, pictures, arguments(folder, **changes), Trainer)


# ---- The loss ---------------------------------------------------------------------------------------------------


def test_radius_zero_trains_as_plain_trainer(make_vit, pictures, tmp_path):
    """Bitwise, and with dropout: the attack draws no number of it."""
    model = make_vit(hidden_dropout_prob=0.1)
    attacked = adversarial(AdversarialTrainer, model, pictures, tmp_path / "a", adversarial_epsilon="0/255")
    attacked.train()
    without = plain(model, pictures, tmp_path / "b")  # seeds the dropout anew
    without.train()
    assert_same_weights(attacked.model, without.model)


def test_trades_without_divergence_trains_as_plain_trainer(make_vit, pictures, tmp_path):
    model = make_vit(hidden_dropout_prob=0.1)
    no_weight = adversarial(TradesTrainer, model, pictures, tmp_path / "a", trades_beta=0.0)
    no_weight.train()
    without = plain(model, pictures, tmp_path / "b")
    without.train()
    assert_same_weights(no_weight.model, without.model)


def test_trades_of_radius_zero_trains_as_plain_trainer(model, pictures, tmp_path):
    no_radius = adversarial(TradesTrainer, model, pictures, tmp_path / "a", adversarial_epsilon="0", **SGD)
    without = plain(model, pictures, tmp_path / "b", **SGD)
    no_radius.train(), without.train()
    assert_same_weights(no_radius.model, without.model, atol=1e-6)


def new_schedule(trainer):
    return NoiseSchedule(trainer.args.noise_refresh_steps, trainer.args.seed)


@pytest.fixture
def examples_and_loss(model, pictures, tmp_path):
    """Of a trainer class: its model, a batch, the examples it makes of it, and the loss it computes."""

    def compute(trainer_class, return_outputs=False, **changes):
        trainer = adversarial(trainer_class, model, pictures, tmp_path, **changes)
        batch = batch_of(pictures)
        given = {name: value.clone() for name, value in batch.items()}
        examples = trainer._adversarial_examples(trainer.model.train(), batch)
        trainer.noise_schedule = new_schedule(trainer)  # so that the same examples are made again
        loss = trainer.compute_loss(trainer.model, batch, return_outputs)
        assert batch.keys() == given.keys() and all(torch.equal(batch[name], given[name]) for name in batch)
        return trainer.model, batch, examples, loss

    return compute


def test_pgd_loss_is_the_cross_entropy_of_the_examples(examples_and_loss):
    model, batch, examples, loss = examples_and_loss(AdversarialTrainer)
    expected = functional.cross_entropy(model(examples).logits, batch["labels"])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    assert loss > functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]) + 0.05


@pytest.mark.parametrize("label_smoothing_factor", [0.0, 0.1])
def test_trades_loss_is_clean_plus_weighted_divergence(examples_and_loss, label_smoothing_factor):
    changes = {"trades_beta": 2.5, "label_smoothing_factor": label_smoothing_factor}
    model, batch, examples, (loss, outputs) = examples_and_loss(TradesTrainer, return_outputs=True, **changes)
    clean, attacked = model(batch["pixel_values"]).logits, model(examples).logits
    divergence = functional.kl_div(attacked.log_softmax(-1), clean.softmax(-1), reduction="batchmean")
    entropy = functional.cross_entropy(clean, batch["labels"], label_smoothing=label_smoothing_factor)
    torch.testing.assert_close(loss, entropy + 2.5 * divergence, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.logits, clean)
    assert divergence > 1e-3
    # Both predictions are trained towards each other.
    expected = torch.autograd.grad(entropy + 2.5 * divergence, model.classifier.weight)
    torch.testing.assert_close(torch.autograd.grad(loss, model.classifier.weight), expected, rtol=0, atol=1e-6)


@BOTH
def test_examples_lie_in_the_ball_of_the_image_processor(model, pictures, tmp_path, trainer_class):
    """One value for all channels, and pictures of another range than [0, 1], as some processors have them."""
    image_processor = processor(image_mean=127.5, image_std=127.5, do_rescale=False)
    changes = {"adversarial_epsilon": "4/255", "adversarial_step_size": 1.0, "bf16": True}
    trainer = adversarial(trainer_class, model, pictures, tmp_path, image_processor, **changes)
    batch = batch_of(pictures)
    found = trainer._adversarial_examples(trainer.model.train(), batch)
    change = (found - batch["pixel_values"]).abs() / 2
    assert 4 / 255 - 1e-5 < change.max() <= 4 / 255 + 1e-6
    assert found.abs().max() <= 1 + 2e-6


class SameExamples(TradesTrainer):
    """Whose examples depend on nothing but the image."""

    def _adversarial_examples(self, model, inputs):
        return 0.8 * inputs["pixel_values"].flip(-1)


@pytest.mark.parametrize("label_smoothing_factor", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_accumulated_batches_equal_one_batch(model, pictures, tmp_path, label_smoothing_factor):
    changes = {**SGD, "label_smoothing_factor": label_smoothing_factor}
    whole = adversarial(SameExamples, model, pictures, tmp_path / "a", per_device_train_batch_size=32, **changes)
    parts = adversarial(SameExamples, model, pictures, tmp_path / "b", gradient_accumulation_steps=4, **changes)
    whole.train(), parts.train()
    assert_same_weights(whole.model, parts.model, atol=1e-5)
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# ---- The run ----------------------------------------------------------------------------------------------------


@BOTH
def test_resumed_run_is_bitwise_the_uninterrupted_one(model, pictures, tmp_path, trainer_class):
    changes = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    whole, resumed = (adversarial(trainer_class, model, pictures, tmp_path / name, **changes) for name in "ab")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_same_weights(whole.model, resumed.model)
    assert whole.noise is None and whole.noise_history == []


def test_every_micro_batch_has_a_start_of_its_own(model, pictures, tmp_path):
    trainer = adversarial(AdversarialTrainer, model, pictures, tmp_path)
    batch, state = batch_of(pictures), torch.get_rng_state()

    def examples():
        return trainer._adversarial_examples(trainer.model.train(), batch)

    first, second = examples(), examples()
    trainer.state.global_step = 1
    third = examples()
    trainer.noise_schedule = new_schedule(trainer)
    trainer.state.global_step = 0
    assert torch.equal(examples(), first)
    assert not torch.equal(first, second) and not torch.equal(first, third) and not torch.equal(second, third)
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
def test_evaluation_sees_no_attack(model, pictures, tmp_path, trainer_class):
    trainer = adversarial(trainer_class, model, pictures, tmp_path / "a")
    expected = plain(model, pictures, tmp_path / "b").evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == expected


@BOTH
def test_the_attack_leaves_the_model_as_it_was(model, pictures, tmp_path, trainer_class):
    trainer = adversarial(trainer_class, model, pictures, tmp_path)
    model = trainer.model.train()
    model.vit.layers[0].eval()
    model.classifier.bias.requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = [module.training for module in model.modules()], [weight.requires_grad for weight in model.parameters()]
    batch, seen = batch_of(pictures), []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(any(m.training for m in model.modules())))
    trainer._adversarial_examples(model, batch)
    assert seen == [False] * (3 if trainer_class is AdversarialTrainer else 4)  # TRADES runs the clean images too
    batch["pixel_values"] = 5 * batch["pixel_values"]
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        trainer._adversarial_examples(model, batch)
    handle.remove()
    after = [module.training for module in model.modules()], [weight.requires_grad for weight in model.parameters()]
    assert before == after
    assert all(weight.grad is None for name, weight in model.named_parameters() if name != "classifier.weight")
    assert (model.classifier.weight.grad == 1).all()


# ---- Refusals before training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise_weight": 1.0}, ValueError, "`noise_weight` must be 0.*1.0"),
        ({"adversarial_epsilon": "8"}, ValueError, "`adversarial_epsilon` is in pixel units.*'8'"),
        ({"adversarial_epsilon": "much"}, ValueError, "`adversarial_epsilon`.*much"),
        ({"adversarial_epsilon": None}, TypeError, "`adversarial_epsilon`.*None"),
        ({"adversarial_step_size": -0.1}, ValueError, "`adversarial_step_size`.*-0.1"),
        ({"adversarial_steps": 0}, ValueError, "`adversarial_steps`.*0"),
        ({"adversarial_steps": 2.5}, ValueError, "`adversarial_steps`.*2.5"),
        ({"trades_beta": -1.0}, ValueError, "`trades_beta`.*-1.0"),
        ({"trades_beta": float("nan")}, ValueError, "`trades_beta`.*nan"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        AdversarialTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **changes)


def test_radius_and_step_in_pixel_units(tmp_path):
    def parsed(**changes):
        return AdversarialTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **changes).radius_and_step()

    assert parsed() == pytest.approx((8 / 255, 2.5 * 8 / 255 / 3))
    assert parsed(adversarial_epsilon=0.1, adversarial_step_size="2/255") == pytest.approx((0.1, 2 / 255))


@pytest.mark.parametrize("given", [None, CLIPTokenizer])
def test_no_image_processor_is_refused(model, pictures, tmp_path, given):
    args = arguments(tmp_path, AdversarialTrainingArguments)
    processing_class = given and given()
    with pytest.raises(TypeError, match=f"image processor.*{'CLIPTokenizer' if given else 'nothing'}"):
        build(model, pictures, args, AdversarialTrainer, processing_class=processing_class)


def test_an_image_processor_of_other_channels_is_refused(model, pictures, tmp_path):
    with pytest.raises(ValueError, match="3 channels"):
        adversarial(
            AdversarialTrainer, model, pictures, tmp_path, processor(image_mean=[0.5] * 4, image_std=[0.5] * 4)
        )


def test_other_arguments_are_refused(model, pictures, tmp_path):
    args = NullspaceTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", noise_weight=0.0)
    with pytest.raises(TypeError, match="AdversarialTrainingArguments.*NullspaceTrainingArguments"):
        build(model, pictures, args, AdversarialTrainer, processing_class=processor())


def test_pgd_needs_labels(model, pictures, tmp_path):
    trainer = adversarial(AdversarialTrainer, copy.deepcopy(model), pictures, tmp_path)
    with pytest.raises(ValueError, match="no `labels`.*pixel_values"):
        trainer.compute_loss(trainer.model.train(), {"pixel_values": batch_of(pictures)["pixel_values"]})


# ---- The loss that is attacked, and in which precision ------------------------------------------------------------


def examples_of(trainer, batch):
    return trainer._adversarial_examples(trainer.model.train(), batch)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_the_models_own_loss_is_attacked(make_vit, pictures, tmp_path, problem_type):
    model = make_vit(classifier_scale=20, problem_type=problem_type)
    trainer = adversarial(AdversarialTrainer, model, pictures, tmp_path, adversarial_steps=10)
    images = batch_of(pictures)["pixel_values"]
    labels = torch.rand(len(images), 5, generator=torch.Generator().manual_seed(0))
    labels = labels.round() if problem_type == "multi_label_classification" else 3 * labels
    found = examples_of(trainer, {"pixel_values": images, "labels": labels})
    loss = functional.binary_cross_entropy_with_logits if "multi" in problem_type else functional.mse_loss
    with torch.no_grad():
        before, after = (loss(model.eval()(each).logits, labels, reduction="none").mean(1) for each in (images, found))
    assert (after > before).float().mean() > 0.9 and after.mean() > 1.05 * before.mean()


def test_a_loss_function_of_the_trainer_is_attacked(model, pictures, tmp_path):
    def mostly_the_first_class(outputs, labels, num_items_in_batch=None):
        return -outputs.logits[:, 0].sum()

    trainer = adversarial(AdversarialTrainer, model, pictures, tmp_path, adversarial_steps=10)
    trainer.compute_loss_func = mostly_the_first_class
    batch = batch_of(pictures)
    found = examples_of(trainer, batch)
    with torch.no_grad():
        before, after = (model.eval()(images).logits[:, 0] for images in (batch["pixel_values"], found))
    assert (after < before).all()


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_trades_has_no_divergence_for_other_tasks(make_vit, pictures, tmp_path, problem_type):
    with pytest.raises(ValueError, match=f"problem_type='{problem_type}'.*AdversarialTrainer"):
        adversarial(TradesTrainer, make_vit(problem_type=problem_type), pictures, tmp_path)


@BOTH
def test_under_fp16_examples_are_made_in_float32(make_vit, pictures, tmp_path, trainer_class, monkeypatch):
    """As Accelerate prepares a model for fp16 on a GPU: autocast is opened inside its forward."""
    trainer, other = (
        adversarial(trainer_class, make_vit(classifier_scale=60), pictures, tmp_path / name) for name in "ab"
    )
    batch = batch_of(pictures)
    expected = examples_of(other, batch)
    model = trainer.model
    model._original_forward = model.forward
    model.forward = torch.autocast("cpu", dtype=torch.float16)(model.forward)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    assert torch.equal(examples_of(trainer, batch), expected)
    assert model.forward is not model._original_forward
