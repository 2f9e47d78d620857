"""What is measured follows the problem: sigmoids for several labels, and a refusal where there are no classes."""

import pytest
import torch
from torch.utils.data import IterableDataset

from hf_nullspace import NullspaceConfig, NullspaceNoise, inject_noise, measure_noise, probe, synthesize_noise
from hf_nullspace.models.objectives import is_multi_label
from hf_nullspace.noise.kinds import DrawnNoise
from hf_nullspace.training.images import StreamReader


def test_multi_label_models_are_measured_by_their_sigmoids(make_vit, make_batches):
    model, batches = (
        make_vit(5.0, initializer_range=0.2, problem_type="multi_label_classification"),
        make_batches(80, 16),
    )
    config = NullspaceConfig(epsilon=0.3, max_steps=4, num_images=16)
    noise = synthesize_noise(model, batches, config, disable_tqdm=True)
    certificate = measure_noise(model, noise, batches)
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    with torch.no_grad(), inject_noise(model, noise):
        noisy = model(pixels).logits
    with torch.no_grad():
        clean = model(pixels).logits
    change = (noisy.sigmoid() - clean.sigmoid()).square().sum(-1)
    assert certificate.probability_mse == pytest.approx(change.mean().item(), rel=1e-4)
    assert certificate.agreement == pytest.approx(((noisy > 0) == (clean > 0)).all(-1).float().mean().item())
    assert certificate.num_images_needed == 49  # of a range of 5 labels
    assert noise.certificate.is_within_epsilon


@pytest.mark.parametrize("changes", [{"num_labels": 1}, {"problem_type": "regression"}])
def test_models_that_predict_numbers_are_refused(make_vit, make_batches, changes):
    model, batches = make_vit(**changes), make_batches(32, 8)
    for act in (
        lambda: synthesize_noise(model, batches, disable_tqdm=True),
        lambda: measure_noise(model, torch.ones(1, 4, 32), batches),
    ):
        with pytest.raises(ValueError, match="predicts numbers"):
            act()
    assert not model.vit.embeddings.patch_embeddings.projection._forward_hooks


@pytest.mark.parametrize(
    "labels, expected",
    [
        (torch.tensor([0, 3]), False),
        (torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]]), True),
        (torch.tensor([[0.25, 0.75, 0.0, 0.0, 0.0]]), False),  # a soft label, as Mixup makes them
        (None, False),
    ],
)
def test_labels_decide_where_the_config_does_not(tiny_vit, labels, expected):
    assert is_multi_label(tiny_vit, labels) is expected


class Stream(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(range(self.length))


def test_a_stream_goes_on_and_a_new_reader_finds_the_same():
    reader = StreamReader(Stream(10))
    assert reader.read(0, 4) == [0, 1, 2, 3]
    assert reader.read(4, 4) == [4, 5, 6, 7]
    assert reader.read(8, 4) == [8, 9, 0, 1]
    for start in (4, 8, 12, 35, 4):
        expected = [place % 10 for place in range(start, start + 4)]
        assert StreamReader(Stream(10)).read(start, 4) == reader.read(start, 4) == expected
    assert sorted(StreamReader(Stream(3)).read(0, 7)) == [0, 1, 2]
    assert StreamReader(Stream(0)).read(0, 7) == StreamReader(Stream(0)).read(5, 7) == []


@pytest.fixture
def wide_vit(make_vit):
    """2 rows and 8 columns of patches."""
    return make_vit(image_size=(16, 64))


def test_noise_of_another_grid_is_resized_and_never_laid_down_row_by_row(wide_vit, make_certificate):
    noise = torch.zeros(1, 16, 32)
    noise[0, 12] = torch.randn(32)  # the lower left patch of 4 x 4
    known = NullspaceNoise(noise, make_certificate(), NullspaceConfig(), grid=(4, 4))
    pixels, embed = torch.zeros(1, 3, 16, 64), wide_vit.vit.embeddings.patch_embeddings.projection
    with torch.no_grad():
        clean = embed(pixels)
        with inject_noise(wide_vit, known, resize=True):
            change = (embed(pixels) - clean).norm(dim=1)[0]
    assert change.shape == (2, 8) and change.argmax().item() == 8  # its lower left patch
    with pytest.raises(ValueError, match="does not say their grid"), inject_noise(wide_vit, noise, resize=True):
        embed(pixels)
    with pytest.raises(ValueError, match=r"grid of 4 x 4 patches.*2 x 8"), inject_noise(wide_vit, known):
        embed(pixels)
    with torch.no_grad(), inject_noise(wide_vit, known.tensor, resize=True, grid=(4, 4)):
        torch.testing.assert_close((embed(pixels) - clean).norm(dim=1)[0], change, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"grid of 4 x 4"):
        measure_noise(wide_vit, known, [{"pixel_values": torch.zeros(4, 3, 16, 64)}])


def test_synthesised_noise_keeps_its_grid(wide_vit, tmp_path):
    batches = list(torch.randn(32, 3, 16, 64).split(8))
    noise = synthesize_noise(wide_vit, [{"pixel_values": part} for part in batches], NullspaceConfig(max_steps=1))
    noise.save_pretrained(tmp_path)
    assert noise.grid == NullspaceNoise.from_pretrained(tmp_path).grid == (2, 8)


def test_noise_objects_are_injected_as_training_draws_them(tiny_vit, make_certificate):
    tensor = torch.randn(1, 4, 32)
    pixels, embed = torch.zeros(6, 3, 16, 16), tiny_vit.vit.embeddings.patch_embeddings.projection
    one = NullspaceNoise(tensor, make_certificate(), NullspaceConfig())
    draws = NullspaceNoise(DrawnNoise(tensor, torch.eye(32)), make_certificate(), NullspaceConfig(method="sample"))
    with torch.no_grad():
        clean = embed(pixels)
        changes = []
        for noise in (one, draws, draws):
            with inject_noise(tiny_vit, noise):
                changes.append((embed(pixels) - clean).flatten(2).transpose(1, 2))
    torch.testing.assert_close(changes[0], one.tensor.expand(6, -1, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(changes[1].flatten(1).norm(dim=1), one.tensor.norm().expand(6), rtol=1e-4, atol=1e-4)
    assert torch.equal(changes[1], changes[2])
    assert not torch.allclose(changes[1][0], changes[1][1])


def test_a_wrong_projection_leaves_no_hooks(tiny_vit, make_batches):
    name = "vit.layers.0.mlp.fc1" if hasattr(tiny_vit.vit, "layers") else "classifier"
    module = tiny_vit.get_submodule(name)
    for act in (
        lambda: synthesize_noise(tiny_vit, make_batches(16, 8), patch_projection="classifier", disable_tqdm=True),
        lambda: measure_noise(tiny_vit, torch.ones(1, 4, 32), make_batches(16, 8), patch_projection=name),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            act()
    hooks = [part for part in tiny_vit.modules() if part._forward_hooks or part._forward_pre_hooks]
    assert hooks == [] and not module._forward_hooks


BAD_INPUTS = {
    "no model": (lambda vit, good: synthesize_noise(None, good), TypeError, "`model` must be an `nn.Module`"),
    "a loader that is none": (
        lambda vit, good: synthesize_noise(vit, 7),
        TypeError,
        "`dataloader` must yield batches",
    ),
    "batches of tensors": (lambda vit, good: synthesize_noise(vit, torch.rand(4, 2, 3)), ValueError, "must be a dict"),
    "batches without pixels": (
        lambda vit, good: synthesize_noise(vit, [{"images": 1}]),
        ValueError,
        "keys \\['images'\\]",
    ),
    "raw bytes": (
        lambda vit, good: synthesize_noise(vit, [{"pixel_values": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}]),
        ValueError,
        "normalised pixels in floating point",
    ),
    "an empty loader": (lambda vit, good: synthesize_noise(vit, []), ValueError, "There are 0 images"),
    "a config as a dict": (
        lambda vit, good: synthesize_noise(vit, good, {"epsilon": 1}),
        TypeError,
        "NullspaceConfig",
    ),
    "noise by its path": (lambda vit, good: measure_noise(vit, "out", good), TypeError, "from_pretrained"),
    "noise as a list": (lambda vit, good: measure_noise(vit, [1.0], good), TypeError, "got a `list`"),
    "noise of a matrix": (lambda vit, good: measure_noise(vit, torch.zeros(4, 32), good), ValueError, "shape"),
    "integers": (lambda vit, good: measure_noise(vit, torch.zeros(1, 4, 32).long(), good), ValueError, "int64"),
    "NaN": (lambda vit, good: measure_noise(vit, torch.full((1, 4, 32), torch.nan), good), ValueError, "NaN"),
    "nothing injected": (lambda vit, good: inject_noise(vit, None).__enter__(), TypeError, "NullspaceNoise"),
    "injected into a function": (lambda vit, good: inject_noise(len, None).__enter__(), TypeError, "`model`"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_say_what_was_given(tiny_vit, make_batches, name):
    act, error, words = BAD_INPUTS[name]
    with pytest.raises(error, match=words):
        act(tiny_vit, make_batches(16, 8))
    assert not any(module._forward_hooks for module in tiny_vit.modules())


def test_probe_refuses_models_that_predict_numbers(make_vit):
    with pytest.raises(ValueError, match="predicts numbers"):
        probe(make_vit(num_labels=1), None, [])
