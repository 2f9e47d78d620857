"""One training step: the clean images there and back, then some of them under noise that moved up their loss."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_runs import arguments, batch_of, build
from transformers import Trainer, ViTConfig, ViTForImageClassification

from hf_nullspace import inject_noise
from hf_nullspace.noise.kinds import ascend_in_axes


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture
def examples(make_examples):
    return make_examples(64)


def ready(trainer):
    """The trainer with the noise of its first round."""
    trainer._refresh_noise(trainer.model)
    return trainer


def step(trainer, batch, num_items_in_batch=None):
    """Loss and gradients of one step."""
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, dict(batch), num_items_in_batch)
    return loss, [weight.grad.clone() for weight in trainer.model.parameters()]


def by_hand(model, batch, rows, noise, noise_weight=1.0, loss_of=cross_entropy):
    """Loss and gradients of the definition, `CE(clean) + noise_weight * CE(noisy)`."""
    twin = copy.deepcopy(model).train()
    pixels, labels = batch["pixel_values"], batch["labels"]
    loss = loss_of(twin(pixels).logits, labels)
    with inject_noise(twin, noise):
        loss = loss + noise_weight * loss_of(twin(pixels[rows]).logits, labels[rows])
    return loss, torch.autograd.grad(loss, list(twin.parameters()))


def assert_close(found, expected):
    torch.testing.assert_close(found[0], expected[0].detach(), rtol=0, atol=1e-5)
    for left, right in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def draws_of(trainer, count):
    """What the step will draw, without drawing it: rows and noise."""
    share, process = trainer.args.noise_share, trainer.args.process_index
    return copy.deepcopy(trainer.noise_schedule).draw(0, count, share, process)


@pytest.mark.parametrize("noise_weight", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("label_smoothing_factor", [0.0, 0.1])
def test_loss_is_clean_plus_weighted_noisy(model, examples, tmp_path, noise_weight, label_smoothing_factor):
    changes = {"noise_weight": noise_weight, "label_smoothing_factor": label_smoothing_factor}
    trainer = ready(build(model, examples, arguments(tmp_path, **changes)))
    batch = batch_of(examples)
    entropy = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing_factor)
    expected = by_hand(model, batch, slice(None), trainer.noise.tensor, noise_weight, entropy)
    assert_close(step(trainer, batch), expected)


@pytest.mark.parametrize("share, count", [(0.25, 2), (0.5, 4), (0.01, 1), (0.95, 8)])
@pytest.mark.parametrize("items", [None, 8])
def test_a_share_of_the_images_has_the_weight_of_all(model, examples, tmp_path, share, count, items):
    """Whether the loss is a mean over the micro-batch or a sum over the whole batch's items."""
    args = arguments(tmp_path, noise_share=share, noise_method="sample", noise_ascent=0.0)
    trainer, batch = ready(build(model, examples, args)), batch_of(examples)
    rows, noise = draws_of(trainer, 8)
    assert len(noise) == count and len(batch["labels"][rows]) == count
    assert_close(step(trainer, batch, items), by_hand(model, batch, rows, noise))


def test_another_step_takes_other_images(model, examples, tmp_path):
    trainer = ready(build(model, examples, arguments(tmp_path, noise_share=0.25)))
    chosen = [trainer.noise_schedule.draw(step, 8, 0.25, 0)[0].tolist() for step in range(200)]
    counts = torch.bincount(torch.tensor(chosen).flatten(), minlength=8)
    assert counts.min() > 30 and all(len(set(rows)) == 2 for rows in chosen)
    assert chosen[:5] == [trainer.noise_schedule.draw(step, 8, 0.25, 0)[0].tolist() for step in range(5)]


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("gradient", ["clean", "noisy"])
def test_draws_move_up_the_loss_before_they_are_trained_on(model, examples, tmp_path, share, gradient):
    settings = {"noise_share": share, "noise_method": "sample", "noise_ascent_gradient": gradient}
    trainer = ready(build(model, examples, arguments(tmp_path, noise_ascent=2.0, **settings)))
    batch, twin = batch_of(examples), copy.deepcopy(model)
    rows, draws = draws_of(trainer, 8)
    distance = trainer.noise_history[-1]["ascent"] if gradient == "clean" else 2.0
    at = draws if gradient == "noisy" else torch.zeros(8, *draws.shape[1:])
    some = batch if gradient == "clean" else {name: value[rows] for name, value in batch.items()}
    at.requires_grad_()
    with inject_noise(twin, at):
        (slope,) = torch.autograd.grad(cross_entropy(twin(some["pixel_values"]).logits, some["labels"]), at)
    slope = slope[rows] if gradient == "clean" else slope
    moved = ascend_in_axes(draws.detach(), slope, trainer.noise.noise.axes, distance)
    expected = by_hand(model, batch, rows, moved)
    assert_close(step(trainer, batch), expected)
    assert expected[0] > by_hand(model, batch, rows, draws.detach())[0]


def test_the_distance_is_measured_once_a_round_and_saved(model, examples, tmp_path):
    changes = {"noise_method": "sample", "save_strategy": "steps", "save_steps": 4}
    trainer = build(model, examples, arguments(tmp_path, **changes))
    state = torch.get_rng_state()
    ready(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "noise/ascent" in row]
    assert [row["noise/ascent"] for row in logged] == [row["ascent"] for row in trainer.noise_history]
    assert all(0 < row["ascent_rise"] <= 1 and 0 < row["ascent"] <= 12 for row in trainer.noise_history)
    resumed = build(model, examples, arguments(tmp_path / "again", **changes))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [row["ascent"] for row in resumed.noise_history] == [row["ascent"] for row in trainer.noise_history]


def test_a_worthless_clean_gradient_is_said(model, examples, tmp_path, caplog):
    """A loss that is flat at the clean images: it counts what the noise changes, squared."""
    args = arguments(tmp_path, noise_method="sample", max_steps=1)
    trainer = build(model, examples, args)
    clean = {}

    def change(outputs, labels, num_items_in_batch=None):
        reference = clean.setdefault(len(outputs.logits), outputs.logits.detach())
        return (outputs.logits - reference[: len(outputs.logits)]).square().sum()

    trainer.compute_loss_func = change
    ready(trainer)
    assert trainer.noise_history[-1]["ascent_rise"] < 0.5
    assert [message for message in caplog.messages if 'noise_ascent_gradient="noisy"' in message]


@pytest.mark.parametrize(
    "changes, images",
    [
        ({}, 16),
        ({"noise_share": 0.25}, 10),
        ({"noise_share": 0.25, "noise_ascent_gradient": "noisy"}, 12),
        ({"noise_share": 0.25, "gradient_accumulation_steps": 2}, 20),
    ],
)
def test_passes_of_a_step(model, examples, tmp_path, changes, images):
    """The noise moves along the clean gradient without a pass of its own."""
    trainer = build(model, examples, arguments(tmp_path, noise_method="sample", max_steps=2, **changes))
    seen, refresh = [], trainer._refresh_noise
    trainer._refresh_noise = lambda model: (refresh(model), seen.clear())
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    trainer.train()
    assert sum(seen) == 2 * images


def frozen_projection(model):
    model.vit.embeddings.requires_grad_(False)


def fully_frozen_but_head(model):
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)


@pytest.mark.parametrize("freeze", [frozen_projection, fully_frozen_but_head])
def test_the_gradient_arrives_at_frozen_embeddings(model, examples, tmp_path, freeze):
    freeze(model)
    trainer = build(model, examples, arguments(tmp_path, noise_method="sample"))
    frozen = {name: weight.clone() for name, weight in trainer.model.named_parameters() if not weight.requires_grad}
    trainer.train()
    weights = dict(trainer.model.named_parameters())
    assert frozen and all(torch.equal(weights[name], before) for name, before in frozen.items())
    assert trainer.noise_history[0]["ascent"] > 0


class Detached(ViTForImageClassification):
    """Its head alone can be trained: nothing comes back to the embeddings."""

    def forward(self, pixel_values, labels=None, **kwargs):
        with torch.no_grad():
            features = self.vit(pixel_values).last_hidden_state[:, 0]
        logits = self.classifier(features)
        loss = None if labels is None else cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if loss is not None else {"logits": logits}


def test_a_model_that_lets_no_gradient_through_is_refused(examples, tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = Detached(ViTConfig(image_size=16, patch_size=8, num_labels=5, **size))
    with pytest.raises(ValueError, match="No gradient of the loss of Detached reaches its patch embeddings"):
        build(model, examples, arguments(tmp_path, noise_method="sample"))
    build(model, examples, arguments(tmp_path, noise_method="sample", noise_ascent=0.0))
    build(model, examples, arguments(tmp_path, noise_method="boundary"))


def test_custom_loss_function_sees_both_passes(model, examples, tmp_path):
    def total_logit(outputs, labels, num_items_in_batch=None):
        return outputs.logits.sum() / (num_items_in_batch or len(labels))

    trainer = ready(build(model, examples, arguments(tmp_path), compute_loss_func=total_logit))
    batch = batch_of(examples)
    expected = by_hand(
        model, batch, slice(None), trainer.noise.tensor, loss_of=lambda logits, labels: logits.sum() / 8
    )
    assert_close(step(trainer, batch, 8), expected)


@pytest.mark.parametrize("gradient", ["clean", "noisy"])
def test_a_scaled_loss_moves_the_draws_alike(model, examples, tmp_path, gradient):
    """As in fp16: the gradients are scaled by a power of two, and the noise they move is the same."""
    args = arguments(tmp_path, noise_method="sample", noise_ascent_gradient=gradient)
    plain, scaled = (ready(build(model, examples, args)) for _ in range(2))
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batch = batch_of(examples)
    loss, gradients = step(scaled, batch)
    assert_close((loss, [each / 1024 for each in gradients]), step(plain, batch))


def test_a_checkpoint_of_draws_that_moved_themselves_goes_on(model, examples, tmp_path):
    """How far draws move along the clean gradient is measured where a checkpoint does not say it."""
    changes = {"noise_method": "sample", "save_strategy": "steps", "save_steps": 2}
    build(model, examples, arguments(tmp_path, noise_ascent_gradient="noisy", max_steps=2, **changes)).train()
    trainer = build(model, examples, arguments(tmp_path / "on", **changes))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.noise_history[0]["ascent"] > 0 and trainer.state.global_step == 6


class Counted(TorchDispatchMode):
    """Counts what waits for the device, or is slow on one."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero") or "linalg" in name or "eigh" in name or "svd" in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once_more_than_a_plain_one(model, examples, tmp_path):
    """To see that the loss is finite; norms aside, nothing of linear algebra is computed in a step."""
    args = arguments(tmp_path, noise_method="sample", noise_share=0.25)
    noisy, plain = ready(build(model, examples, args)), build(model, examples, arguments(tmp_path), Trainer)
    plain.current_gradient_accumulation_steps = 1  # set by `train`
    waits = {}
    for trainer in (noisy, plain):
        step(trainer, batch_of(examples))
        with Counted() as counted:
            step(trainer, batch_of(examples))
        waits[trainer] = [name for name in counted.names if name != "linalg_vector_norm"]
    assert waits[noisy] == [*waits[plain], "_local_scalar_dense"]
