"""What exact noise does to a whole model: the report, the LayerNorm invariance, stability by norm, the watermark."""

import pytest
import torch

from hf_nullspace import PatchNullspace
from hf_nullspace.probing.exact import (
    measure_exact_noise,
    measure_layer_norm_invariance,
    predict,
    prediction_stability,
    relative_logit_change,
    watermark,
)


MEAN = STD = [0.5, 0.5, 0.5]


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture(scope="module")
def images():
    """Six normalised pictures of 16x16."""
    return 2 * torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1


def test_relative_logit_change_is_a_share_of_the_norm():
    clean, noisy = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.5], [0.0, 1.0]])
    assert relative_logit_change(clean, noisy).tolist() == pytest.approx([0.1, 0.0])


def test_prediction_leaves_the_model_as_it_was(model, images):
    model.train()
    logits = predict(model, images, batch_size=4)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        assert torch.allclose(logits, model(images).logits, atol=1e-5)


def test_report_of_the_largest_noise_in_the_box(model, images):
    row, noise = measure_exact_noise(model, images, MEAN, STD)
    assert (row["hidden_size"], row["patch_features"], row["rank"], row["dimension"]) == (32, 192, 32, 160)
    assert row["num_images"] == 6 and row["agreement"] == 1.0
    assert row["relative_logit_change"] < 1e-4
    assert row["permuted_relative_logit_change"] > 100 * row["relative_logit_change"]
    assert row["pixels_at_bound"] == pytest.approx(160 / 192)  # a corner: one pixel of a patch for each dimension
    assert row["noise_norm"] < row["noise_norm_bound"] < 1.5 * row["noise_norm"]
    assert row["noise_norm"] == pytest.approx(noise.flatten(1).norm(dim=1).mean().item())
    assert row["noise_rms"] == pytest.approx(0.5 * noise.square().mean().sqrt().item())
    assert row["noise_max"] == pytest.approx(0.5 * noise.abs().max().item()) and 0.5 < row["noise_max"] <= 1


def test_constants_over_the_hidden_axis_move_no_logit(model, images):
    row = measure_layer_norm_invariance(model, images)
    assert row["relative_logit_change"] < 1e-4
    assert row["control_relative_logit_change"] > 100 * row["relative_logit_change"]


def test_models_without_layer_norm_see_the_constant(make_vit, images):
    model = make_vit(classifier_scale=20)
    for layer in model.vit.layers:
        layer.layernorm_before = torch.nn.Identity()
    model.vit.layernorm = torch.nn.Identity()
    assert measure_layer_norm_invariance(model, images)["relative_logit_change"] > 1e-3


def test_predictions_hold_at_every_norm(model, images):
    rows = prediction_stability(model, images, norms=[0.0, 10.0, 1000.0])
    assert [row["norm"] for row in rows] == [0.0, 10.0, 1000.0]
    assert all(row["agreement"] == 1.0 and row["relative_logit_change"] < 1e-3 for row in rows)
    assert rows[2]["permuted_relative_logit_change"] > 100 * rows[2]["relative_logit_change"]
    assert rows[0]["permuted_relative_logit_change"] == 0


def test_watermark_is_seen_by_people_only(model, images):
    space = PatchNullspace.from_model(model)
    mark = torch.full((1, 3, 16, 16), -0.9)
    mark[..., 4:12, 4:12] = 0.9
    marked, likeness = watermark(space, images, mark, MEAN, STD, strength=0.5)
    assert marked.abs().max() <= 1
    assert relative_logit_change(predict(model, images), predict(model, marked)).max() < 1e-4
    assert likeness.shape == (6,) and likeness.min() > 0.7
    with pytest.raises(ValueError, match=r"`strength`.*\(0, 1\].*1.5"):
        watermark(space, images, mark, MEAN, STD, strength=1.5)
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\).*\(6, 3, 16, 16\)"):
        watermark(space, images, mark[..., :8, :8], MEAN, STD)
