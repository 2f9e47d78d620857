"""The formulas behind a certificate against closed forms, and its JSON round trip."""

import json
import math

import pytest
import torch

from hf_nullspace import Certificate, inject_noise
from hf_nullspace.models.objectives import agreement, logit_distance, probability_mse
from hf_nullspace.noise.certificate import remove_hidden_mean, token_norms


def logits(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.mark.parametrize(
    "clean, noisy, expected",
    [
        ((0.5, 0.5), (0.5, 0.5), 0.0),
        ((0.5, 0.5), (0.75, 0.25), 0.125),
        ((0.2, 0.3, 0.5), (0.5, 0.3, 0.2), 0.18),
        ((1.0, 0.0), (0.0, 1.0), 2.0),
    ],
)
def test_probability_mse(clean, noisy, expected):
    result = probability_mse(logits(clean), logits(noisy))
    assert result.shape == (1,)
    assert result.item() == pytest.approx(expected, abs=1e-12)


def test_probability_mse_ignores_a_shift_of_all_logits():
    clean = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    assert probability_mse(clean, clean + 7.0).item() == pytest.approx(0.0, abs=1e-24)


def test_logit_distance():
    clean = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert logit_distance(clean, torch.tensor([[3.0, 4.0], [1.0, 1.0]])).tolist() == [5.0, 0.0]


def test_agreement():
    clean = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0]])
    noisy = torch.tensor([[0.0, 9.0], [1.0, 3.0], [4.0, 4.5]])
    assert agreement(clean, noisy).tolist() == [1.0, 0.0, 1.0]


def test_remove_hidden_mean_and_token_norms():
    noise = torch.tensor([[[1.0, 3.0], [10.0, 10.0], [-4.0, 4.0]]])
    assert remove_hidden_mean(noise).tolist() == [[[-1.0, 1.0], [0.0, 0.0], [-4.0, 4.0]]]
    torch.testing.assert_close(token_norms(noise), torch.tensor([[2**0.5, 0.0, 32**0.5]]))


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_constant_over_the_hidden_axis_moves_no_logit(make_vit, make_batches, size):
    model = make_vit(classifier_scale=20.0).double()
    images = make_batches(4, 4)[0]["pixel_values"].double()
    constant = size * torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(0)).double().expand(1, 4, 32)
    other = size * torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        clean = model(images).logits
        with inject_noise(model, constant):
            assert (model(images).logits - clean).abs().max() <= 1e-5
        with inject_noise(model, other):
            assert (model(images).logits - clean).abs().max() > 0.1


def test_multi_label_probabilities_are_sigmoids():
    clean, noisy = torch.tensor([[0.0, 3.0], [0.0, -1.0]]), torch.tensor([[1.0, 3.0], [-40.0, 40.0]])
    change = torch.sigmoid(noisy) - torch.sigmoid(clean)
    torch.testing.assert_close(probability_mse(clean, noisy, multi_label=True), change.square().sum(-1))
    assert probability_mse(torch.full((1, 7), -90.0), torch.full((1, 7), 90.0), True).item() == pytest.approx(7.0)
    # The softmax of both is the same, where the sigmoids are not.
    shifted = torch.tensor([[2.0, 2.0]])
    assert probability_mse(-shifted, shifted).item() == 0.0
    assert probability_mse(-shifted, shifted, multi_label=True).item() > 1


def test_multi_label_agreement_is_of_all_labels():
    clean = torch.tensor([[1.0, -2.0, 0.5], [1.0, -2.0, 0.5]])
    noisy = torch.tensor([[9.0, -0.1, 0.1], [9.0, 0.1, 0.1]])
    assert agreement(clean, noisy, multi_label=True).tolist() == [1.0, 0.0]
    assert agreement(clean, noisy).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("upper", [0.025, math.inf])
def test_certificate_round_trip(make_certificate, upper):
    certificate = make_certificate(probability_mse_upper=upper, converged=upper < 1)
    text = json.dumps(certificate.to_dict(), allow_nan=False)
    assert Certificate.from_dict(json.loads(text)) == certificate
    assert json.loads(text)["probability_mse_upper"] == (None if math.isinf(upper) else upper)


def test_unknown_or_missing_fields_are_refused(make_certificate):
    values = make_certificate().to_dict()
    del values["norm"]
    with pytest.raises(ValueError, match=r"lacks \['norm'\] and adds \[\]"):
        Certificate.from_dict(values)
    with pytest.raises(ValueError, match=r"lacks \['norm'\] and adds \['size'\]"):
        Certificate.from_dict({**values, "size": 1.0})


def test_certificates_of_earlier_versions_load(make_certificate):
    values = make_certificate().to_dict()
    for name in ("num_images_needed", "exchanged_probability_mse", "standard_error"):
        del values[name]
    certificate = Certificate.from_dict(values)
    assert certificate.converged and certificate.num_images_needed == 0
    assert math.isinf(certificate.exchanged_probability_mse)
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"probability_mse_upper": 0.0301}, "0.0301 is above epsilon 0.03"),
        ({"probability_mse_upper": math.nan}, "above"),
        ({"num_images": 198}, "198 images were measured, but no fewer than 199"),
        ({"exchanged_probability_mse": 0.03}, "any image could stand in the place of another"),
        ({"logit_distance": 0.0}, "moves no logit"),
    ],
)
def test_what_stands_against_a_certificate(make_certificate, changes, words):
    numbers = {"num_images": 512, "num_images_needed": 199, "exchanged_probability_mse": 1.2}
    certificate = make_certificate(**{**numbers, **changes})
    assert certificate.is_certified is (words is None)
    assert (certificate.obstacle is None) if words is None else (words in certificate.obstacle)
