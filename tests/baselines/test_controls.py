"""Controls of a noise: of its norm exactly, and of its elements or of none of them."""

import pytest
import torch

from hf_nullspace import NullspaceConfig, synthesize_noise
from hf_nullspace.baselines.controls import make_control
from hf_nullspace.noise.certificate import remove_hidden_mean
from hf_nullspace.noise.certify import measure_noise
from hf_nullspace.noise.controls import gaussian_control, permute_elements, permuted_control
from hf_nullspace.utils.random import keyed_generator


@pytest.fixture
def source():
    return remove_hidden_mean(torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(3)) ** 3)


def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("control", [permuted_control, gaussian_control])
def test_a_control_has_the_norm_and_no_hidden_mean(source, control):
    found = control(source, generator())
    assert found.norm().item() == pytest.approx(source.norm().item(), rel=1e-6)
    assert found.mean(-1).abs().max() < 1e-6
    assert abs(torch.cosine_similarity(found.flatten(), source.flatten(), dim=0)) < 0.3


def test_permuted_elements_are_those_of_the_noise(source):
    """All of them, each moved by its token's new mean and multiplied by one number."""
    shuffled = permute_elements(source, generator())
    assert torch.equal(shuffled.flatten().sort().values, source.flatten().sort().values)
    centred = shuffled - shuffled.mean(-1, keepdim=True)
    scale = source.norm() / centred.norm()
    assert 1 < scale < 1.1
    torch.testing.assert_close(permuted_control(source, generator()), scale * centred, rtol=0, atol=1e-6)


def test_gaussian_keeps_the_norm_only(source):
    kurtosis = [(x / x.norm()).pow(4).sum() * x.numel() for x in (source, gaussian_control(source, generator()))]
    assert kurtosis[1] < 4 < 6 < kurtosis[0]  # 3 for a Gaussian


def held_out(batches, config, round_index=0):
    """The images of the certificate, as one batch."""
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    order = torch.randperm(len(pixels), generator=keyed_generator("held out", config.seed, round_index))
    return [{"pixel_values": pixels[order[: config.num_certificate_images]]}]


@pytest.mark.parametrize("control", [permuted_control, gaussian_control])
def test_the_control_of_draws_is_draws_in_any_direction(make_vit, make_batches, control):
    """Same norm, in any direction: measured with one draw for each image, as the certificate of the source is."""
    model, batches = make_vit(classifier_scale=20), make_batches(48, 16)
    config = NullspaceConfig(epsilon=1e-3, method="sample", num_images=32, num_certificate_images=16)
    source = synthesize_noise(model, batches, config, disable_tqdm=True)
    found = make_control(control, "name", source, model, batches)
    draws = [noise.draw(300, generator()) for noise in (source, found)]
    for noise in draws:
        torch.testing.assert_close(noise.flatten(1).norm(dim=1), source.tensor.norm().expand(300))
    spreads = [torch.linalg.eigvalsh((rows.flatten(0, 1).T @ rows.flatten(0, 1)).double()) for rows in draws]
    # The source's draws lie in some directions more than in others, the control's in all 31 alike.
    participations = [(values.sum() ** 2 / values.square().sum()).item() for values in spreads]
    assert participations[0] < 20 and participations[1] == pytest.approx(31, abs=0.9)
    # A draw belongs to its place among the images of the certificate.
    expected = measure_noise(model, found, held_out(batches, config))
    for name in ("probability_mse", "probability_mse_upper", "agreement", "norm"):
        assert getattr(found.certificate, name) == pytest.approx(getattr(expected, name), rel=1e-4)
    assert found.certificate.probability_mse > 1.5 * source.certificate.probability_mse


def test_a_control_is_measured_on_the_images_of_its_source(make_vit, make_batches):
    model, batches = make_vit(classifier_scale=20).train(), make_batches(48, 16)
    config = NullspaceConfig(epsilon=1e-3, max_steps=8, num_images=32, num_certificate_images=16)
    source = synthesize_noise(model, batches, config, round_index=5, disable_tqdm=True)
    modes = [module.training for module in model.modules()]
    found, again = (make_control(permuted_control, "name", source, model, batches) for _ in range(2))
    other = make_control(permuted_control, "other name", source, model, batches)
    assert torch.equal(found.tensor, again.tensor) and not torch.equal(found.tensor, other.tensor)
    assert (found.round_index, found.config) == (5, config)
    torch.testing.assert_close(found.tensor.norm(dim=(1, 2)), source.tensor.norm(dim=(1, 2)), rtol=1e-6, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert all(weight.requires_grad for weight in model.parameters())
    certificate, old = found.certificate, source.certificate
    expected = measure_noise(model, found.tensor, held_out(batches, config, 5), config)
    assert certificate.num_images == old.num_images == expected.num_images == 16
    for name in ("probability_mse", "probability_mse_upper", "logit_distance", "agreement", "norm"):
        assert getattr(certificate, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
    assert certificate.norm == pytest.approx(old.norm, rel=1e-6)
    assert certificate.probability_mse > 3 * old.probability_mse
    assert old.is_within_epsilon and not certificate.is_within_epsilon
    assert (certificate.steps, certificate.seconds) == (old.steps, old.seconds)
