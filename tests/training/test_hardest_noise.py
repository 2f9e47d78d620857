"""The hardest of several noises: chosen for each image by its own loss, which one pass over the batch gives."""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_nullspace.models.injection import NoiseInjector
from hf_nullspace.training.hardest_noise import ImageLosses, hardest


IMAGES, LABELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
NOISE = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(1))
BATCH = {"pixel_values": IMAGES, "labels": LABELS}


def mean_loss(model, inputs):
    return model(**inputs).loss


def summed_loss(model, inputs):
    return model(**inputs, num_items_in_batch=24).loss


def smooth_loss(model, inputs):
    """What `label_smoothing_factor` makes of it: labels that the model does not see."""
    return cross_entropy(model(pixel_values=inputs["pixel_values"]).logits, inputs["labels"], label_smoothing=0.1)


def entangled_loss(model, inputs):
    """Of no image alone: each competes with the others."""
    outputs = model(**inputs)
    return outputs.loss + outputs.logits.softmax(0).square().sum()


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20.0).eval()


def losses_and_passes(model, loss_of, batch=BATCH):
    """The losses of two calls, which must agree, and the images of each pass."""
    image_losses, injector, passes = ImageLosses(), NoiseInjector.attach(model), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    losses = [image_losses(loss_of, model, batch, injector, NOISE) for _ in range(2)]
    assert torch.equal(*losses)
    return losses[0], list(passes)


def alone(model, loss_of):
    """The loss of each image in a batch of its own."""
    injector, losses = NoiseInjector.attach(model), []
    for index in range(6):
        with injector.inject(NOISE[index : index + 1]):
            losses.append(loss_of(model, {name: values[index : index + 1] for name, values in BATCH.items()}))
    return torch.stack(losses)


def test_each_image_gets_its_hardest():
    losses = iter(torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 1.0], [2.0, 4.0, 7.0]]))
    candidates = [torch.full((3, 4, 32), float(index)) for index in range(3)]
    chosen = hardest(candidates, lambda noise: next(losses))
    assert chosen[:, 0, 0].tolist() == [1.0, 0.0, 2.0]  # the earlier one of two that are equal


def test_a_loss_that_is_not_finite_is_not_chosen():
    losses = iter(torch.tensor([[torch.nan, 1.0, torch.inf], [-2.0, torch.inf, torch.nan]]))
    candidates = [torch.full((3, 4, 32), float(index)) for index in range(2)]
    assert hardest(candidates, lambda noise: next(losses))[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("loss_of", [mean_loss, summed_loss, smooth_loss])
def test_one_pass_gives_the_loss_of_each_image(model, loss_of):
    losses, passes = losses_and_passes(model, loss_of)
    torch.testing.assert_close(losses, alone(model, loss_of))
    assert passes == [6, 6, 6]  # the first one is a check
    assert losses.std() > 0.01


@pytest.mark.parametrize("kind", ["entangled", "penalty"])
def test_a_loss_that_is_not_made_of_the_images_takes_a_pass_for_each(model, kind):
    loss_of = {"entangled": entangled_loss, "penalty": mean_loss}[kind]
    if kind == "penalty":
        forward = model.forward

        @functools.wraps(forward)
        def with_penalty(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            outputs["loss"] = outputs["loss"] + outputs["logits"].square().mean()
            return outputs

        model.forward = with_penalty
    losses, passes = losses_and_passes(model, loss_of)
    assert passes == [6] + [1] * 12
    torch.testing.assert_close(losses, alone(model, loss_of))
