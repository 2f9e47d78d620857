"""Every pass of every way of finetuning trains on one loss: smoothed, weighted or of soft labels, however it is asked for."""

import pytest
import torch
from adversarial_runs import processor
from quick_cases import others_slow
from tiny_model import TINY_RUN, seeded_model_and_examples
from torch.nn.functional import cross_entropy, one_hot

from hf_nullspace import NullspaceDataCollator
from hf_nullspace.baselines import WAYS


SETTINGS = {**TINY_RUN, "max_steps": 1, "per_device_train_batch_size": 8, "noise_method": "sample"}
SETTINGS |= {"noise_num_images": 8, "noise_num_certificate_images": 8, "noise_max_steps": 1}
CLASS_WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.5, 2.0])
# The others have no pass of their own.
NAMES = [name for name in WAYS if name not in ("plain", "permuted", "gaussian")]


def train(name, folder, collator=None, own_loss=None, args=None, **options):
    """The weights after a step that changes them much."""
    way = WAYS[name]
    model, examples = seeded_model_and_examples()
    settings = {key: value for key, value in SETTINGS.items() if key not in way.fixed_arguments}
    if own_loss is not None:
        model.loss_function = own_loss
    arguments = way.arguments(str(folder), **settings, **(args or {}))
    collator = collator or NullspaceDataCollator()
    way.trainer_class(model, arguments, collator, examples, processing_class=processor(), **options).train()
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def smoothed(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs.logits, labels, label_smoothing=0.2)


def weighted(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs.logits, labels, CLASS_WEIGHTS, reduction="none").mean()


def smooth_labels(examples):
    batch = NullspaceDataCollator()(examples)
    return {**batch, "labels": 0.8 * one_hot(batch["labels"], 5).float() + 0.2 / 5}


def weighted_in_model(labels, pooled_logits, config, **kwargs):
    return cross_entropy(pooled_logits, labels, CLASS_WEIGHTS, reduction="none").mean()


@pytest.mark.parametrize("name", others_slow(NAMES, ["nullspace", "sam", "trades"]))
def test_one_loss_asked_for_in_several_ways_trains_one_model(name, tmp_path):
    """Were another loss in one of its passes, in the ascent or in an attack, the weights would differ."""
    hard = train(name, tmp_path)
    by_argument = train(name, tmp_path, args={"label_smoothing_factor": 0.2})
    by_function = train(name, tmp_path, compute_loss_func=smoothed)
    by_labels = train(name, tmp_path, smooth_labels)
    moved = (by_argument - hard).abs().max()
    assert moved > 1e-3
    torch.testing.assert_close(by_function, by_argument, rtol=0, atol=1e-3 * moved)
    torch.testing.assert_close(by_labels, by_argument, rtol=0, atol=1e-3 * moved)

    weights = train(name, tmp_path, compute_loss_func=weighted)
    in_model = train(name, tmp_path, own_loss=weighted_in_model)
    moved = (weights - hard).abs().max()
    assert moved > 1e-3
    torch.testing.assert_close(in_model, weights, rtol=0, atol=1e-3 * moved)
