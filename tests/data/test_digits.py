"""The digits: all of them, in three disjoint stratified splits, and their model."""

from collections import Counter

import numpy as np
import pytest
import torch

from hf_nullspace.data.digits import load_digits_splits
from hf_nullspace.models.digits_vit import build_digits_model
from hf_nullspace.models.patch_projection import find_patch_projection


SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def splits():
    return load_digits_splits()


@pytest.fixture(scope="module")
def pictures(splits):
    return {name: [np.asarray(image).tobytes() for image in split["image"]] for name, split in splits.items()}


def test_all_digits_are_there(splits):
    assert dict(splits.num_rows) == {"train": 1078, "validation": 359, "test": 360}
    assert sum(splits.num_rows.values()) == 1797
    assert splits["train"].features["label"].names == [str(digit) for digit in range(10)]


def test_pictures_are_those_of_scikit_learn(pictures):
    from sklearn.datasets import load_digits

    images = (load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(sum(pictures.values(), [])) == sorted(image.tobytes() for image in images)
    assert images.max() == 255


def test_splits_are_disjoint(pictures):
    assert sum(len(set(part)) for part in pictures.values()) == len(set().union(*pictures.values())) == 1797


def test_splits_are_stratified(splits):
    counts = {name: Counter(split["label"]) for name, split in splits.items()}
    for digit in range(10):
        total = sum(count[digit] for count in counts.values())
        for name, share in SHARES.items():
            assert abs(counts[name][digit] - share * total) <= 1


def test_split_depends_on_the_seed_alone(splits):
    assert load_digits_splits(42)["test"]["label"] == splits["test"]["label"]
    assert load_digits_splits(43)["test"]["label"] != splits["test"]["label"]


@pytest.mark.parametrize("image_size", [32, 16])
def test_model(image_size):
    labels = [str(digit) for digit in range(10)]
    with torch.random.fork_rng():
        model, processor = build_digits_model(labels, image_size)
    projection = find_patch_projection(model)
    assert projection.matrix().shape == (96, 192)
    assert projection.is_exact
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: index for index, label in enumerate(labels)}
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, image_size, image_size)
    with torch.no_grad():
        assert model(pixels).logits.shape == (1, 10)
