"""Every supported model type on the whole path, the table of them, and the models that are refused."""

import re
from pathlib import Path

import pytest
import torch
from model_types import MODEL_TYPES
from quick_cases import others_slow
from support_table import build_row, default_nullspace, read_rows, unexplained_idle
from transformers import ImageGPTConfig, ImageGPTForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from whole_path import build_model, require_timm, run

import hf_nullspace
from hf_nullspace import PatchNullspace, inject_noise, synthesize_noise


# One of each way to embed patches and to keep them: the others take minutes together.
QUICK = {"vit", "clip", "swin", "hiera", "convnext", "resnet"}
every_type = pytest.mark.parametrize(
    "name", others_slow(MODEL_TYPES, QUICK | {name for name in MODEL_TYPES if name.startswith("timm ")})
)
OVERLAPPING = {
    *("hiera", "pvt_v2", "segformer", "cvt", "poolformer", "levit", "swiftformer", "mobilevit", "mobilevitv2"),
    *("resnet", "regnet", "bit", "textnet", "hgnet_v2", "mobilenet_v1", "efficientnet"),
}


def test_enough_types_are_covered():
    timm = [name for name in MODEL_TYPES if name.startswith("timm ")]
    assert len(MODEL_TYPES) - len(timm) >= 25
    assert len(timm) >= 3


@every_type
def test_noise_reaches_the_logits_and_exact_noise_does_not(name):
    outcome = run(name)
    assert outcome.logit_change > 0.3
    assert outcome.projection.is_exact is (name not in OVERLAPPING)
    if outcome.projection.is_exact:
        assert outcome.exact_change < 1e-5
        assert outcome.control_change > 0.3


@every_type
def test_noise_is_used_within_epsilon_and_eight_images_certify_nothing(name):
    history = run(name).history
    assert [(row["round"], row["step"]) for row in history] == [(0, 0), (1, 2)]
    for row in history:
        assert row["in_use"]
        assert 0 < row["norm"]
        assert row["probability_mse"] <= row["epsilon"] < row["probability_mse_upper"]
        assert (row["num_images"], row["num_images_needed"], row["converged"]) == (8, 199, False)


@every_type
def test_training_moves_all_weights_but_those_a_family_leaves_out(name):
    outcome = run(name)
    assert unexplained_idle(name, outcome) == []
    for part, reason in MODEL_TYPES[name].idle.items():
        assert any(part in weight for weight in outcome.idle), f"{part} does move, so it is not true that it {reason}"


@every_type
def test_model_and_noise_come_back_bitwise(name):
    outcome = run(name)
    assert outcome.logits_come_back
    assert outcome.noise_comes_back
    assert outcome.certificate_comes_back
    assert outcome.resume_is_exact


@every_type
def test_evaluation_is_clean_and_attacks_reach_the_pixels(name):
    outcome = run(name)
    assert outcome.eval_loss == pytest.approx(outcome.expected_eval_loss, abs=1e-5)
    assert (outcome.attacked_pixels is None) is (name == "siglip2")
    assert outcome.attacked_pixels is None or outcome.attacked_pixels > 0.5


@every_type
def test_readme_says_what_this_run_measured(name):
    if MODEL_TYPES[name].architecture:
        require_timm()
    remedy = "run `python tests/support_table.py`"
    assert list(read_rows()) == list(MODEL_TYPES), remedy
    assert read_rows()[name] == build_row(name), remedy


def test_default_dimensions_by_hand():
    """3 * patch**2 pixels less the hidden size."""
    dimensions = {name: default_nullspace(name) for name in ("clip", "vit", "dinov2", "siglip2", "swin", "segformer")}
    assert dimensions == {
        "clip": (3 * 32**2 - 768, 3 * 32**2),
        "vit": (0, 768),
        "dinov2": (0, 588),
        "siglip2": (0, 768),
        "swin": (0, 48),
        "segformer": None,
    }


@pytest.mark.parametrize("name", ["hiera", "poolformer", "resnet"])
def test_overlapping_patches_have_no_exact_nullspace(name):
    with pytest.raises(ValueError, match=r"no exact nullspace.*overlap.*kernel.*`synthesize_noise`"):
        PatchNullspace.from_model(build_model(name))


@pytest.mark.slow
def test_standardised_filters_have_no_exact_nullspace():
    model = build_model("bit")
    assert "WeightStandardizedConv2d" in run("bit").projection.obstacle
    with pytest.raises(ValueError, match="more than multiply by its weight"):
        PatchNullspace.from_model(model)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: inject_noise(model, torch.zeros(1, 4, 8)).__enter__(),
        lambda model: PatchNullspace.from_model(model),
        lambda model: synthesize_noise(model, []),
    ],
    ids=["inject_noise", "PatchNullspace", "synthesize_noise"],
)
def test_a_model_of_colour_codes_is_refused(use):
    config = ImageGPTConfig(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1, num_labels=2)
    with torch.random.fork_rng():
        model = ImageGPTForImageClassification(config)
    message = (
        "ImageGPTForImageClassification has no patch projection.*convolution that reads 3 channels.*patch_projection="
    )
    with pytest.raises(ValueError, match=message):
        use(model)


@pytest.mark.parametrize(
    "file",
    ["training/trainer.py", "noise/synthesis.py", "noise/methods/base.py", "noise/certify.py", "models/frozen.py"],
)
def test_nothing_depends_on_a_model_type(file):
    source = Path(hf_nullspace.__file__).parent.joinpath(file).read_text(encoding="utf-8").lower()
    registered = {name.replace("-", "_") for name in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}
    assert set(MODEL_TYPES) & registered
    assert set(re.findall(r"[a-z0-9_]+", source)) & registered == set()
