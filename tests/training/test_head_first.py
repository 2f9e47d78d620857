"""A new head is trained alone: by the steps of its own few lines, in any number of processes, and nothing else changes."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from launching import finish, start
from tiny_model import seeded_model_and_examples
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    RegNetConfig,
)

from hf_nullspace import NullspaceDataCollator
from hf_nullspace.training.head_first import NoSingleHeadError, find_head, load_head, save_head, train_head_first


def train(model, examples, steps=20, **options):
    return train_head_first(model, examples, NullspaceDataCollator(), steps, **options)


def test_steps_are_those_of_the_whole_model_with_its_body_frozen():
    model, examples = seeded_model_and_examples()
    other, _ = seeded_model_and_examples()
    facts = train(model, examples, steps=4)
    optimizer = torch.optim.AdamW(other.classifier.parameters(), lr=1e-3, weight_decay=0.0)
    batch = NullspaceDataCollator()(examples)
    losses = []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 4)
        loss = cross_entropy(other.eval()(batch["pixel_values"]).logits, batch["labels"])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(model.classifier.weight, other.classifier.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.classifier.bias, other.classifier.bias, rtol=0, atol=1e-6)
    assert facts["steps"] == 4 and facts["images"] == 64
    assert facts["first_loss"] == pytest.approx(losses[0], rel=1e-5) and facts["last_loss"] < losses[-1]


def test_nothing_but_the_head_changes():
    model, examples = seeded_model_and_examples(hidden_dropout_prob=0.5)
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    train(model, examples)
    assert torch.equal(state, torch.get_rng_state())
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]
    assert model.training and all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not model.classifier._forward_pre_hooks and model.config.problem_type is None


def test_it_is_the_same_every_time_and_another_with_another_seed():
    heads = []
    for seed in (1, 1, 2):
        model, examples = seeded_model_and_examples()
        train(model, examples, seed=seed, batch_size=16)
        heads.append(model.classifier.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_half_precision_finds_nearly_the_same_head():
    """What the head gives in half precision is compared in half precision."""
    heads = []
    for precision in ("no", "bf16"):
        model, examples = seeded_model_and_examples()
        with torch.no_grad():
            model.classifier.weight *= 100
        accelerator = Accelerator(mixed_precision=precision, cpu=True)
        train(model, examples, steps=4, accelerator=accelerator)
        heads.append(model.classifier.weight.detach().clone())
        AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(heads[1], heads[0], rtol=0.02, atol=0.02)


def test_no_more_images_are_read_than_the_steps_take():
    model, examples = seeded_model_and_examples()
    read = []

    class Watched(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    assert train(model, Watched(examples), steps=3, batch_size=8)["images"] == 24
    assert len(read) == len(set(read)) == 24


@pytest.mark.parametrize("loss", ["smoothed", "weighted", "soft"])
def test_its_loss_is_that_of_the_training_that_follows(loss):
    model, examples = seeded_model_and_examples()
    batch = NullspaceDataCollator()(examples)
    with torch.no_grad():
        logits = model.eval()(batch["pixel_values"]).logits
    labels, options, smoothing, weights = batch["labels"], {}, 0.0, None
    if loss == "smoothed":
        smoothing = options["label_smoothing"] = 0.2
    elif loss == "weighted":
        weights = torch.arange(1.0, 6.0)
        options["compute_loss_func"] = lambda outputs, labels, num_items_in_batch=None: (
            cross_entropy(outputs.logits, labels, weights, reduction="sum") / num_items_in_batch
        )
    else:
        labels = torch.rand(64, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
        examples = [{**each, "label": label} for each, label in zip(examples, labels, strict=True)]
    expected = cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing).item() / 64
    facts = train(model, examples, **options)
    assert facts["first_loss"] == pytest.approx(expected, rel=1e-5)
    assert facts["last_loss"] < facts["first_loss"]


def test_the_head_is_found_in_other_models():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8, num_labels=5)
        model = AutoModelForImageClassification.from_config(config)
    name, _ = find_head(model)
    before = model.get_submodule(name).weight.clone()
    facts = train(model, seeded_model_and_examples()[1])
    assert facts["last_loss"] < facts["first_loss"] and not torch.equal(model.get_submodule(name).weight, before)


def test_two_heads_are_refused():
    config = DeiTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    model = DeiTForImageClassificationWithTeacher(config)
    with pytest.raises(NoSingleHeadError, match="cls_classifier.*distillation_classifier"):
        train(model, seeded_model_and_examples()[1])


def test_a_head_whose_outputs_are_changed_is_refused():
    model, examples = seeded_model_and_examples()
    handle = model.classifier.register_forward_hook(lambda module, inputs, output: 2 * output)
    model.register_forward_hook(lambda module, inputs, output: output.__class__(logits=output.logits + 1))
    with pytest.raises(NoSingleHeadError, match="changes them further"):
        train(model, examples)
    handle.remove()


def test_it_comes_back_from_its_file(tmp_path):
    model, examples = seeded_model_and_examples()
    facts = train(model, examples)
    save_head(model, tmp_path / "head.safetensors", facts)
    other, _ = seeded_model_and_examples()
    assert load_head(other, tmp_path / "head.safetensors") == facts
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_trained_on_is_refused():
    model, examples = seeded_model_and_examples()
    with pytest.raises(ValueError, match="`steps` must be at least 1, but got 0"):
        train(model, examples, steps=0)
    with pytest.raises(ValueError, match=r"no `labels`, only \['pixel_values'\]"):
        train(model, [{"pixel_values": each["pixel_values"]} for each in examples])
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        train(model, examples, learning_rate=float("inf"))


def train_one_of(folder: str, world: int) -> None:
    """In one of `world` processes: three batches of features, so that one process has one more than the other."""
    from accelerate import Accelerator

    model, examples = seeded_model_and_examples()
    images = [examples[index % 64] for index in range(150)]
    accelerator = Accelerator(cpu=True)
    facts = train(model, images, accelerator=accelerator, batch_size=32)
    head = [weight.tolist() for weight in model.classifier.parameters()]
    path = Path(folder, f"{world}-{accelerator.process_index}.json")
    path.write_text(json.dumps({"facts": facts, "head": head}))
    accelerator.end_training()


@pytest.mark.slow
def test_every_process_ends_with_the_same_head(tmp_path):
    for world in (1, 2):
        finish(start(train_one_of, world, str(tmp_path), world))
    one, first, second = ((tmp_path / f"{name}.json").read_text() for name in ("1-0", "2-0", "2-1"))
    assert one == first == second
