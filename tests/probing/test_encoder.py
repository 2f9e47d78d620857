"""The encoder's experiments on a tiny model: numbers that must hold, and the same numbers again for the same seed."""

import dataclasses

import pytest
import torch

from hf_nullspace.probing.encoder import EncoderProbeConfig, largest_agreeing, probe_encoder


CONFIG = EncoderProbeConfig(lambdas=(0.02, 0.05, 0.2), max_steps=40, max_images=48, scales=(0.0, 0.5, 1.0, 4.0))


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(classifier_scale=20)


@pytest.fixture(scope="module")
def batches(make_batches):
    return make_batches(48, 12)


@pytest.fixture(scope="module")
def probe(model, batches):
    return probe_encoder(model, batches, CONFIG, disable_tqdm=True)


def test_norm_grows_with_lambda_and_beats_the_control(probe):
    norms = [row["norm"] for row in probe.sweep]
    assert norms == sorted(norms) and norms[-1] > 1.5 * norms[0]
    for row in probe.sweep:
        assert row["logit_distance"] < 0.5 * row["permuted_logit_distance"]
        assert row["confidence_change"] < row["permuted_confidence_change"]
        assert row["token_norm_max"] <= 4.001 * row["token_norm_median"] and row["token_norm_max"] < row["norm"]
    assert [row["lambda"] for row in probe.sweep] == [0.02, 0.05, 0.2]


def test_set_is_closed_under_scaling_and_convex_combination_only(probe):
    rows = {row["operation"]: row for row in probe.closure}
    error = max(rows["noise"]["logit_distance"], rows["second noise"]["logit_distance"])
    assert all(rows[name]["logit_distance"] <= 1.1 * error for name in ("half of the noise", "mean of both"))
    assert rows["half of the noise"]["norm"] == pytest.approx(rows["noise"]["norm"] / 2)
    assert rows["elements permuted"]["logit_distance"] > 1.2 * rows["noise"]["logit_distance"]
    assert rows["sign flipped"]["norm"] == pytest.approx(rows["noise"]["norm"])


def test_noise_transfers_to_unseen_images(probe):
    seen, unseen = probe.transfer
    assert (seen["num_images"], unseen["num_images"]) == (18, 18)
    assert unseen["logit_distance"] < 2 * seen["logit_distance"]
    assert unseen["logit_distance"] < unseen["permuted_logit_distance"]
    chosen = next(row for row in probe.sweep if row["lambda"] == probe.norm_weight)
    assert unseen["probability_mse"] == pytest.approx(chosen["probability_mse"])


def test_error_grows_with_the_dose(probe):
    errors = [row["probability_mse"] for row in probe.dose_response]
    assert errors[0] < 1e-10 and errors == sorted(errors)
    assert probe.dose_response[0]["agreement"] == 1.0
    assert probe.dose_response[2]["norm"] == pytest.approx(probe.noise.norm().item())


def test_token_norms_add_up_to_the_norm(probe):
    assert len(probe.token_norms) == 4
    total = sum(row["token_norm"] ** 2 for row in probe.token_norms) ** 0.5
    assert total == pytest.approx(probe.noise.norm().item(), rel=1e-5)
    assert [(row["row"], row["column"]) for row in probe.token_norms] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_same_seed_gives_the_same_numbers_and_draws_nothing(model, batches, probe):
    state = torch.get_rng_state()
    quick = dataclasses.replace(CONFIG, max_steps=2)
    first, again = (probe_encoder(model, batches, quick, disable_tqdm=True) for _ in range(2))
    assert first.tables() == again.tables() and torch.equal(first.noise, again.noise)
    other = probe_encoder(model, batches, dataclasses.replace(quick, seed=1), disable_tqdm=True)
    assert not torch.equal(first.noise, other.noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(probe.tables()) == {"sweep", "closure", "transfer", "dose_response", "token_norms"}


def test_largest_agreeing_noise_is_taken_on(caplog):
    sweep = [
        {"lambda": weight, "norm": 10 * weight, "agreement": share} for weight, share in ((1, 1.0), (2, 0.9), (3, 0.5))
    ]
    assert largest_agreeing(sweep, 0.8) == 1
    assert not caplog.text
    assert largest_agreeing(sweep[1:], 0.98) == 0
    assert "No lambda" in caplog.text and "the closest, 2, left 90 %" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lambdas": ()}, "`lambdas`"),
        ({"lambdas": (0.2, 0.1)}, "`lambdas`.*ascending"),
        ({"lambdas": (0.0, 0.1)}, "`lambdas` must be positive"),
        ({"lambdas": (0.1, float("inf"))}, "`lambdas` must be positive numbers"),
        ({"scales": (-1.0,)}, "`scales`"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"max_token_ratio": 0.5}, "`max_token_ratio`"),
        ({"min_agreement": 2.0}, "`min_agreement`"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"max_images": 3}, "`max_images` must be at least 4"),
    ],
)
def test_settings_outside_their_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        EncoderProbeConfig(**values)
