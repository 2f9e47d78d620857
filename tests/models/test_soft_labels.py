"""Distributions over the classes as labels: their cross-entropy, and which problem a model says it has solved."""

import copy

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import ViTConfig

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.models.soft_labels import (
    SoftLabelSmoother,
    classification_loss,
    settle_problem_type,
    soft_cross_entropy,
)


LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
SOFT = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).softmax(-1)
SEVERAL = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 5, [1.0] * 5, [0.0, 1.0, 0.0, 0.0, 0.0]])
BY_HAND = -(SOFT * LOGITS.log_softmax(-1)).sum(-1)


def config_of(problem_type=None, num_labels=5):
    return ViTConfig(num_labels=num_labels, problem_type=problem_type)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_soft_labels_have_their_cross_entropy(problem_type):
    config = config_of(problem_type)
    torch.testing.assert_close(classification_loss(SOFT, LOGITS, config), BY_HAND.mean())
    assert config.problem_type == "single_label_classification"
    # `Trainer` counts every number of a row as an item.
    torch.testing.assert_close(classification_loss(SOFT, LOGITS, config, num_items_in_batch=60), BY_HAND.sum() / 12)


def test_several_labels_stay_several_labels():
    for problem_type in (None, "multi_label_classification"):
        config = config_of(problem_type)
        expected = binary_cross_entropy_with_logits(LOGITS, SEVERAL)
        torch.testing.assert_close(classification_loss(SEVERAL, LOGITS, config), expected)
        assert config.problem_type == "multi_label_classification"
    torch.testing.assert_close(
        classification_loss(SOFT, LOGITS, config_of("multi_label_classification")),
        binary_cross_entropy_with_logits(LOGITS, SOFT),
    )


def test_rows_that_are_no_distributions_after_all_are_refused():
    config = config_of()
    classification_loss(torch.eye(5)[:4], LOGITS, config)
    with pytest.raises(ValueError, match="problem_type='multi_label_classification'"):
        classification_loss(SEVERAL, LOGITS, config)


def test_other_labels_go_to_the_library():
    labels = torch.tensor([0, 4, 2, 1])
    torch.testing.assert_close(classification_loss(labels, LOGITS, config_of()), cross_entropy(LOGITS, labels))
    numbers = torch.tensor([0.7, 2.9, -1.0, 0.0])
    loss = classification_loss(numbers, LOGITS[:, :1], config_of(num_labels=1))
    torch.testing.assert_close(loss, (LOGITS[:, 0] - numbers).square().mean())


@pytest.mark.parametrize("items", [None, 60])
def test_soft_labels_are_smoothed(items):
    smooth = 0.9 * SOFT + 0.1 / 5
    expected = -(smooth * LOGITS.log_softmax(-1)).sum(-1)
    loss = SoftLabelSmoother(epsilon=0.1)({"logits": LOGITS}, SOFT, num_items_in_batch=items)
    torch.testing.assert_close(loss, expected.mean() if items is None else expected.sum() / 12)
    torch.testing.assert_close(loss, soft_cross_entropy(LOGITS, SOFT, items, 0.1))


def test_the_first_batch_settles_the_problem(make_vit):
    model = make_vit()
    for labels in (torch.tensor([1, 2]), SEVERAL, torch.zeros(2, 3), None):
        settle_problem_type(model, labels)
        assert model.config.problem_type is None
    settle_problem_type(model, SOFT)
    assert model.config.problem_type == "single_label_classification"


def mixed(examples):
    """What Mixup makes of a batch: pairs of images and of their labels."""
    batch = NullspaceDataCollator()(examples)
    labels = torch.nn.functional.one_hot(batch["labels"], 5).float()
    return {
        "pixel_values": 0.7 * batch["pixel_values"] + 0.3 * batch["pixel_values"].flip(0),
        "labels": 0.7 * labels + 0.3 * labels.flip(0),
    }


@pytest.mark.parametrize("noise_weight", [0.0, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_trains_on_the_cross_entropy(make_vit, make_examples, tmp_path, noise_weight, smoothing):
    """A given problem type would say so, but must not be needed; nor is another one saved."""
    model, examples = make_vit(classifier_scale=20), make_examples(32)
    args = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "noise_weight": noise_weight,
        "label_smoothing_factor": smoothing,
        "noise_method": "boundary",
        "noise_max_steps": 2,
        "noise_num_images": 16,
        "noise_num_certificate_images": 8,
        "learning_rate": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = NullspaceTrainer(
        copy.deepcopy(model), NullspaceTrainingArguments(str(tmp_path), **args), mixed, train_dataset=examples
    )
    trainer.train()
    losses = [
        row["loss"] - noise_weight * row.get("noise/loss", 0.0) for row in trainer.state.log_history if "loss" in row
    ]
    batches = [mixed(examples[start : start + 8]) for start in range(0, 32, 8)]
    expected = [
        cross_entropy(model(batch["pixel_values"]).logits, batch["labels"], label_smoothing=smoothing).item()
        for batch in batches
    ]
    assert losses == pytest.approx([sum(expected[:2]) / 2, sum(expected[2:]) / 2], rel=1e-4)
    trainer.save_model()
    problem_type = type(model).from_pretrained(tmp_path).config.problem_type
    assert problem_type == (None if smoothing and not noise_weight else "single_label_classification")
