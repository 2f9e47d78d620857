"""PatchFool: which patch it takes, what it does to the gradients, and that it beats a random patch of the same size."""

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    IJepaConfig,
    IJepaForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.robustness.attacks import patchfool
from hf_nullspace.robustness.attacks.patchfool import early_half, gradient_towards_attention


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.2,
}


def siglip():
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return SiglipForImageClassification(SiglipConfig(vision_config=TINY, text_config=text, num_labels=5))


# Name -> how to build the model, and how many tokens come before its 16 patches.
MODELS = {
    "vit": (lambda: ViTForImageClassification(ViTConfig(**TINY, num_labels=5)), 1),
    "deit": (lambda: DeiTForImageClassification(DeiTConfig(**TINY, num_labels=5)), 2),
    "deit_with_teacher": (lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**TINY, num_labels=5)), 2),
    "beit": (lambda: BeitForImageClassification(BeitConfig(**TINY, num_labels=5)), 1),
    "dinov2": (lambda: Dinov2ForImageClassification(Dinov2Config(**TINY, num_labels=5)), 1),
    "dinov2_with_registers": (
        lambda: Dinov2WithRegistersForImageClassification(
            Dinov2WithRegistersConfig(**TINY, num_labels=5, num_register_tokens=3)
        ),
        4,
    ),
    "ijepa": (lambda: IJepaForImageClassification(IJepaConfig(**TINY, num_labels=5)), 0),
    "siglip": (siglip, 0),
}


def build(make, image_size=16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    return PixelModel(model, ViTImageProcessorPil(size={"height": image_size, "width": image_size}))


def predictions(model, pixels):
    with torch.no_grad():
        return model(pixels).argmax(-1)


def random_pixels(count=4, height=16, width=16):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def changed_patches(pixels, attacked, patch_size):
    """Whether each patch of each picture was changed, of shape `(batch_size, num_patches)`."""
    changed = (attacked != pixels).any(1, keepdim=True).float()
    return torch.nn.functional.max_pool2d(changed, patch_size).flatten(1).bool()


def attention_received(model, pixels, block):
    """Attention of each token, taken from the model itself in eager mode."""
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model.model(pixel_values=(pixels - 0.5) / 0.5, output_attentions=True).attentions[block]
    model.model.set_attn_implementation("sdpa")
    return attention.mean((1, 2))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_patches", [1, 3])
def test_patches_with_the_most_attention_are_replaced(name, num_patches):
    make, extra_tokens = MODELS[name]
    model, pixels = build(make), random_pixels()
    attacked = patchfool(model, pixels, predictions(model, pixels), num_patches=num_patches, block=1, steps=2)
    received = attention_received(model, pixels, 1)
    assert received.shape[1] == 16 + extra_tokens
    expected = torch.zeros(4, 16, dtype=torch.bool)
    expected.scatter_(1, received[:, extra_tokens:].topk(num_patches, dim=1).indices, True)
    assert torch.equal(changed_patches(pixels, attacked, 4), expected)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    configs = [model.model.config, getattr(model.model.config, "vision_config", model.model.config)]
    assert [config._attn_implementation for config in configs] == ["sdpa", "sdpa"]


def test_last_block_chooses_where_there_are_fewer():
    model, pixels = build(MODELS["vit"][0]), random_pixels()
    labels = predictions(model, pixels)
    first, last = (patchfool(model, pixels, labels, block=block, steps=1) for block in (2, 4))
    assert torch.equal(first, last)


def test_pictures_that_are_no_square_of_patches():
    model, pixels = build(MODELS["dinov2"][0]), random_pixels(height=22, width=12)
    attacked = patchfool(model, pixels, predictions(model, pixels), steps=1)
    changed = changed_patches(pixels, attacked, 4)
    assert changed.shape == (4, 5 * 3)
    assert changed.sum(1).tolist() == [1] * 4
    assert torch.equal(attacked[:, :, 20:], pixels[:, :, 20:])


def test_attention_is_put_back_after_an_error():
    model, pixels = build(MODELS["vit"][0]), random_pixels()
    with pytest.raises(ValueError, match="Labels must be 0 to 4"):
        patchfool(model, pixels, torch.full((4,), 5))
    assert model.model.config._attn_implementation == "sdpa"


def test_eager_model_stays_eager():
    model, pixels = build(MODELS["vit"][0]), random_pixels()
    model.model.set_attn_implementation("eager")
    patchfool(model, pixels, predictions(model, pixels), steps=1)
    assert model.model.config._attn_implementation == "eager"


def random_patch_accuracy(model, pixels, labels, attacked, draws):
    """Percentage that stays right when the same patches get random pixels."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.nn.functional.interpolate(
        changed_patches(pixels, attacked, model.model.config.patch_size)
        .float()
        .view(-1, 1, *(side // model.model.config.patch_size for side in pixels.shape[2:])),
        size=pixels.shape[2:],
    ).bool()
    hits = [
        predictions(model, torch.where(mask, torch.rand(pixels.shape, generator=generator), pixels)) == labels
        for _ in range(draws)
    ]
    return torch.stack(hits).double().mean().item() * 100


def test_beats_a_random_patch():
    model, pixels = build(MODELS["vit"][0]), random_pixels(32)
    labels = predictions(model, pixels)
    attacked = patchfool(model, pixels, labels, steps=40)
    accuracy = (predictions(model, attacked) == labels).double().mean().item() * 100
    assert accuracy <= random_patch_accuracy(model, pixels, labels, attacked, 5) - 25


@pytest.mark.slow
def test_beats_a_random_patch_on_vit_small():
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    model = build(lambda: ViTForImageClassification(config), 224)
    pixels = torch.nn.functional.interpolate(random_pixels(8, 14, 14), size=224, mode="bilinear").clamp(0, 1)
    labels = predictions(model, pixels)
    attacked = patchfool(model, pixels, labels, steps=10)
    accuracy = (predictions(model, attacked) == labels).double().mean().item() * 100
    random_accuracy = random_patch_accuracy(model, pixels, labels, attacked, 3)
    print(f"ViT-S/16: {accuracy:.1f} % under PatchFool, {random_accuracy:.1f} % under a random patch")
    assert changed_patches(pixels, attacked, 16).sum(1).tolist() == [1] * 8
    assert accuracy <= random_accuracy - 50
    assert model.model.config._attn_implementation == "sdpa"


def test_gradient_without_what_opposes_it():
    """Attention `exp(direction . x)` at x = 0: its logarithm has the gradient `direction`."""
    variable = torch.zeros(3, 2, requires_grad=True)
    main = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    side = torch.tensor([[-1.0, 3.0], [1.0, 3.0], [1.0, 1.0]])
    attention = (variable * side).sum(1).exp().view(3, 1).expand(3, 7)
    gradient = gradient_towards_attention(variable, (variable * main).sum(1), [attention, attention], 0.5)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 3.0], [3.0, 3.0], [1.0, 1.0]]))
    assert torch.equal(gradient_towards_attention(variable, (variable * main).sum(1), [attention], 0.0), main)


@pytest.mark.parametrize("blocks, expected", [(1, [0]), (3, [0, 1, 2]), (4, [1]), (12, [1, 2, 3, 4, 5])])
def test_attention_of_early_blocks_counts(blocks, expected):
    assert early_half(list(range(blocks))) == expected


@pytest.mark.parametrize(
    "make, size, text",
    [
        (
            lambda: ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)),
            64,
            "no attention",
        ),
        (lambda: ResNetForImageClassification(ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4)), 64, "side by side"),
        (lambda: Data2VecVisionForImageClassification(Data2VecVisionConfig(**TINY)), 16, 'implementation="eager"'),
        (
            lambda: SwinForImageClassification(
                SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=16, patch_size=4, window_size=2)
            ),
            16,
            "windowed and pooled attention",
        ),
    ],
    ids=["convnext", "resnet", "data2vec", "swin"],
)
def test_models_without_attention_over_patches_are_refused(make, size, text):
    model, pixels = build(make), random_pixels(2, size, size)
    with pytest.raises(ValueError, match=text):
        patchfool(model, pixels, predictions(model, pixels), steps=1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_patches": 0},
        {"num_patches": 17},
        {"block": -1},
        {"steps": 0},
        {"learning_rate": 0},
        {"decay": 1.5},
        {"decay_steps": 0},
        {"attention_weight": -1},
    ],
)
def test_settings_are_checked(options):
    model, pixels = build(MODELS["vit"][0]), random_pixels()
    with pytest.raises(ValueError, match=f"`{next(iter(options))}="):
        patchfool(model, pixels, predictions(model, pixels), **options)
