"""The probing objective on a tiny model: the condition of its optimum, and models without one."""

import pytest
import torch

from hf_nullspace.models.frozen import FrozenClassifier, frozen
from hf_nullspace.noise.certificate import token_norms
from hf_nullspace.noise.images import read_images
from hf_nullspace.noise.methods.steps import distance_gradient
from hf_nullspace.probing.search import harmless_search_axes, search_at


def search(model, batches, norm_weight, max_token_ratio=None):
    """Norm of the noise that 60 steps find, relative to the embeddings', its distance, and how that grows with it."""
    with frozen(model):
        classifier = FrozenClassifier(model)
        images = read_images(classifier, batches, 48)
        axes = harmless_search_axes(classifier, images, norm_weight, 60, seed=42, on_step=lambda: None)
        generator = torch.Generator().manual_seed(0)
        noise = search_at(classifier, images, axes, norm_weight, 60, 0.2, max_token_ratio, generator) @ axes
        assert noise.mean(-1).abs().max() < 1e-5
        norms = token_norms(noise)
        if max_token_ratio is not None:
            assert norms.max() <= 1.001 * max_token_ratio * norms.median()
        measured = [distance_gradient(classifier, batch, noise) for batch in images.batches()]
        distance = sum(step.distance.item() for step in measured) / len(measured)
        growth = sum((step.gradient * noise).sum().item() for step in measured) / len(measured)
        return noise.norm().item() / images.embedding_norm, distance, growth


@pytest.mark.parametrize(("norm_weight", "max_token_ratio"), [(0.02, None), (0.2, None), (0.2, 1.1)])
def test_search_meets_the_condition_of_its_optimum(make_vit, make_batches, norm_weight, max_token_ratio):
    """At the optimum the distance grows by lambda for a relative growth of the noise."""
    _, distance, growth = search(make_vit(classifier_scale=20), make_batches(48, 12), norm_weight, max_token_ratio)
    assert max(distance, growth) == pytest.approx(norm_weight, rel=0.3)
    assert growth > 0.5 * norm_weight


def test_large_lambdas_do_not_run_away(make_vit, make_batches):
    relative_norm, _, _ = search(make_vit(classifier_scale=20), make_batches(48, 12), 50.0)
    assert 5 < relative_norm <= 10 + 1e-3


def test_models_that_ignore_their_patches_are_refused(make_vit, make_batches):
    model = make_vit()
    model.classifier.weight.data.zero_()
    with pytest.raises(ValueError, match="do not depend on its patch embeddings"):
        search(model, make_batches(48, 12), 0.1)
