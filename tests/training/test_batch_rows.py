"""Rows of a batch: those of what has a row for each image, everything else whole."""

import pytest
import torch

from hf_nullspace.training.batch_rows import is_batched, select_rows


def test_only_tensors_with_a_row_for_each_image_are_batched():
    assert is_batched(torch.zeros(4, 2), 4)
    assert not any(is_batched(value, 4) for value in (torch.zeros(3, 4), torch.tensor(4), [0] * 4, "four", None))


@pytest.mark.parametrize("rows", [slice(2, 5), torch.tensor([2, 3, 4])])
def test_rows_are_taken_at_every_depth(rows):
    pixels = torch.arange(12.0).view(6, 2)
    batch = {"pixel_values": pixels, "more": (pixels + 1, [torch.ones(2), "name"]), "scale": torch.tensor(3.0)}
    some = select_rows(batch, rows, 6)
    assert torch.equal(some["pixel_values"], pixels[2:5]) and torch.equal(some["more"][0], pixels[2:5] + 1)
    assert torch.equal(some["more"][1][0], torch.ones(2)) and some["more"][1][1] == "name" and some["scale"] == 3
    assert batch["pixel_values"] is pixels
