"""Sensitivity of the logits: axes and gradients in closed form, and starts more harmless than random noise."""

import pytest
import torch

from hf_nullspace.certificate import logit_distance
from hf_nullspace.frozen import FrozenClassifier, frozen, read_images
from hf_nullspace.randomness import keyed_generator
from hf_nullspace.sensitivity import SHRINKAGE, Sensitivity, _axes, measure_sensitivity


def test_amplitudes_follow_the_inverse_sensitivity():
    axes, amplitudes = _axes(torch.diag(torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64)), power=1.0)
    assert torch.equal(axes.abs().argmax(0), torch.tensor([1, 2, 0]))
    assert amplitudes.tolist() == pytest.approx([1 / SHRINKAGE, 1 / (1 + SHRINKAGE), 1 / (2 + SHRINKAGE)])


def test_gradient_is_that_of_the_coordinates():
    generator = torch.Generator().manual_seed(0)
    token_axes, hidden_axes = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for n in (3, 5))
    sensitivity = Sensitivity(token_axes, hidden_axes, torch.rand(3, 5, generator=generator))
    coordinates = torch.randn(1, 3, 5, generator=generator, requires_grad=True)
    weights = torch.randn(1, 3, 5, generator=generator)
    (sensitivity.to_noise(coordinates) * weights).sum().backward()
    assert torch.allclose(sensitivity.gradient(weights), coordinates.grad, atol=1e-6)
    assert sensitivity.to_noise(coordinates.detach()).mean(-1).abs().max() < 1e-6


def test_starts_are_more_harmless_than_random_noise(make_vit, make_batches):
    with frozen(make_vit(classifier_scale=20)) as model:
        classifier = FrozenClassifier(model)
        images = read_images(classifier, make_batches(48, 12), 48)
        sensitivity = measure_sensitivity(classifier, images, keyed_generator("sensitivity", 0))
        again = measure_sensitivity(classifier, images, keyed_generator("sensitivity", 0))
        assert torch.equal(sensitivity.amplitudes, again.amplitudes)
        start = sensitivity.to_noise(sensitivity.random_start(keyed_generator("start", 0)))
        random = torch.randn(start.shape, generator=keyed_generator("random", 0))
        distances = []
        for noise in (start, random - random.mean(-1, keepdim=True)):
            noise = 0.3 * noise / noise.norm()
            with torch.no_grad():
                noisy = [classifier.logits(batch.inputs, noise, batch.embeddings) for batch in images.batches()]
            distances.append(logit_distance(images.clean_logits, torch.cat(noisy)).mean().item())
    assert distances[0] < 0.7 * distances[1]


def test_models_that_ignore_their_patches_are_refused(make_vit, make_batches):
    model = make_vit()
    model.classifier.weight.data.zero_()
    with frozen(model):
        classifier = FrozenClassifier(model)
        images = read_images(classifier, make_batches(12, 12), 12)
        with pytest.raises(ValueError, match="do not depend on its patch embeddings"):
            measure_sensitivity(classifier, images, keyed_generator("sensitivity", 0))
