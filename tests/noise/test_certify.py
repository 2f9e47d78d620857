"""`measure_noise` against numbers worked out by hand."""

import copy

import pytest
import torch

from hf_nullspace import NullspaceConfig, NullspaceNoise, inject_noise, measure_noise
from hf_nullspace.noise.confidence import betting_upper_bound
from hf_nullspace.utils.random import keyed_generator


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=2.0, initializer_range=0.2)


@pytest.fixture
def batches(make_batches):
    return make_batches(20, 8)


def random_noise(scale=0.5):
    return scale * torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def measured_by_hand(model, batches, noise):
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    clean = model(pixels).logits
    with inject_noise(model, noise):
        noisy = model(pixels).logits
    errors = ((noisy.softmax(-1) - clean.softmax(-1)) ** 2).sum(-1)
    distance = (noisy - clean).norm(dim=-1).mean().item()
    return errors, distance, (noisy.argmax(-1) == clean.argmax(-1)).float().mean().item()


def test_zero_noise_moves_nothing(model, batches):
    certificate = measure_noise(model, torch.zeros(1, 4, 32), batches)
    assert certificate.probability_mse == certificate.logit_distance == 0.0
    assert certificate.probability_mse_upper == pytest.approx(2 * (1 - 0.05 ** (1 / 20)))
    assert certificate.permuted_probability_mse == certificate.norm == certificate.token_norm_max == 0.0
    assert certificate.agreement == certificate.permuted_agreement == 1.0
    assert (certificate.converged, certificate.num_images) == (False, 20)
    assert (certificate.steps, certificate.seconds) == (0, 0.0)


def test_random_noise_equals_the_hand_computation(model, batches):
    noise = random_noise() + 2.0
    certificate = measure_noise(model, noise, batches, NullspaceConfig(epsilon=0.5, confidence=0.9, seed=3))
    centred = noise - noise.mean(-1, keepdim=True)
    errors, distance, agreement = measured_by_hand(model, batches, noise)
    assert 0.001 < certificate.probability_mse == pytest.approx(errors.mean().item(), rel=1e-4)
    assert certificate.probability_mse_upper == pytest.approx(betting_upper_bound(errors, 0.9, largest=2.0), rel=1e-4)
    assert certificate.standard_error == pytest.approx(errors.double().std().item() / 20**0.5, rel=1e-4)
    clean = model(torch.cat([batch["pixel_values"] for batch in batches])).logits.softmax(-1)
    exchanged = torch.cdist(clean, clean).square().sum().item() / (20 * 19)
    assert certificate.exchanged_probability_mse == pytest.approx(exchanged, rel=1e-3)
    assert certificate.num_images_needed == 9
    assert certificate.logit_distance == pytest.approx(distance, rel=1e-4)
    assert certificate.agreement == pytest.approx(agreement)
    assert (certificate.epsilon, certificate.confidence) == (0.5, 0.9)
    assert certificate.converged is (certificate.probability_mse_upper <= 0.5 < exchanged)

    assert certificate.norm == pytest.approx(centred.norm().item(), rel=1e-5)
    assert certificate.raw_norm == pytest.approx(noise.norm().item(), rel=1e-5)
    tokens = centred[0].norm(dim=-1).sort().values
    assert certificate.token_norm_min == pytest.approx(tokens[0].item(), rel=1e-5)
    assert certificate.token_norm_median == pytest.approx(tokens[1].item(), rel=1e-5)
    assert certificate.token_norm_max == pytest.approx(tokens[3].item(), rel=1e-5)

    order = torch.randperm(128, generator=keyed_generator("permutation", 3, 0))
    control = noise.flatten()[order].view(1, 4, 32)
    control = control - control.mean(-1, keepdim=True)
    errors, _, agreement = measured_by_hand(model, batches, control * (noise.norm() / control.norm()))
    assert certificate.permuted_probability_mse == pytest.approx(errors.mean().item(), rel=1e-4)
    assert certificate.permuted_agreement == pytest.approx(agreement)


def test_several_noises_are_measured_one_at_a_time(model, batches):
    with pytest.raises(ValueError, match=r"must be one noise.*\(3, 4, 32\).*one at a time"):
        measure_noise(model, torch.ones(3, 4, 32), batches)


def test_noise_object_brings_its_own_settings(model, batches, make_certificate):
    noise = NullspaceNoise(random_noise(), make_certificate(), NullspaceConfig(epsilon=0.7, seed=9))
    certificate = measure_noise(model, noise, batches)
    assert certificate.epsilon == 0.7
    assert certificate == measure_noise(model, noise.tensor, batches, noise.config)
    assert measure_noise(model, noise, batches, NullspaceConfig(epsilon=0.2)).epsilon == 0.2


def test_twelve_images_in_a_loader_of_sixteen_are_measured(model, make_examples):
    from torch.utils.data import DataLoader

    noise, images = random_noise(), make_examples(12)
    pixels = torch.stack([image["pixel_values"] for image in images])
    by_sixteen, by_four = (
        measure_noise(model, noise, DataLoader([{"pixel_values": each} for each in pixels], batch_size=size))
        for size in (16, 4)
    )
    assert by_sixteen.num_images == by_four.num_images == 12
    assert by_sixteen.probability_mse == pytest.approx(by_four.probability_mse, rel=1e-5)


def test_model_is_put_back(model, batches):
    model.train()
    model.vit.embeddings.requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    first, second = (measure_noise(model, random_noise(), batches) for _ in range(2))
    assert first == second
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_noise_of_another_shape_is_refused(model, batches):
    with pytest.raises(ValueError, match=r"\(1, 9, 32\)"):
        measure_noise(model, torch.zeros(1, 9, 32), batches)
