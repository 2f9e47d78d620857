"""Images for a synthesis: drawn by seed and round alone, and refused early where they do not fit."""

import pytest
import torch
from torch.utils.data import IterableDataset

from hf_nullspace.training.images import check_enough, check_example, draw_images


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


def test_draw_depends_on_seed_and_round_alone():
    torch.manual_seed(0)
    first = list(draw_images(range(100), 10, seed=1, round_index=2))
    torch.manual_seed(7)
    assert list(draw_images(range(100), 10, seed=1, round_index=2)) == first
    assert len(set(first)) == 10
    assert list(draw_images(range(100), 10, seed=1, round_index=3)) != first
    assert list(draw_images(range(100), 10, seed=2, round_index=2)) != first


def test_too_few_images_are_refused_unless_unknown():
    with pytest.raises(ValueError, match="has 7 images.*needs 8"):
        check_enough(range(7), 8)
    check_enough(range(8), 8)
    check_enough(Stream(), 8)


def test_example_must_fit_the_model(tiny_vit):
    check_example({"pixel_values": torch.zeros(1, 3, 16, 16), "labels": torch.zeros(1, dtype=torch.long)}, tiny_vit)
    with pytest.raises(ValueError, match="no labels"):
        check_example({"pixel_values": torch.zeros(1, 3, 16, 16)}, tiny_vit, ["labels"])
    with pytest.raises(ValueError, match="24x16.*16x16"):
        check_example(
            {"pixel_values": torch.zeros(1, 3, 24, 16), "labels": torch.zeros(1, dtype=torch.long)}, tiny_vit
        )
    with pytest.raises(ValueError, match="images have 1 channels, but the model reads 3"):
        check_example(
            {"pixel_values": torch.zeros(1, 1, 16, 16), "labels": torch.zeros(1, dtype=torch.long)}, tiny_vit
        )
