"""NEFTune, FreeLB, SAM and N-FGSM: each agrees with a few lines that say what its paper says, from the same seeds."""

import copy
import math

import pytest
import torch
from adversarial_runs import adversarial
from quick_cases import others_slow
from torch.nn import functional
from trainer_runs import arguments, assert_same_weights, batch_of, build
from transformers import Trainer, TrainerCallback

from hf_nullspace import inject_noise
from hf_nullspace.baselines import WAYS
from hf_nullspace.baselines.freelb import FreeLBTrainer, FreeLBTrainingArguments
from hf_nullspace.baselines.neftune import NeftuneTrainer, NeftuneTrainingArguments
from hf_nullspace.baselines.nfgsm import NFGSMTrainer, NFGSMTrainingArguments
from hf_nullspace.baselines.sam import SAMTrainer, SAMTrainingArguments
from hf_nullspace.utils.random import keyed_generator


RIVALS = ["neftune", "freelb", "sam", "nfgsm"]
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20, hidden_dropout_prob=0.1)


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(64)


def rival(name, model, pictures, folder, **changes):
    trainer_class, args_class = WAYS[name].trainer_class, WAYS[name].args_class
    if name == "nfgsm":
        args = {"args_class": args_class, **changes}
        return adversarial(trainer_class, model, pictures, folder, **args)
    return build(model, pictures, arguments(folder, args_class, **changes), trainer_class)


def draws_for(trainer_class, shape, count=8, step=0, seed=42):
    """Uniform numbers in [-1, 1] for each image of a batch."""
    keys = [keyed_generator(trainer_class.__name__, seed, step, place) for place in range(count)]
    return torch.stack([2 * torch.rand(shape, generator=key) - 1 for key in keys])


def gradients_of(trainer, batch, seed=7):
    """The gradients that one training step leaves, and its loss."""
    trainer.model.zero_grad()
    torch.manual_seed(seed)
    loss = trainer.training_step(trainer.model, batch)
    return loss, {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def loss_of(model, batch, noise=None, seed=7):
    torch.manual_seed(seed)
    if noise is None:
        return functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
    with inject_noise(model, noise):
        return functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])


def assert_gradients(found, expected, model):
    for name, gradient in zip(found, expected, strict=True):
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name] / scale, gradient / scale, **CLOSE, msg=name)
    plain = torch.autograd.grad(loss_of(model, model.batch), list(model.parameters()))
    difference = max((found[name] - each).abs().max() for name, each in zip(found, plain, strict=True))
    assert difference > 1e-4  # from plain finetuning


# ---- What the papers say ------------------------------------------------------------------------------------------


def test_neftune_is_uniform_noise_on_the_embeddings(model, pictures, tmp_path):
    trainer = rival("neftune", model, pictures, tmp_path, max_steps=1, optim="sgd", max_grad_norm=0.0)
    expected, seen = copy.deepcopy(trainer.model), []

    def record(module, args, output):
        seen.append(output)

    handle = trainer.model.vit.embeddings.patch_embeddings.projection.register_forward_hook(record)
    noisy = []
    trainer.model.vit.embeddings.register_forward_hook(lambda module, args, output: noisy.append(output.detach()))
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    handle.remove()
    patches = seen[0].flatten(2).transpose(1, 2)
    embeddings = expected.vit.embeddings
    noise = noisy[0][:, 1:] - embeddings.position_embeddings[:, 1:] - patches
    bound = 5.0 / math.sqrt(4 * 32)
    assert 0.98 * bound < noise.abs().max() <= bound + 1e-6
    assert noise.mean().abs() < 0.05 * bound and noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    noisy.clear()
    trainer.evaluate()
    with torch.no_grad():
        clean = trainer.model.vit.embeddings(batch_of(pictures[:10], 10)["pixel_values"][:8])
    torch.testing.assert_close(noisy[0], clean, **CLOSE)


def test_neftune_trains_on_the_loss_under_its_noise(model, pictures, tmp_path):
    """The gradients of a step with dropout, against a noise drawn here from the same seed."""
    trainer = rival("neftune", model, pictures, tmp_path, max_steps=1, optim="sgd", max_grad_norm=0.0)
    reference, found, batches = copy.deepcopy(trainer.model.train()), {}, []

    class Recorder(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            torch.manual_seed(7)

        def on_pre_optimizer_step(self, *args, model, **kwargs):
            found.update({name: weight.grad.clone() for name, weight in model.named_parameters()})

    trainer.add_callback(Recorder())
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(dict(kwargs)), with_kwargs=True
    )
    trainer.train()
    (reference.batch,) = batches

    torch.manual_seed(7)
    bound = 5.0 / math.sqrt(4 * 32)
    noisy = reference.vit.embeddings.patch_embeddings.register_forward_hook(
        lambda module, args, output: output + torch.empty_like(output).uniform_(-bound, bound)
    )
    loss = functional.cross_entropy(reference(reference.batch["pixel_values"]).logits, reference.batch["labels"])
    expected = torch.autograd.grad(loss, list(reference.parameters()))
    noisy.remove()
    assert_gradients(found, expected, reference)


def test_freelb_averages_the_gradients_of_its_ascent(model, pictures, tmp_path):
    epsilon, step_size, steps = 1.5, 0.9, 3
    settings = {"freelb_epsilon": epsilon, "freelb_step_size": step_size, "freelb_steps": steps}
    trainer = rival("freelb", model, pictures, tmp_path, **settings)
    reference, batch = trainer.model.train(), batch_of(pictures)
    reference = copy.deepcopy(reference)
    reference.batch = batch
    loss, found = gradients_of(trainer, batch)

    noise = epsilon / math.sqrt(4 * 32) * draws_for(FreeLBTrainer, (4, 32))
    weights, total, losses = list(reference.parameters()), None, []
    for _ in range(steps):
        noise.requires_grad_()
        losses.append(loss_of(reference, batch, noise))
        *gradients, raised = torch.autograd.grad(losses[-1], [*weights, noise])
        total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
        noise = noise.detach() + step_size * raised / raised.norm(dim=(1, 2), keepdim=True)
        norm = noise.norm(dim=(1, 2), keepdim=True)
        noise = torch.where(norm > epsilon, noise * epsilon / norm, noise)
    torch.testing.assert_close(loss, sum(losses) / steps, **CLOSE)
    assert losses[-1] > losses[0]
    assert_gradients(found, [each / steps for each in total], reference)


def test_freelb_says_that_no_gradient_reaches_the_embeddings(model, pictures, tmp_path):
    embeddings = model.vit.embeddings
    embeddings.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(RuntimeError, match="No gradient of the loss of ViT.* reached its patch embeddings"):
        rival("freelb", model, pictures, tmp_path, max_steps=1).train()


def test_sam_takes_the_gradient_at_the_worst_weights(model, pictures, tmp_path):
    trainer = rival("sam", model, pictures, tmp_path, sam_rho=0.1)
    batch = batch_of(pictures)
    reference = copy.deepcopy(trainer.model.train())
    reference.batch = batch
    loss, found = gradients_of(trainer, batch)
    assert_same_weights(trainer.model, reference)

    weights = list(reference.parameters())
    gradients = torch.autograd.grad(loss_of(reference, batch), weights)
    norm = torch.stack([each.square().sum() for each in gradients]).sum().sqrt()
    worst = copy.deepcopy(reference)
    with torch.no_grad():
        for weight, gradient in zip(worst.parameters(), gradients, strict=True):
            weight += 0.1 * gradient / norm
    raised = loss_of(worst, batch)
    torch.testing.assert_close(loss, raised.detach(), **CLOSE)
    assert raised > loss_of(reference, batch) + 1e-3
    assert_gradients(found, torch.autograd.grad(raised, list(worst.parameters())), reference)


@pytest.mark.parametrize("changes", [{}, {"nfgsm_noise": 0.5, "adversarial_step_size": "4/255"}])
def test_nfgsm_steps_from_the_noise_and_clips_nothing(model, pictures, tmp_path, changes):
    trainer = rival("nfgsm", model, pictures, tmp_path, **changes)
    batch = batch_of(pictures)
    reference = copy.deepcopy(trainer.model.train())
    reference.batch = batch
    loss, found = gradients_of(trainer, batch)

    k, alpha = changes.get("nfgsm_noise", 2.0), 4 / 255 if changes else 8 / 255
    std = 0.5  # of the image processor: pixels are half of what the model reads
    noise = k * 8 / 255 * draws_for(NFGSMTrainer, (3, 16, 16))
    noisy = (batch["pixel_values"] + noise / std).requires_grad_()
    reference.eval()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(reference(noisy).logits, batch["labels"]), noisy)
    example = (noisy + alpha / std * gradient.sign()).detach()
    reference.train()
    expected = loss_of(reference, {**batch, "pixel_values": example})
    torch.testing.assert_close(loss, expected.detach(), **CLOSE)
    assert_gradients(found, torch.autograd.grad(expected, list(reference.parameters())), reference)
    pixels = example * std + 0.5
    assert pixels.min() < -1e-3 and pixels.max() > 1 + 1e-3
    assert ((example - batch["pixel_values"]).abs().max() * std > 1.3 * 8 / 255) == (not changes)


# ---- In the trainer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("freelb", {"freelb_epsilon": 0.0}),
        ("sam", {"sam_rho": 0.0}),
        ("nfgsm", {"adversarial_epsilon": "0/255"}),
    ],
)
def test_radius_zero_trains_as_plain_trainer(model, pictures, tmp_path, name, changes):
    """Bitwise, and with dropout: both passes of FreeLB and SAM draw the same."""
    trainer = rival(name, model, pictures, tmp_path / "a", **changes)
    trainer.train()
    plain = build(model, pictures, arguments(tmp_path / "b"), Trainer)
    plain.train()
    assert_same_weights(trainer.model, plain.model)


@pytest.mark.parametrize("name", others_slow(RIVALS, ["sam", "nfgsm"]))
def test_resumed_run_is_bitwise_the_uninterrupted_one(model, pictures, tmp_path, name):
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "gradient_accumulation_steps": 2}
    whole, resumed = (rival(name, model, pictures, tmp_path / each, **changes) for each in "ab")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_same_weights(whole.model, resumed.model)


@pytest.mark.parametrize("name", ["freelb", "nfgsm"])
def test_accumulated_batches_equal_one_batch(make_vit, pictures, tmp_path, name):
    changes = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "max_steps": 2}
    trainers = []
    for size, accumulated in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, **changes}
        trainers.append(rival(name, make_vit(classifier_scale=20), pictures, tmp_path / f"{size}", **settings))
        trainers[-1].train()
    assert_same_weights(trainers[0].model, trainers[1].model, atol=1e-6)


def test_sam_ascends_for_each_micro_batch(make_vit, pictures, tmp_path):
    """As many micro-batches in one step give the mean of their gradients, each at worst weights of its own."""
    trainer = rival("sam", make_vit(classifier_scale=20), pictures, tmp_path, sam_rho=0.1)
    batches = batch_of(pictures[:8]), batch_of(pictures[8:16])
    alone = [gradients_of(trainer, batch)[1] for batch in batches]
    trainer.model.zero_grad()
    for batch in batches:
        trainer.training_step(trainer.model, batch)
    for name, weight in trainer.model.named_parameters():
        expected = alone[0][name] + alone[1][name]
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(weight.grad / scale, expected / scale, **CLOSE, msg=name)


def test_frozen_weights_stay_and_evaluation_is_clean(model, pictures, tmp_path):
    expected = build(model, pictures, arguments(tmp_path / "plain"), Trainer).evaluate()["eval_loss"]
    for name in RIVALS:
        model.vit.embeddings.requires_grad_(False)
        trainer = rival(name, model, pictures, tmp_path / name, max_steps=1)
        assert trainer.evaluate()["eval_loss"] == expected
        trainer.train()
        assert_same_weights(trainer.model.vit.embeddings, model.vit.embeddings)
        assert not torch.equal(trainer.model.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("name", others_slow(RIVALS, ["freelb", "nfgsm"]))
def test_soft_labels_and_label_smoothing_are_trained_on(model, pictures, tmp_path, name):
    soft = [{**each, "label": torch.eye(5)[each["label"]] * 0.8 + 0.04} for each in pictures]
    smooth = {"label_smoothing_factor": 0.2, "max_steps": 2}  # of 5 classes: 0.8 + 0.2 / 5
    one = rival(name, model, pictures, tmp_path / "a", **smooth)
    one.train()
    other = rival(name, model, soft, tmp_path / "b", max_steps=2)
    other.train()
    assert_same_weights(one.model, other.model, atol=2e-6)


@pytest.mark.parametrize(
    ("args_class", "changes", "message"),
    [
        (NeftuneTrainingArguments, {"neftune_noise_alpha": 0.0}, "`neftune_noise_alpha` must be a positive.*0.0"),
        (NeftuneTrainingArguments, {"noise_weight": 1.0}, "`noise_weight` must be 0 in NeftuneTrainingArgum.*1.0"),
        (FreeLBTrainingArguments, {"freelb_steps": 0}, "`freelb_steps` must be an integer of at least 1.*0"),
        (FreeLBTrainingArguments, {"freelb_epsilon": -1.0}, "`freelb_epsilon` must be a number of at least 0.*-1"),
        (FreeLBTrainingArguments, {"freelb_step_size": math.nan}, "`freelb_step_size`.*nan"),
        (SAMTrainingArguments, {"sam_rho": -0.1}, "`sam_rho` must be a number of at least 0.*-0.1"),
        (SAMTrainingArguments, {"fp16": True}, "float16. Use `bf16`"),
        (NFGSMTrainingArguments, {"nfgsm_noise": -1.0}, "`nfgsm_noise`.*-1"),
        (NFGSMTrainingArguments, {"adversarial_steps": 2}, "`adversarial_steps` must be 1 in N-FGSM.*2"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, args_class, changes, message):
    with pytest.raises(ValueError, match=message):
        args_class(str(tmp_path), use_cpu=True, report_to="none", **changes)


def test_other_arguments_are_refused(model, pictures, tmp_path):
    for trainer_class in (NeftuneTrainer, FreeLBTrainer, SAMTrainer):
        with pytest.raises(TypeError, match=f"{trainer_class.args_class.__name__}`.*`NullspaceTrainingArguments`"):
            build(model, pictures, arguments(tmp_path), trainer_class)


@pytest.mark.parametrize("name", ["freelb", "nfgsm", "pgd", "trades"])
def test_a_loss_that_hides_the_attack_is_an_error(model, pictures, tmp_path, name):
    """An override that calls its parent's is asked for the attacked images; one that does not would train plainly."""
    way = WAYS[name]

    class Penalised(way.trainer_class):
        hides = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if self.hides:
                outputs = model(**inputs)
                return (outputs.loss, outputs) if return_outputs else outputs.loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    if name == "freelb":
        trainer = build(model, pictures, arguments(tmp_path, way.args_class, max_steps=1), Penalised)
    else:
        trainer = adversarial(Penalised, model, pictures, tmp_path, args_class=way.args_class, max_steps=1)
    trainer.train()
    trainer.hides = True
    with pytest.raises(RuntimeError, match="`compute_loss` of Penalised hides.*Call `super"):
        trainer.train()
