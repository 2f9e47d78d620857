"""The released attack: the step that it takes on normalised tensors, and that it is no eps-ball."""

import torch
from transformers import ViTImageProcessorPil

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks.released_fgsm import released_fgsm


def test_is_the_step_and_clamp_of_normalised_tensors(make_vit):
    model = make_vit(classifier_scale=20.0, initializer_range=0.2)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=mean, image_std=std)
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    attacked = released_fgsm(PixelModel(model, processor), pixels, labels)

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    normalised = ((pixels - mean) / std).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(normalised).logits, labels)
    (gradient,) = torch.autograd.grad(loss, normalised)
    expected = (normalised.detach() + 8 / 225 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close((attacked - mean) / std, expected, rtol=0, atol=1e-5)
    assert 0 <= attacked.min() and attacked.max() <= 1
    assert (attacked - pixels).abs().max() > 0.25
