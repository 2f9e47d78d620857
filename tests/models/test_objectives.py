"""Objectives: what is compared where a model has no classification head, and what epsilon then bounds."""

from types import SimpleNamespace

import pytest
import torch
from model_types import TEXT, VIT
from torch.nn import functional
from transformers import (
    AutoModel,
    BeitConfig,
    BeitForSemanticSegmentation,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
)
from whole_path import draw_model

from hf_nullspace import NullspaceConfig, inject_noise, measure_noise, similarity_objective, synthesize_noise
from hf_nullspace.models.objectives import agreement, kl_divergence, logit_distance, probability_mse, read_logits


CONFIG = NullspaceConfig(max_steps=4, num_images=16, num_certificate_images=16)


@pytest.fixture
def batches(make_batches):
    return make_batches(32, 8)


def all_pixels(batches):
    return torch.cat([batch["pixel_values"] for batch in batches])


# ---- Logits -----------------------------------------------------------------------------------------------------


def test_logits_of_a_classifier_are_read_as_they_are():
    logits = torch.randn(2, 3)
    assert read_logits(SimpleNamespace(logits=logits)) is logits


def test_pixels_of_a_segmentation_become_positions():
    logits = torch.randn(2, 3, 4, 5)
    positions = read_logits(SimpleNamespace(logits=logits))
    assert positions.shape == (2, 20, 3)
    assert torch.equal(positions[1, 2 * 5 + 3], logits[1, :, 2, 3])


def test_divergence_is_that_of_torch():
    clean, other = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = functional.kl_div(other.log_softmax(-1), clean.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(clean, other), expected)
    assert kl_divergence(clean, clean).abs().max() == 0
    # A segmentation's is the mean over its pixels.
    torch.testing.assert_close(kl_divergence(clean.view(2, 3, 5), other.view(2, 3, 5)), expected.view(2, 3).mean(1))


@pytest.mark.parametrize("quantity", [probability_mse, logit_distance, agreement])
def test_quantities_are_means_over_positions(quantity):
    clean, noisy = torch.randn(2, 4, 7, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([quantity(clean[:, position], noisy[:, position]) for position in range(7)]).mean(0)
    torch.testing.assert_close(quantity(clean, noisy), expected)


def test_a_model_without_logits_is_told_about_objectives(batches):
    model = draw_model(AutoModel.from_config, ViTConfig(**VIT))
    with pytest.raises(ValueError, match="BaseModelOutputWithPooling, has no `logits`.*similarity_objective"):
        synthesize_noise(model, batches, CONFIG, disable_tqdm=True)


# ---- Similarities -----------------------------------------------------------------------------------------------


def test_similarities_by_hand():
    objective = similarity_objective(torch.tensor([[2.0, 0.0], [3.0, 4.0]]), temperature=0.5)
    logits = objective(SimpleNamespace(image_embeds=None, pooler_output=None, last_hidden_state=torch.ones(1, 3, 2)))
    torch.testing.assert_close(logits, torch.tensor([[2**-0.5, 1.4 * 2**-0.5]]) / 0.5)


def test_zero_shot_logits_are_those_of_clip(batches):
    vision = {**VIT, "projection_dim": 6}
    config = CLIPConfig(vision_config=vision, text_config={**TEXT, "projection_dim": 6}, projection_dim=6)
    clip = draw_model(CLIPModel, config)
    texts = torch.tensor([[0, 3, 1], [0, 4, 1], [0, 5, 1]])
    with torch.no_grad():
        expected = clip(input_ids=texts, pixel_values=all_pixels(batches))
        vision_model = CLIPVisionModelWithProjection(config.vision_config).eval()
        vision_model.load_state_dict(
            {name: weight for name, weight in clip.state_dict().items() if name in vision_model.state_dict()}
        )
        objective = similarity_objective(expected.text_embeds, 1 / clip.logit_scale.exp().item())
        torch.testing.assert_close(
            objective(vision_model(all_pixels(batches))), expected.logits_per_image, rtol=1e-4, atol=1e-4
        )
    noise = synthesize_noise(vision_model, batches, CONFIG, objective=objective, disable_tqdm=True)
    assert noise.certificate.is_within_epsilon
    with torch.no_grad(), inject_noise(clip, noise.tensor):
        noisy = clip(input_ids=texts, pixel_values=all_pixels(batches)).logits_per_image
    measured = measure_noise(vision_model, noise, batches, objective=objective)
    assert measured.probability_mse == pytest.approx(
        probability_mse(expected.logits_per_image, noisy).mean().item(), rel=1e-3
    )


@pytest.mark.parametrize(
    "config",
    [ViTConfig(**VIT), ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])],
    ids=lambda config: config.model_type,
)
def test_feature_extractors_are_synthesised_and_certified(config, batches, make_batches):
    model = draw_model(AutoModel.from_config, config)
    with torch.no_grad():
        references = model(make_batches(6, 6, seed=1)[0]["pixel_values"]).pooler_output.flatten(1)
        clean = model(all_pixels(batches)).pooler_output.flatten(1)
    objective = similarity_objective(references)
    noise = synthesize_noise(model, batches, CONFIG, objective=objective, disable_tqdm=True)
    certificate = measure_noise(model, noise, batches, objective=objective)
    with torch.no_grad(), inject_noise(model, noise.tensor):
        noisy = model(all_pixels(batches)).pooler_output.flatten(1)
    similarities = [torch.cosine_similarity(f[:, None], references[None], dim=-1) / 0.07 for f in (clean, noisy)]
    assert noise.certificate.is_within_epsilon
    assert certificate.probability_mse == pytest.approx(probability_mse(*similarities).mean().item(), rel=1e-3)
    assert certificate.logit_distance == pytest.approx(logit_distance(*similarities).mean().item(), rel=1e-3)


def test_embeddings_of_the_callers_choice(batches):
    model = draw_model(AutoModel.from_config, ViTConfig(**VIT))

    def cls_token(outputs):
        return outputs.last_hidden_state[:, 0]

    objective = similarity_objective(torch.eye(16), embed=cls_token)
    assert synthesize_noise(
        model, batches, CONFIG, objective=objective, disable_tqdm=True
    ).certificate.is_within_epsilon


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3),), r"`references`.*\(3,\)"),
        ((torch.ones(1, 3),), r"`references`.*\(1, 3\)"),
        ((torch.ones(2, 3), 0.0), "`temperature`.*0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        similarity_objective(*arguments)


def test_references_of_another_model_are_refused(batches):
    model = draw_model(AutoModel.from_config, ViTConfig(**VIT))
    with pytest.raises(ValueError, match=r"embeddings have shape \(8, 16\).*references have shape \(2, 5\)"):
        synthesize_noise(model, batches, CONFIG, objective=similarity_objective(torch.ones(2, 5)), disable_tqdm=True)


# ---- Segmentation -----------------------------------------------------------------------------------------------


BEIT = {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1], "use_auxiliary_head": False}


@pytest.mark.parametrize("model_type", ["segformer", "beit"])
def test_segmentation_is_bounded_on_the_mean_over_pixels(model_type, overlapping_model, batches):
    if model_type == "segformer":
        model = draw_model(SegformerForSemanticSegmentation, overlapping_model.config)
    else:
        model = draw_model(BeitForSemanticSegmentation, BeitConfig(**BEIT, num_labels=3))
    noise = synthesize_noise(model, batches, CONFIG, disable_tqdm=True)
    certificate = measure_noise(model, noise, batches)
    with torch.no_grad():
        clean = model(all_pixels(batches)).logits
        with inject_noise(model, noise.tensor):
            noisy = model(all_pixels(batches)).logits
    by_pixel = (noisy.softmax(1) - clean.softmax(1)).square().sum(1)
    assert noise.certificate.is_within_epsilon
    assert certificate.probability_mse == pytest.approx(by_pixel.mean().item(), rel=1e-3)
    assert certificate.agreement == pytest.approx((noisy.argmax(1) == clean.argmax(1)).float().mean().item())
