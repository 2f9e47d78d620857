"""One pass over the clean and the noisy half gives each the outputs and the loss of a pass of its own."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    DeiTConfig,
    DeiTForImageClassification,
    PvtV2Config,
    PvtV2ForImageClassification,
    ResNetConfig,
    SwinConfig,
)

from hf_nullspace.models.injection import NoiseInjector
from hf_nullspace.models.patch_projection import find_patch_projection
from hf_nullspace.training.noise_forward import (
    NotSeparableError,
    TwofoldForward,
    check_not_checkpointed,
    reason_against_concatenation,
)


SMALL = {"image_size": 16, "num_labels": 5}
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
}
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **SMALL)
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", **SMALL)
SWIN = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, patch_size=4, **SMALL)


def two_passes(model, batch, noise):
    injector = NoiseInjector.attach(model)
    clean = model(**batch)
    with injector.inject(noise):
        return clean, model(**batch)


def halves_of(model, batch, noise):
    twofold = TwofoldForward(model, model, NoiseInjector.attach(model), noise)
    return twofold(**batch), twofold(**batch)


def batch_of(count=6, **extra):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(count) % 5, **extra}


def noise_for(model, count):
    outputs = []
    handle = find_patch_projection(model).module.register_forward_hook(lambda *call: outputs.append(call[2]))
    model(batch_of()["pixel_values"])
    handle.remove()
    tokens = outputs[0].flatten(2).transpose(1, 2)
    return torch.randn(count, *tokens.shape[1:], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": torch.tensor(9)}], ids=["mean", "items"])
@pytest.mark.parametrize("count", [1, 6], ids=["one noise", "noise for each"])
@pytest.mark.parametrize("kind", ["vit", "deit", "swin", "convnext"])
def test_halves_are_the_two_passes(make_vit, kind, count, extra):
    if kind == "vit":
        model = make_vit(classifier_scale=20.0)
    elif kind == "deit":
        model = DeiTForImageClassification(DeiTConfig(**ENCODER, **SMALL))
    else:
        model = AutoModelForImageClassification.from_config({"swin": SWIN, "convnext": CONVNEXT}[kind])
    if kind == "convnext":
        extra = {}  # its forward takes no more than images and labels
    model.eval()
    batch, noise = batch_of(**extra), noise_for(model, count)
    for half, alone in zip(halves_of(model, batch, noise), two_passes(model, batch, noise), strict=True):
        assert type(half) is type(alone)
        torch.testing.assert_close(half["logits"], alone["logits"], rtol=1e-5, atol=1e-5)
        assert half["loss"].item() == pytest.approx(alone["loss"].item(), rel=1e-5)


def test_hidden_states_are_halved_too(make_vit):
    model, batch = make_vit(), batch_of(output_hidden_states=True)
    noise = noise_for(model, 1)
    for half, alone in zip(halves_of(model, batch, noise), two_passes(model, batch, noise), strict=True):
        assert len(half["hidden_states"]) == len(alone["hidden_states"]) > 1
        for left, right in zip(half["hidden_states"], alone["hidden_states"], strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def test_gradients_are_those_of_two_passes(make_vit):
    model, batch = make_vit(classifier_scale=20.0), batch_of()
    noise, twin = noise_for(model, 1), copy.deepcopy(model)
    for classifier, run in ((model, halves_of), (twin, two_passes)):
        clean, noisy = run(classifier, batch, noise)
        (clean["loss"] + 0.5 * noisy["loss"]).backward()
    for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def own_weights(model, labels, logits):
    """Class weights that leave the loss of the balanced first batch as it is."""
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0 + 1e-7])
    return torch.nn.functional.cross_entropy(logits, labels, weight=weights)


def doubled(model, labels, logits):
    return 2 * model.loss_function(labels, logits, model.config)


def penalised(model, labels, logits):
    return model.loss_function(labels, logits, model.config) + 0 * logits.square().mean()


@pytest.mark.parametrize("own", [own_weights, doubled, penalised])
def test_a_loss_of_its_own_is_noticed(make_vit, own):
    """Even where it is equal: what counts is where it comes from."""
    model = make_vit()
    forward = model.forward

    def with_own_loss(pixel_values, labels=None, **kwargs):
        outputs = forward(pixel_values, **kwargs)
        if labels is not None:
            outputs["loss"] = own(model, labels, outputs["logits"])
        return outputs

    model.forward = with_own_loss
    with pytest.raises(NotSeparableError, match="loss_function"):
        halves_of(model, batch_of(), noise_for(model, 1))


def test_a_loss_function_of_its_own_sees_each_half(make_vit):
    """Class weights make the loss of a batch another than the mean over its halves."""
    model, batch = make_vit(classifier_scale=20.0), batch_of()
    weights = torch.tensor([9.0, 1.0, 0.1, 3.0, 1.0])

    def weighted(labels, logits, config, **kwargs):
        return torch.nn.functional.cross_entropy(logits, labels, weight=weights)

    model.loss_function = weighted
    noise = noise_for(model, 1)
    for half, alone in zip(halves_of(model, batch, noise), two_passes(model, batch, noise), strict=True):
        torch.testing.assert_close(half["loss"], alone["loss"])
        expected = torch.nn.functional.cross_entropy(alone["logits"], batch["labels"], weight=weights)
        torch.testing.assert_close(half["loss"], expected)
    assert model.loss_function is weighted


def test_outputs_of_the_whole_batch_are_noticed(make_vit):
    model = make_vit()
    model.register_forward_hook(lambda module, args, outputs: {**outputs, "auxiliary": outputs["logits"].mean()})
    with pytest.raises(NotSeparableError, match="auxiliary, of shape .* of the whole batch"):
        halves_of(model, {"pixel_values": batch_of()["pixel_values"]}, noise_for(make_vit(), 1))


def test_outputs_without_names_are_noticed(make_vit):
    with pytest.raises(NotSeparableError, match="tuple"):
        halves_of(make_vit(), batch_of(return_dict=False), noise_for(make_vit(), 1))


def test_reasons_against_concatenation(make_vit):
    assert reason_against_concatenation(make_vit()) is None
    assert "BatchNorm2d" in reason_against_concatenation(AutoModelForImageClassification.from_config(RESNET))
    assert reason_against_concatenation(nn.BatchNorm2d(2, track_running_stats=False)).startswith("BatchNorm2d takes")
    patched = make_vit()
    patched.vit.forward = patched.vit.forward.__func__.__get__(patched.vit)
    assert reason_against_concatenation(patched) is None
    patched.vit.forward = lambda *args, **kwargs: None
    assert "vit (ViTModel) runs code of its own" in reason_against_concatenation(patched)


def test_a_projection_that_checkpointing_runs_again_is_refused(make_vit):
    config = PvtV2Config(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], num_attention_heads=[1], mlp_ratios=[1],
        patch_sizes=[7], strides=[4], **SMALL
    )  # fmt: skip
    model = PvtV2ForImageClassification(config)
    with pytest.raises(ValueError, match="layers.0.*PvtV2ForImageClassification without `activation_checkpointing`"):
        check_not_checkpointed(model, find_patch_projection(model), will_be_on=True)
    check_not_checkpointed(model, find_patch_projection(model))
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="layers.0.*PvtV2ForImageClassification"):
        check_not_checkpointed(model, find_patch_projection(model))
    check_not_checkpointed(make_vit(), find_patch_projection(make_vit()))
