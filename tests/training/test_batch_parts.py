"""Parts of a batch: rows of what has a row for each image, everything else whole, and the loss of those rows."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import ImageClassifierOutput

from hf_nullspace.training.noise_forward import is_batched, part_of, with_loss


def test_only_tensors_with_a_row_for_each_image_are_batched():
    assert is_batched(torch.zeros(4, 2), 4)
    assert not any(is_batched(value, 4) for value in (torch.zeros(3, 4), torch.tensor(4), [0] * 4, "four", None))


def test_rows_are_taken_at_every_depth():
    logits = torch.arange(12.0).view(6, 2)
    outputs = ImageClassifierOutput(logits=logits, hidden_states=(logits + 1, torch.ones(2)), loss=torch.tensor(3.0))
    part = part_of(outputs, 2, 3, 6)
    assert type(part) is ImageClassifierOutput
    assert torch.equal(part.logits, logits[2:5]) and torch.equal(part.hidden_states[0], logits[2:5] + 1)
    assert torch.equal(part.hidden_states[1], torch.ones(2)) and part.loss == 3
    assert part_of([logits, "name"], 5, 1, 6)[0].tolist() == [[10.0, 11.0]]


@pytest.mark.parametrize("items", [None, 4])
def test_a_part_has_its_own_loss(make_vit, items):
    model, labels = make_vit(classifier_scale=20.0).eval(), torch.tensor([0, 1, 2])
    extra = {} if items is None else {"num_items_in_batch": items}
    outputs = model(torch.randn(3, 3, 16, 16), labels=labels)
    part = with_loss(part_of(outputs, 1, 2, 3), {"labels": labels[1:], **extra}, model)
    expected = cross_entropy(outputs.logits[1:], labels[1:], reduction="mean" if items is None else "sum")
    torch.testing.assert_close(part.loss, expected / (items or 1))


def test_outputs_without_a_loss_get_none():
    outputs = ImageClassifierOutput(logits=torch.zeros(2, 3))
    assert "loss" not in with_loss(outputs, {}, None)
