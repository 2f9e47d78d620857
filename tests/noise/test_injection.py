"""Noise enters behind the patch projection, only while the gate is open, and leaves the model as it was."""

import copy
import pickle

import pytest
import torch

from hf_nullspace import inject_noise
from hf_nullspace.models.injection import NoiseInjector, add_noise, tokens_shape
from hf_nullspace.models.patch_projection import find_patch_projection


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20.0)


@pytest.fixture
def images(make_batches):
    return make_batches(6, 6)[0]["pixel_values"]


@pytest.fixture
def noise():
    return torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model, images):
    return model(images).logits


@torch.no_grad()
def logits_by_hand(model, images, noise):
    """ViT's forward pass written out, with the noise on its patch embeddings."""
    embeddings = model.vit.embeddings
    patches = embeddings.patch_embeddings.projection(images).flatten(2).transpose(1, 2) + noise
    hidden = torch.cat([embeddings.cls_token.expand(len(images), -1, -1), patches], 1) + embeddings.position_embeddings
    handle = embeddings.register_forward_hook(lambda module, args, output: hidden)
    try:
        return model(images).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("is_grid", [False, True], ids=["tokens", "grid"])
def test_add_noise_by_hand(is_grid, per_image):
    generator = torch.Generator().manual_seed(0)
    height, width, hidden = 2, 3, 5
    tokens = torch.randn(4, height * width, hidden, generator=generator)
    noise = torch.randn(4 if per_image else 1, height * width, hidden, generator=generator)
    expected = tokens.clone()
    for image in range(4):
        expected[image] += noise[image if per_image else 0]
    if is_grid:
        # Patch `row * width + column` of the tokens lies at `[row, column]` of the grid.
        activation, grid = torch.empty(2, 4, hidden, height, width)
        for row in range(height):
            for column in range(width):
                activation[..., row, column] = tokens[:, row * width + column]
                grid[..., row, column] = expected[:, row * width + column]
        expected = grid
    else:
        activation = tokens
    assert torch.equal(add_noise(activation, noise), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_noise_is_cast_to_the_activation(dtype):
    activation, noise = torch.ones(2, 3, 4, dtype=dtype), torch.full((1, 3, 4), 0.5)
    noisy = add_noise(activation, noise)
    assert noisy.dtype == dtype
    assert noisy.tolist() == torch.full((2, 3, 4), 1.5).tolist()


@pytest.mark.parametrize(
    "noise_shape, activation_shape, expected",
    [
        ((1, 5, 8), (2, 4, 8), "(1, 4, 8)"),
        ((1, 4, 7), (2, 8, 2, 2), "(1, 4, 8)"),
        ((3, 4, 8), (2, 4, 8), "(2, 4, 8)"),
        ((4, 8), (4, 4, 8), "(4, 4, 8)"),
    ],
)
def test_wrong_shape_is_refused_with_both_shapes(noise_shape, activation_shape, expected):
    with pytest.raises(ValueError) as error:
        add_noise(torch.zeros(activation_shape), torch.zeros(noise_shape))
    for text in (str(noise_shape), str(activation_shape), expected):
        assert text in str(error.value)


@pytest.mark.parametrize("shape, expected", [((2, 8, 3, 4), (12, 8)), ((2, 12, 8), (12, 8))])
def test_tokens_shape(shape, expected):
    assert tokens_shape(torch.zeros(shape)) == expected


def test_tokens_shape_refuses_other_layouts():
    with pytest.raises(ValueError, match=r"3 or 4 dimensions.*\(2, 8\)"):
        tokens_shape(torch.zeros(2, 8))


def test_shut_gate_changes_no_bit(model, images):
    before, keys = logits_of(model, images), list(model.state_dict())
    NoiseInjector.attach(model)
    assert torch.equal(logits_of(model, images), before)
    assert list(model.state_dict()) == keys
    assert sum(1 for _ in model.modules()) == sum(1 for _ in copy.deepcopy(model).modules())


def test_injected_noise_equals_noise_added_by_hand(model, images, noise):
    clean = logits_of(model, images)
    with inject_noise(model, noise) as same:
        noisy = logits_of(model, images)
    assert same is model
    torch.testing.assert_close(noisy, logits_by_hand(model, images, noise), rtol=0, atol=1e-5)
    assert (noisy - clean).abs().max() > 0.1
    assert torch.equal(logits_of(model, images), clean)


def test_gate_shuts_after_an_exception(model, images, noise):
    clean = logits_of(model, images)
    with pytest.raises(KeyError):
        with inject_noise(model, noise):
            raise KeyError
    assert torch.equal(logits_of(model, images), clean)


def test_gate_shuts_after_noise_that_does_not_fit(model, images):
    clean = logits_of(model, images)
    with pytest.raises(ValueError, match=r"\(1, 9, 32\).*\(6, 32, 2, 2\)"):
        with inject_noise(model, torch.zeros(1, 9, 32)):
            model(images)
    assert torch.equal(logits_of(model, images), clean)


def test_nested_injection_puts_the_outer_noise_back(model, images, noise):
    with inject_noise(model, noise):
        outer = logits_of(model, images)
        with inject_noise(model, 2 * noise):
            inner = logits_of(model, images)
        assert torch.equal(logits_of(model, images), outer)
    torch.testing.assert_close(inner, logits_by_hand(model, images, 2 * noise), rtol=0, atol=1e-5)


def test_each_image_gets_its_own_noise(model, images):
    noises = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(2))
    with inject_noise(model, noises):
        together = logits_of(model, images)
    for index in range(6):
        with inject_noise(model, noises[index : index + 1]):
            alone = logits_of(model, images[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)


def test_attach_gives_the_injector_that_is_there(model):
    injector = NoiseInjector.attach(model)
    projection = find_patch_projection(model).module
    assert NoiseInjector.attach(model) is injector
    assert len(projection._forward_hooks) == 1
    injector.remove()
    assert len(projection._forward_hooks) == 0
    assert NoiseInjector.attach(model) is not injector


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_of_a_model_has_an_injector_of_its_own(model, images, noise, duplicate):
    injector = NoiseInjector.attach(model)
    clean = logits_of(model, images)
    twin = duplicate(model)
    twin_injector = NoiseInjector.attach(twin)
    assert twin_injector is not injector
    assert twin_injector.projection.module is find_patch_projection(twin).module
    noisy = logits_by_hand(model, images, noise)
    with inject_noise(twin, noise):
        assert torch.equal(logits_of(model, images), clean)
        torch.testing.assert_close(logits_of(twin, images), noisy, rtol=0, atol=1e-5)
    twin_injector.remove()
    for classifier, left in ((twin, 0), (model, 1)):
        assert len(find_patch_projection(classifier).module._forward_hooks) == left


def test_bfloat16_model_takes_float32_noise(model, images, noise):
    model.to(torch.bfloat16)
    recorded = []
    NoiseInjector.attach(model)
    find_patch_projection(model).module.register_forward_hook(lambda module, args, output: recorded.append(output))
    clean = logits_of(model, images.bfloat16())
    with inject_noise(model, noise):
        noisy = logits_of(model, images.bfloat16())
    assert [output.dtype for output in recorded] == [torch.bfloat16] * 2
    added = (recorded[1] - recorded[0]).float().flatten(2).transpose(1, 2)
    torch.testing.assert_close(added, noise.expand(6, -1, -1), rtol=0.02, atol=0.02)
    assert (noisy - clean).abs().max() > 0.1
