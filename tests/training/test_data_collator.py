"""The collator: stacking, labels, every refusal, and that it draws no random number."""

import random

import numpy as np
import pytest
import torch

from hf_nullspace import NullspaceDataCollator


def example(label=None, name="label", size=4, value=0.0):
    pixels = {"pixel_values": torch.full((3, size, size), value)}
    return pixels if label is None else {**pixels, name: label}


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
@pytest.mark.parametrize("convert", [int, np.int64, torch.tensor])
def test_stacks_images_and_labels(make_examples, name, convert):
    examples = [
        {"pixel_values": item["pixel_values"], name: convert(item["label"]), "path": "a.png"}
        for item in make_examples(6)
    ]
    batch = NullspaceDataCollator(num_labels=5)(examples)
    assert sorted(batch) == ["labels", "pixel_values"]
    assert torch.equal(batch["pixel_values"], torch.stack([item["pixel_values"] for item in examples]))
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4, 0]
    assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.double])
def test_pixels_become_float32(make_examples, convert):
    item = make_examples(1)[0]["pixel_values"]
    batch = NullspaceDataCollator()([{"pixel_values": convert(item)}])
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"][0], item)


@pytest.mark.parametrize(
    "examples, message",
    [
        ([example(0), {"image": 1, "label": 0}], r"Example 1 .*no `pixel_values`.*\['image', 'label'\]"),
        ([example(0), example(1), example(0, size=5)], r"Example 2 .*\(3, 5, 5\).*\(3, 4, 4\)"),
        ([example(0), example(0, value=float("nan"))], "Example 1 .*NaN or infinite"),
        ([example(0, value=float("inf")), example(0)], "Example 0 .*NaN or infinite"),
        ([example(0), example(), example(1), example()], r"Examples \[1, 3\] .*no `label`"),
        ([example(), example(0)], r"Examples \[0\] .*no `label`"),
        ([example(0), {**example(), "label": None}], r"Examples \[1\] .*no `label`"),
        ([example(0), example(5)], "Label 5 .*5 labels"),
        ([example(0), example("cat")], "`label` of example 1 is 'cat', but .*number of its class.*label2id"),
        ([example(-1), example(0)], "Label -1 .*5 labels"),
        ([example(0.7), example(2.9)], r"Label 0.7 .*5 labels.*\(1 for regression\)"),
        ([example([0.5, 0.5]), example([0.0, 1.0])], "rows of 2 numbers, but .*5 labels"),
        ([example([0.5, 0.5]), example(1.0)], r"labels .* shapes \[\(\), \(2,\)\]"),
    ],
)
def test_bad_examples_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        NullspaceDataCollator(num_labels=5)(examples)


def test_labels_are_not_bounded_without_a_head():
    assert NullspaceDataCollator()([example(999), example(-100)])["labels"].tolist() == [999, -100]


@pytest.mark.parametrize("num_labels", [None, 1])
def test_numbers_stay_numbers(num_labels):
    labels = NullspaceDataCollator(num_labels=num_labels)([example(0.7), example(np.float64(2.9))])["labels"]
    assert labels.dtype == torch.float32 and labels.tolist() == pytest.approx([0.7, 2.9])
    ages = NullspaceDataCollator(num_labels=num_labels)([example(33), example(7)])["labels"]
    assert ages.dtype == torch.int64 and ages.tolist() == [33, 7]


def test_whole_numbers_are_classes_where_there_are_classes():
    labels = NullspaceDataCollator(num_labels=5)([example(0.0), example(4.0)])["labels"]
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 4]


def test_rows_and_maps_of_labels_are_stacked():
    soft = [example([0.25, 0.75]), example(np.array([1.0, 0.0]))]
    assert torch.equal(NullspaceDataCollator(num_labels=2)(soft)["labels"], torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    maps = [example(np.full((4, 4), 3, np.uint8)), example(torch.full((4, 4), 255))]
    stacked = NullspaceDataCollator(num_labels=5)(maps)["labels"]
    assert stacked.shape == (2, 4, 4) and stacked.dtype == torch.int64 and stacked[1, 0, 0] == 255


def test_draws_no_random_number(make_examples):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    NullspaceDataCollator(num_labels=5)(make_examples(8))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
