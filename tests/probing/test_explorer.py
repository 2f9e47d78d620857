"""A picture under noise of every kind: one forward pass a strength, the numbers of what is shown, and what is guaranteed."""

import pytest
import torch
from random_pictures import PROCESSOR, random_pictures
from torch import nn

from hf_nullspace import NullspaceConfig, synthesize_noise
from hf_nullspace.probing.explorer import (
    ATTACK,
    CORRUPTION,
    ENCODER,
    ENCODER_CONTROL,
    EXACT,
    EXACT_CONTROL,
    NoiseExplorer,
    certificate_words,
)
from hf_nullspace.robustness.sources import corrupt_pixels


PICTURES = random_pictures(2)


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(initializer_range=0.2)


@pytest.fixture(scope="module")
def noise(model, make_batches):
    return synthesize_noise(model, make_batches(64, 8), NullspaceConfig(method="boundary", max_steps=6))


@pytest.fixture(scope="module")
def explorer(model, noise):
    return NoiseExplorer(model, PROCESSOR, lambda: noise)


@pytest.fixture(scope="module")
def opened(explorer):
    return explorer.open(PICTURES[0])


def rms(explored) -> float:
    return explored.noise.square().mean().sqrt().item()


def test_exact_noise_changes_nothing_at_any_strength(opened):
    none, half, full = (opened.explore(EXACT, strength) for strength in (0, 0.5, 1))
    assert torch.equal(none.pixels, opened.pixels[0]) and rms(none) == 0 and none.is_unchanged
    assert rms(full) > 0.2 and rms(half) == pytest.approx(rms(full) / 2, rel=1e-4)
    assert full.relative_logit_change < 1e-5 and full.probability_mse < 1e-10 and full.is_unchanged
    assert 0 <= full.pixels.min() and full.pixels.max() <= 1
    torch.testing.assert_close(full.noise, full.pixels - opened.pixels[0])
    for text in ("Exact for every picture: the 32 x 192 matrix", "has rank 32", "160 directions"):
        assert text in full.words


def test_its_control_changes_what_it_is_shown(opened):
    control = opened.explore(EXACT_CONTROL, 1)
    assert control.relative_logit_change > 1000 * opened.explore(EXACT, 1).relative_logit_change
    assert "nothing is guaranteed" in control.words
    before, after = control.clean_probabilities, control.probabilities
    assert control.probability_mse == pytest.approx((after - before).square().sum().item(), rel=1e-4)
    assert control.is_unchanged == (before.argmax() == after.argmax())


def test_encoder_noise_is_found_once_and_held_within_epsilon(model, noise):
    calls = []

    def find():
        calls.append(1)
        return noise

    explorer = NoiseExplorer(model, PROCESSOR, find)
    assert calls == []
    for picture in PICTURES:
        opened = explorer.open(picture)
        assert 0 < opened.explore(ENCODER, 1).probability_mse <= noise.config.epsilon
        assert opened.explore(ENCODER_CONTROL, 1).relative_logit_change > 0
    assert calls == [1]
    words = opened.explore(ENCODER, 0.5).words
    assert words.startswith(certificate_words(noise.certificate)) and "is put into pixels" in words


def test_a_corruption_has_five_severities(explorer, opened):
    corrupted = opened.explore(CORRUPTION, 0.4, "contrast")
    expected = corrupt_pixels(opened.pixels[0], "contrast", 2, explorer.seed, 0)
    torch.testing.assert_close(corrupted.pixels, expected, atol=1e-5, rtol=0)
    assert corrupted.words.startswith("contrast at severity 2 of 5")
    assert rms(opened.explore(CORRUPTION, 0, "contrast")) == 0
    with pytest.raises(ValueError, match="contrst"):
        opened.explore(CORRUPTION, 1, "contrst")


def test_the_attack_stays_within_its_radius(opened):
    full, half = (opened.explore(ATTACK, strength) for strength in (1, 0.5))
    assert 0 < full.noise.abs().max() <= 8 / 255 + 1e-5
    assert half.noise.abs().max().item() == pytest.approx(full.noise.abs().max().item() / 2, rel=1e-3)
    assert "10 steps of PGD" in full.words


@pytest.mark.parametrize("kind", [EXACT, EXACT_CONTROL, ENCODER, ENCODER_CONTROL, CORRUPTION, ATTACK])
def test_another_strength_takes_one_forward_pass(model, opened, kind):
    opened.explore(kind, 1)
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    try:
        opened.explore(kind, 0.9)
    finally:
        handle.remove()
    assert len(passes) == 1


def test_kinds_are_those_that_a_model_has(overlapping_model, make_vit, noise):
    assert NoiseExplorer(make_vit(), PROCESSOR).kinds == [EXACT, EXACT_CONTROL, CORRUPTION, ATTACK]
    assert NoiseExplorer(overlapping_model, PROCESSOR, lambda: noise).kinds == [CORRUPTION, ATTACK]
    full_rank = NoiseExplorer(make_vit(hidden_size=192, num_hidden_layers=1), PROCESSOR, lambda: noise)
    assert full_rank.kinds == [ENCODER, ENCODER_CONTROL, CORRUPTION, ATTACK]
    several = NoiseExplorer(make_vit(problem_type="multi_label_classification"), PROCESSOR)
    assert several.kinds == [EXACT, EXACT_CONTROL, CORRUPTION]
    assert several.open(PICTURES[0]).explore(EXACT, 1).probabilities.sum() > 1.5


def test_a_model_without_a_patch_projection_is_refused():
    with pytest.raises(ValueError, match="patch"):
        NoiseExplorer(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), PROCESSOR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("glare", 1), "`kind` must be one of .*but got 'glare'"), ((EXACT, 1.5), r"must lie in \[0, 1\], but got 1.5")],
)
def test_questions_that_make_no_sense_are_refused(opened, arguments, message):
    with pytest.raises(ValueError, match=message):
        opened.explore(*arguments)


def test_a_certificate_in_words(make_certificate):
    words = certificate_words(make_certificate(num_images=359))
    assert "with 95 % confidence" in words and "is at most 0.025 (epsilon 0.03)" in words
    assert "like the 359" in words and "99.0 %" in words and "70.0 %" in words
    assert certificate_words(make_certificate(probability_mse_upper=0.04)).startswith("Not certified: the upper bound")
