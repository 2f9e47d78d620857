"""Synthesis: what its certificate claims, its policies, its repeatability, and that it leaves no trace."""

import copy
import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_nullspace import NoiseNotConvergedError, NullspaceConfig, NullspaceNoise, inject_noise, synthesize_noise
from hf_nullspace.models.frozen import FrozenClassifier
from hf_nullspace.noise.certificate import remove_hidden_mean
from hf_nullspace.noise.certify import measure_noise
from hf_nullspace.noise.confidence import betting_upper_bound
from hf_nullspace.noise.kinds import SharedNoise
from hf_nullspace.noise.methods import NOISE_METHODS
from hf_nullspace.noise.synthesis import num_held_out
from hf_nullspace.utils.random import keyed_generator, preserved_random_state


METHODS = ["boundary", "paper"]


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=2.0, initializer_range=0.2)


@pytest.fixture
def batches(make_batches):
    return make_batches(96, 8)


def settings(**changes):
    values = {"epsilon": 0.2, "max_steps": 15, "num_images": 32, "num_certificate_images": 64}
    return NullspaceConfig(**{**values, **changes})


def synthesize(model, batches, round_index=0, **changes):
    return synthesize_noise(model, batches, settings(**changes), round_index=round_index, disable_tqdm=True)


def start_of_paper(config, round_index=0, index=0):
    """The paper's noise before its first step."""
    generator = keyed_generator("synthesis", config.seed, round_index, index)
    limit = config.noise_limit
    return remove_hidden_mean(torch.empty(1, 4, 32).uniform_(-limit, limit, generator=generator))


def held_out_places(config, total=96, round_index=0):
    """The images of the certificate, as the seed and the round say."""
    generator = keyed_generator("held out", config.seed, round_index)
    return torch.randperm(total, generator=generator)[: num_held_out(total, 8, config)]


@torch.no_grad()
def errors_by_hand(model, pixel_values, noise):
    """`probability_mse` of each image, written out."""
    clean = model(pixel_values).logits.softmax(-1)
    with inject_noise(model, noise):
        noisy = model(pixel_values).logits.softmax(-1)
    return ((noisy - clean) ** 2).sum(-1).double()


@pytest.mark.parametrize("epsilon", [0.12, 0.3])
@pytest.mark.parametrize("method, max_steps", [("boundary", 1), ("boundary", 15), ("paper", 1), ("paper", 15)])
def test_certificate_holds_on_the_held_out_images(model, batches, method, max_steps, epsilon):
    noise = synthesize(model, batches, method=method, noise_limit=1.0, max_steps=max_steps, epsilon=epsilon)
    certificate = noise.certificate
    held_out = torch.cat([batch["pixel_values"] for batch in batches])[held_out_places(noise.config)]
    errors = errors_by_hand(model, held_out, noise.tensor)
    upper = betting_upper_bound(errors, 0.95, largest=2.0)
    assert certificate.probability_mse == pytest.approx(errors.mean().item(), rel=1e-4)
    assert certificate.probability_mse_upper == pytest.approx(upper, rel=1e-4)
    assert upper <= epsilon
    assert certificate.converged and certificate.obstacle is None
    assert (certificate.num_images, certificate.epsilon) == (64, epsilon)
    assert 0 <= certificate.steps <= max_steps
    assert certificate.norm == pytest.approx(noise.tensor.norm().item(), rel=1e-5)
    assert certificate.norm > 0.1


@pytest.mark.parametrize("method", METHODS + ["sample"])
def test_too_few_images_certify_nothing_and_say_how_many_would(model, batches, method, caplog):
    noise = synthesize(model, batches, method=method, epsilon=0.03)
    certificate = noise.certificate
    assert (certificate.num_images, certificate.num_images_needed) == (64, 199)
    assert not certificate.converged and not noise.converged
    assert 0.01 < certificate.probability_mse <= 0.03 < certificate.probability_mse_upper
    assert certificate.is_within_epsilon and noise.is_usable
    assert "64 images were measured, but no fewer than 199" in caplog.text
    assert "Give at least 199 images beside those of the search" in caplog.text
    assert not NullspaceNoise(noise.noise, noise.certificate, settings(method=method, on_failure="skip")).is_usable
    with pytest.raises(NoiseNotConvergedError, match="no fewer than 199"):
        synthesize(model, batches, method=method, epsilon=0.03, on_failure="error")


def test_noise_above_epsilon_is_not_used(make_certificate):
    good = make_certificate()
    bad = make_certificate(probability_mse=0.031, probability_mse_upper=0.05, converged=False)
    tensor = torch.randn(1, 4, 32)
    assert NullspaceNoise(tensor, good, settings()).is_usable
    assert not NullspaceNoise(tensor, bad, settings()).is_usable


def test_images_in_the_order_of_their_classes_are_split_at_random(model, make_examples, caplog):
    """The first images are no more likely than others to be those of the certificate."""
    places = torch.cat([held_out_places(settings(seed=seed)) for seed in range(50)]).double()
    assert places.mean().item() == pytest.approx(47.5, abs=2)
    assert not torch.equal(held_out_places(settings()), held_out_places(settings(), round_index=1))
    model.config.num_labels = 50
    model.classifier = torch.nn.Linear(32, 50)
    images = sorted(make_examples(200, num_labels=50), key=lambda example: example["label"])
    loader = DataLoader(
        images,
        batch_size=8,
        collate_fn=lambda rows: {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        },
    )
    synthesize(model, loader, max_steps=1)
    assert "The 96 images read for the noise are of 24 of the model's 50 classes" not in caplog.text
    caplog.clear()
    synthesize(model, loader, max_steps=1, num_certificate_images=8, num_images=40)
    assert "The 48 images read for the noise are of 12 of the model's 50 classes" in caplog.text


def test_certificate_can_be_of_images_of_its_own(model, batches, make_batches):
    others = make_batches(80, 16, seed=5)
    noise = synthesize_noise(model, batches, settings(), certificate_dataloader=others, disable_tqdm=True)
    errors = errors_by_hand(model, torch.cat([batch["pixel_values"] for batch in others])[:64], noise.tensor)
    assert noise.certificate.num_images == 64
    assert noise.certificate.probability_mse == pytest.approx(errors.mean().item(), rel=1e-4)
    assert noise.converged


@pytest.mark.parametrize("epsilon", [2.0, 5.0])
def test_epsilon_that_excludes_nothing_is_refused(model, batches, epsilon):
    with pytest.raises(ValueError, match=r"`epsilon` is .* more than 2"):
        synthesize(model, batches, epsilon=epsilon)
    with pytest.raises(ValueError, match=r"`epsilon` is .* more than 2"):
        measure_noise(model, torch.zeros(1, 4, 32), batches, settings(epsilon=epsilon))


def test_seconds_are_those_of_the_whole_synthesis(model, batches):
    start = time.perf_counter()
    noise = synthesize(model, batches)
    elapsed = time.perf_counter() - start
    assert 0.8 * elapsed < noise.certificate.seconds <= elapsed


def test_shrink_stops_at_the_boundary(model, batches):
    changes = {"method": "paper", "max_steps": 1}
    shrunk, whole = (
        synthesize(model, batches, on_failure=policy, **changes).certificate for policy in ("shrink", "skip")
    )
    assert whole.probability_mse_upper > 0.2
    assert 0.9 * 0.2 <= shrunk.probability_mse_upper <= 0.2
    assert shrunk.norm < whole.norm


@pytest.mark.parametrize("on_failure", ["shrink", "skip", "error"])
def test_boundary_noise_lies_at_the_boundary(model, batches, on_failure):
    certificate = synthesize(model, batches, on_failure=on_failure).certificate
    assert 0.9 * 0.2 <= certificate.probability_mse_upper <= 0.2
    assert certificate.converged
    assert certificate.steps == 15


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_boundary_noise_is_scaled_up_or_down_to_the_boundary(model, batches, monkeypatch, size):
    direction = start_of_paper(settings())
    monkeypatch.setattr(NOISE_METHODS["boundary"], "search", lambda *args: (SharedNoise(size * direction), 1))
    noise = synthesize(model, batches)
    assert 0.9 * 0.2 <= noise.certificate.probability_mse_upper <= 0.2
    cosine = torch.nn.functional.cosine_similarity(noise.tensor.flatten(), direction.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-5)


def test_epsilon_below_precision_is_not_certified(model, batches):
    assert not synthesize(model, batches, epsilon=1e-30).converged
    with pytest.raises(NoiseNotConvergedError, match="1e-30"):
        synthesize(model, batches, epsilon=1e-30, on_failure="error")


def test_noise_is_not_certified_for_a_model_that_ignores_its_input(model, batches):
    model.classifier.weight.data.zero_()
    certificate = synthesize(model, batches).certificate
    assert (certificate.probability_mse, certificate.logit_distance, certificate.converged) == (0.0, 0.0, False)


def test_untrained_head_gets_no_certificate_and_noise_of_bounded_norm(tiny_vit, batches, caplog):
    certificate = synthesize(tiny_vit, batches).certificate
    assert certificate.probability_mse_upper < 0.2 and not certificate.converged
    assert certificate.exchanged_probability_mse < 0.01
    assert "any image could stand in the place of another" in caplog.text and "Train the model first" in caplog.text
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    embeddings = tiny_vit.vit.embeddings.patch_embeddings(pixels)
    assert certificate.norm == pytest.approx(10 * embeddings.square().sum((1, 2)).mean().sqrt().item(), rel=1e-3)


def test_boundary_noise_is_larger_than_that_of_the_paper(model, batches):
    boundary, paper = (synthesize(model, batches, method=method, max_steps=60).certificate for method in METHODS)
    assert boundary.norm > 1.2 * paper.norm


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_certificate_shows_that_tokens_are_limited(model, batches, ratio):
    certificate = synthesize(model, batches, max_token_ratio=ratio).certificate
    assert certificate.token_norm_max <= ratio * certificate.token_norm_median * (1 + 1e-5)


def test_skip_returns_the_noise_marked(model, batches):
    noise = synthesize(model, batches, method="paper", max_steps=1, on_failure="skip")
    certificate = noise.certificate
    assert not certificate.converged
    assert not noise.converged
    assert certificate.probability_mse_upper > 0.2
    change = (noise.tensor - start_of_paper(noise.config)).abs().max()
    assert 0.05 <= change <= 2 * 0.1 + 1e-5


def test_error_names_the_numbers(model, batches):
    changes = {"method": "paper", "max_steps": 2, "epsilon": 0.1}
    with pytest.raises(NoiseNotConvergedError) as error:
        synthesize(model, batches, round_index=6, on_failure="error", **changes)
    skipped = synthesize(model, batches, round_index=6, on_failure="skip", **changes).certificate
    numbers = (skipped.probability_mse, skipped.probability_mse_upper)
    for text in ("round 6", *[f"{number:.4g}" for number in numbers], "64 held-out", "2 steps", "epsilon 0.1"):
        assert text in str(error.value)


@pytest.mark.parametrize("policy", ["shrink", "skip"])
def test_start_within_epsilon_is_returned_as_it_is(model, batches, policy):
    noise = synthesize(model, batches, method="paper", epsilon=1.9, noise_limit=0.5, on_failure=policy)
    assert noise.certificate.steps == 0
    torch.testing.assert_close(noise.tensor, start_of_paper(noise.config), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_noise(model, batches, method):
    noises = []
    for global_seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            noises.append(synthesize(model, batches, round_index=2, method=method))
    first, again = noises
    assert torch.equal(first.tensor, again.tensor)
    assert first.round_index == 2
    numbers = [{**noise.certificate.to_dict(), "seconds": 0.0} for noise in noises]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("round_index, seed", [(1, 42), (0, 43)])
def test_another_round_or_seed_gives_another_noise(model, batches, round_index, seed, method):
    first = synthesize(model, batches, method=method, max_steps=3).tensor.flatten()
    other = synthesize(model, batches, round_index, method=method, max_steps=3, seed=seed).tensor.flatten()
    assert abs(torch.nn.functional.cosine_similarity(first, other, dim=0)) < 0.9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_dataloader", [False, True], ids=["list", "DataLoader"])
def test_synthesis_leaves_no_trace(model, batches, make_examples, is_dataloader, method):
    model.train()
    model.vit.layernorm.eval()
    model.vit.embeddings.requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    loader = DataLoader(make_examples(48), batch_size=8) if is_dataloader else batches
    with preserved_random_state():
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        synthesize(model, loader, method=method)
        after = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    assert list(model.state_dict()) == list(weights)
    assert [module for module in model.modules() if "forward" in vars(module)] == []
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []


@pytest.fixture
def overflowing(model, batches):
    """The model, with patch embeddings beyond 12 turned to NaN; those of clean images are smaller."""
    FrozenClassifier(model)
    model.vit.embeddings.patch_embeddings.projection.register_forward_hook(
        lambda module, args, output: output.masked_fill(output.abs() > 12, float("nan"))
    )
    assert all(model(batch["pixel_values"]).logits.isfinite().all() for batch in batches)
    return model


def test_paper_refuses_non_finite_logits_under_noise(overflowing, batches):
    with pytest.raises(ValueError, match=r"NaN or infinite logits under noise.*step 0.*`noise_limit` \(20.0\)"):
        synthesize(overflowing, batches, method="paper", noise_limit=20.0)


def test_boundary_stays_where_logits_are_finite(overflowing, batches):
    noise = synthesize(overflowing, batches, epsilon=1.9)
    held_out = torch.cat([batch["pixel_values"] for batch in batches])[held_out_places(noise.config)]
    assert noise.is_usable
    assert noise.certificate.norm > 1
    assert errors_by_hand(overflowing, held_out, noise.tensor).mean() <= 1.9


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(model, batches, use_reentrant):
    expected = synthesize(model, batches).tensor
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.train()
    torch.testing.assert_close(synthesize(model, batches).tensor, expected, rtol=0, atol=1e-4)


def test_draws_are_certified_one_for_each_image(model, batches):
    noise = synthesize(model, batches, method="sample")
    held_out = torch.cat([batch["pixel_values"] for batch in batches])[held_out_places(noise.config)]
    draws = noise.noise.at(torch.arange(64))
    torch.testing.assert_close(draws.flatten(1).norm(dim=1), torch.full((64,), noise.certificate.norm))
    errors = errors_by_hand(model, held_out, draws)
    assert noise.certificate.probability_mse == pytest.approx(errors.mean().item(), rel=1e-4)
    assert 0.9 * 0.2 < noise.certificate.probability_mse_upper <= 0.2
    assert noise.certificate.permuted_probability_mse > noise.certificate.probability_mse
    assert noise.tensor.norm().item() == pytest.approx(noise.certificate.norm, rel=1e-6)
    again = measure_noise(model, noise, [{"pixel_values": part} for part in held_out.split(5)])
    assert again.probability_mse == pytest.approx(noise.certificate.probability_mse, rel=1e-5)


def test_permuted_control_has_the_norm_of_the_noise(model, batches, monkeypatch):
    tried = []
    logits = FrozenClassifier.logits

    def record(self, inputs, noise=None, *args, **kwargs):
        if noise is not None:
            tried.append(noise)
        return logits(self, inputs, noise, *args, **kwargs)

    monkeypatch.setattr(FrozenClassifier, "logits", record)
    noise = synthesize(model, batches, max_steps=2).tensor
    certified, permuted = tried[-16:-8], tried[-8:]
    for control in permuted:
        torch.testing.assert_close(control.norm(), noise.norm())
        assert torch.equal(control, permuted[0]) and control.mean(-1).abs().max() < 1e-6
        assert torch.cosine_similarity(control.flatten(), noise.flatten(), dim=0).abs() < 0.4
    torch.testing.assert_close(certified[0], noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "total, num_images, num_certificate_images, expected",
    [
        (768, 256, None, 512),  # all that are wanted
        (384, 256, None, 256),  # the same share of fewer
        (280, 256, None, 248),  # that share would be too small for any certificate: all but one batch
        (231, 256, None, 199),
        (230, 256, None, 153),  # no split leaves enough and a batch to search on
        (60, 256, None, 40),  # too few for a certificate
        (384, 256, 128, 128),  # fewer than a certificate takes, as was asked for
        (96, 32, 16, 16),
        (24, 32, 16, 8),
        (2, 256, 128, 1),
        (20, 1, 128, 19),
    ],
)
def test_share_of_held_out_images(total, num_images, num_certificate_images, expected):
    config = NullspaceConfig(num_images=num_images, num_certificate_images=num_certificate_images)
    assert num_held_out(total, 32, config) == expected


def test_fewer_images_than_a_batch_are_refused(model, make_batches):
    with pytest.raises(ValueError, match="6 images.*at least one batch of 8"):
        synthesize(model, [*make_batches(8, 8)], num_images=4, num_certificate_images=2)
