"""Pictures under noise beside their controls: what the model reads is a picture, and the numbers are those of it."""

import pytest
import torch
from random_pictures import PROCESSOR, random_pictures

from hf_nullspace import PatchNullspace
from hf_nullspace.models.preprocessing import Preprocessing
from hf_nullspace.probing.exact import predict
from hf_nullspace.probing.noisy_pictures import (
    realize_at_epsilon,
    search_encoder_noise,
    short_name,
    show_both_noises,
    show_exact_noise,
    show_noise,
)


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(initializer_range=0.2)


@pytest.fixture(scope="module")
def preprocessing():
    return Preprocessing(PROCESSOR)


@pytest.fixture(scope="module")
def inputs(preprocessing):
    return preprocessing.to_model_inputs(random_pictures(2))


@pytest.fixture(scope="module")
def nullspace(model):
    return PatchNullspace.from_model(model)


@pytest.fixture(scope="module")
def noise(nullspace, inputs, preprocessing):
    return nullspace.sample_within(inputs["pixel_values"], preprocessing.mean, preprocessing.std)


def test_exact_noise_changes_nothing_and_its_control_does(model, preprocessing, inputs, noise):
    shown = show_exact_noise(model, preprocessing, inputs["pixel_values"][:1], noise[:1])
    assert shown.pixels.shape == (3, 3, 16, 16) and 0 <= shown.pixels.min() and shown.pixels.max() <= 1
    assert shown.largest_change(1) < 1e-5 and shown.largest_change(2) > 0.01
    assert shown.rms(1) > shown.rms(2) > 0.1, "the cut at black and white makes the control smaller"
    expected = (shown.probabilities[1:] - shown.probabilities[0]).square().sum(-1)
    assert shown.probability_mse == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_probabilities_are_those_of_the_pixels_shown(model, preprocessing, inputs, noise):
    shown = show_exact_noise(model, preprocessing, inputs["pixel_values"][:1], noise[:1])
    again = predict(model, preprocessing.normalize(shown.pixels)).softmax(-1)
    torch.testing.assert_close(again, shown.probabilities, atol=1e-5, rtol=0)


def test_encoder_noise_is_held_within_epsilon_on_pixels(model, preprocessing, inputs, nullspace):
    searched = search_encoder_noise(model, inputs)
    assert searched.shape == (1, 4, 32)
    values = inputs["pixel_values"][:1]
    found = realize_at_epsilon(model, preprocessing, values, searched, nullspace, epsilon=0.01)
    shown = show_noise(model, preprocessing, values, found.noise, found.control, "encoder noise", found.residual)
    assert 0 < shown.probability_mse[0] <= 0.01 and 0 < found.scale <= 1 and shown.residual == found.residual
    assert 0 <= found.residual < 1 and 0 <= shown.pixels.min() and shown.pixels.max() <= 1
    embedded = nullspace.to_patches(found.noise) @ nullspace.matrix.float().T
    missing = (embedded - found.scale * searched).norm() / (found.scale * searched).norm()
    assert found.residual == pytest.approx(missing.item(), abs=1e-4)


def test_the_same_seed_gives_the_same_rows(model, preprocessing, inputs, noise, nullspace):
    rows, again = (show_both_noises(model, preprocessing, inputs, noise, nullspace, seed=3) for _ in range(2))
    assert [row.noise for row in rows] == ["exact nullspace noise", "encoder noise at epsilon 0.03"]
    for row, other in zip(rows, again, strict=True):
        assert torch.equal(row.pixels, other.pixels) and row.to_dict() == other.to_dict()


def test_a_row_of_the_table_names_classes_and_numbers(model, preprocessing, inputs, noise):
    shown = show_exact_noise(model, preprocessing, inputs["pixel_values"][:1], noise[:1])
    row = shown.to_dict()
    (name, share), *_ = shown.top_classes(2)
    assert row["permuted_classes"].startswith(f"{name} {100 * share:.1f} %, ")
    assert row["classes"] == row["noisy_classes"] and row["residual"] is None
    assert row["permuted_largest_probability_change"] == shown.largest_change(2)


def test_names_of_classes_are_short_and_on_one_line():
    assert short_name("hen-of-the-woods, hen of the woods") == "hen-of-the-woods"
    assert short_name("a\nb") == "a\\nb" and len(short_name("x" * 99)) == 24
