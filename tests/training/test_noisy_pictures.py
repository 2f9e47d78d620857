"""Noise in the pixels of training images: pictures whose embeddings are that noisy, and the loss under them."""

import logging

import pytest
import torch
from adversarial_runs import processor
from trainer_runs import arguments, assert_same_weights, batch_of, build
from transformers import SegformerConfig, SegformerForImageClassification

from hf_nullspace import PatchNullspace, inject_noise
from hf_nullspace.exact_nullspace.patch_matrix import PatchMatrix
from hf_nullspace.models.patch_projection import find_patch_projection
from hf_nullspace.training.pixel_noise import NoisyPictures


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture
def pictures(make_pictures):
    return make_pictures(64)


def embedded(model, change):
    """What a change of the pixels does to the patch embeddings."""
    projection = find_patch_projection(model).module
    return (projection(change) - projection(torch.zeros_like(change))).flatten(2).transpose(1, 2)


def small_noise(model, count=8, scale=0.02):
    noise = torch.randn(count, 4, 32, generator=torch.Generator().manual_seed(0))
    return scale * (noise - noise.mean(-1, keepdim=True))


def test_pictures_have_the_noise_in_their_embeddings(model, pictures):
    """8 x 8 pixels of 3 channels have room for all 32 hidden units."""
    images, noise = batch_of(pictures)["pixel_values"], small_noise(model)
    noisy = NoisyPictures(model, processor()).make(model, images, noise)
    assert noisy.min() >= -1 - 1e-6 and noisy.max() <= 1 + 1e-6  # mean and standard deviation are 0.5
    torch.testing.assert_close(embedded(model, noisy - images), noise, rtol=0, atol=2e-4)
    with inject_noise(model, noise):
        injected = model(images).logits
    torch.testing.assert_close(model(noisy).logits, injected, rtol=0, atol=1e-3)


def test_what_does_not_fit_into_the_box_is_lost(model, pictures):
    images, noise = batch_of(pictures)["pixel_values"], small_noise(model, scale=50.0)
    noisy = NoisyPictures(model, processor()).make(model, images, noise)
    assert noisy.min() >= -1 - 1e-6 and noisy.max() <= 1 + 1e-6
    left, wanted = embedded(model, noisy - images).flatten(1), noise.flatten(1)
    assert (left.norm(dim=1) < wanted.norm(dim=1)).all()
    assert (torch.nn.functional.cosine_similarity(left, wanted) > 0.5).all()


@pytest.mark.parametrize("settings", [{}, {"noise_method": "sample", "noise_ascent": 2.0}])
def test_loss_is_clean_plus_that_of_the_noisy_pictures(model, pictures, tmp_path, settings):
    args = arguments(tmp_path, noise_in_pixels=True, noise_weight=0.5, noise_consistency=0.25, **settings)
    trainer = build(model, pictures, args, processing_class=processor())
    trainer._refresh_noise(trainer.model)
    batch, model, given = batch_of(pictures), trainer.model.train(), []
    make = trainer._noisy_pictures.make
    trainer._noisy_pictures.make = lambda *values: given.append(make(*values)) or given[-1]
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    clean, noisy = model(**batch), model(**{**batch, "pixel_values": given[0]})
    ratio = clean.logits.log_softmax(-1) - noisy.logits.log_softmax(-1)
    divergence = (clean.logits.softmax(-1) * ratio).sum(-1).mean()
    torch.testing.assert_close(loss, clean.loss + 0.5 * noisy.loss + 0.25 * divergence)
    torch.testing.assert_close(outputs.logits, clean.logits)
    assert noisy.loss != clean.loss


def test_resumed_run_is_bitwise_the_uninterrupted_one(model, pictures, tmp_path):
    """In the middle of a round: pixels are found for the weights of each step."""
    changes = {"noise_in_pixels": True, "save_strategy": "steps", "save_steps": 4}
    whole, resumed = (
        build(model, pictures, arguments(tmp_path / name, **changes), processing_class=processor()) for name in "ab"
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert_same_weights(whole.model, resumed.model)


def test_one_value_of_statistics_is_that_of_all_channels(model, pictures):
    images, noise = batch_of(pictures)["pixel_values"], small_noise(model)
    gray = processor()
    gray.image_mean, gray.image_std = 0.5, 0.5
    made = [NoisyPictures(model, given).make(model, images, noise) for given in (gray, processor())]
    assert torch.equal(*made)


def test_a_full_rank_projection_is_no_matter_for_a_warning(make_vit, pictures, caplog):
    model = make_vit(patch_size=2)  # 12 values in a patch, 32 hidden units
    with caplog.at_level(logging.WARNING, "hf_nullspace"):
        NoisyPictures(model, processor())
    assert caplog.records == []


def test_the_matrix_of_a_model_is_that_of_its_nullspace(model):
    matrix, nullspace = PatchMatrix.from_model(model), PatchNullspace.from_model(model)
    assert type(matrix) is PatchMatrix and type(nullspace) is PatchNullspace
    assert torch.equal(matrix.matrix, nullspace.matrix)


# ---- Refusals before training -----------------------------------------------------------------------------------


def test_without_an_image_processor_it_is_refused(model, pictures, tmp_path):
    message = (
        "Noise in pictures is made in pixels, so `processing_class` must be the image processor.* but got nothing"
    )
    with pytest.raises(TypeError, match=message):
        build(model, pictures, arguments(tmp_path, noise_in_pixels=True))


def test_overlapping_patches_are_refused():
    model = SegformerForImageClassification(SegformerConfig(depths=[1] * 4, hidden_sizes=[8] * 4, num_labels=5))
    with pytest.raises(ValueError, match="no exact nullspace per patch"):
        NoisyPictures(model, processor())


def test_images_normalised_otherwise_are_refused(model, pictures):
    images = 3 * batch_of(pictures)["pixel_values"]
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        NoisyPictures(model, processor()).make(model, images, small_noise(model))
