"""`NullspaceNoise`: bitwise saving and loading, every refusal, and what is drawn from it."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from hf_nullspace import NullspaceConfig, NullspaceNoise
from hf_nullspace.noise.kinds import DrawnNoise
from hf_nullspace.noise.nullspace_noise import NOISE_CONFIG_NAME, NOISE_TENSOR_NAME


@pytest.fixture
def make_noise(make_certificate):
    def make(seed=1, mean=0.0, axes=None, **options):
        noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(seed)) + mean
        noise = noise if axes is None else DrawnNoise(noise, axes)
        config = NullspaceConfig(method="boundary" if axes is None else "sample")
        return NullspaceNoise(noise, make_certificate(probability_mse=0.002), config, **options)

    return make


@pytest.fixture
def saved(make_noise, tmp_path):
    make_noise(2).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("axes", [None, torch.eye(32)], ids=["shared", "drawn"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
def test_save_and_load_change_no_bit(make_noise, tmp_path, axes, mean):
    noise = make_noise(1, mean, axes, round_index=5)
    for folder in (tmp_path / "new" / "first", tmp_path / "second"):
        noise.save_pretrained(folder)
        loaded = NullspaceNoise.from_pretrained(folder)
        assert torch.equal(loaded.tensor, noise.tensor)
        assert loaded.to_dict() == noise.to_dict()
        assert (loaded.config, loaded.certificate, loaded.round_index) == (noise.config, noise.certificate, 5)
        assert torch.equal(loaded.noise.at(torch.arange(3)), noise.noise.at(torch.arange(3)))
        noise = loaded
    first, second = ((tmp_path / name / NOISE_TENSOR_NAME).read_bytes() for name in ("new/first", "second"))
    assert first == second


def test_axes_are_saved_and_tell_noises_apart(make_noise, tmp_path):
    axes = torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
    noise = make_noise(axes=axes)
    noise.save_pretrained(tmp_path)
    loaded = NullspaceNoise.from_pretrained(tmp_path)
    assert torch.equal(loaded.noise.axes, axes) and loaded.to_dict() == noise.to_dict()
    assert len({noise.digest(), make_noise().digest(), make_noise(axes=-axes).digest()}) == 3


def test_axes_give_every_image_a_noise_of_its_own(make_noise):
    axes = torch.diag(torch.cat([torch.ones(8), torch.zeros(24)]))
    noise = make_noise(axes=axes)
    drawn = noise.draw(6, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 4, 32) and (drawn[..., 8:] == 0).all()
    torch.testing.assert_close(drawn.flatten(1).norm(dim=1), noise.tensor.norm().expand(6))
    assert len({row.numpy().tobytes() for row in drawn}) == 6


def test_only_safetensors_and_json_are_written(saved):
    assert sorted(os.listdir(saved)) == [NOISE_CONFIG_NAME, NOISE_TENSOR_NAME]


@pytest.mark.parametrize("name", [NOISE_TENSOR_NAME, NOISE_CONFIG_NAME])
def test_a_save_that_fails_leaves_the_old_file(saved, make_noise, monkeypatch, name):
    before = (saved / name).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_nullspace.utils.files.os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        make_noise(3).save_pretrained(saved)
    assert (saved / name).read_bytes() == before
    assert sorted(os.listdir(saved)) == [NOISE_CONFIG_NAME, NOISE_TENSOR_NAME]


def test_digest_tells_noises_apart(make_noise):
    noise = make_noise(2)
    assert noise.digest() == make_noise(2).digest()
    changed = noise.tensor.clone()
    changed[0, 0, 0] = torch.nextafter(changed[0, 0, 0], torch.tensor(9.0))
    assert NullspaceNoise(changed, noise.certificate, noise.config).digest() != noise.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_hidden_mean_is_removed(make_certificate, dtype):
    tensor = torch.tensor([[[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]], dtype=dtype)
    noise = NullspaceNoise(tensor.requires_grad_(), make_certificate(), NullspaceConfig())
    assert noise.tensor.tolist() == [[[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]
    assert (noise.tensor.dtype, noise.tensor.requires_grad) == (torch.float32, False)


def test_infinite_bound_survives(make_certificate, tmp_path):
    certificate = make_certificate(probability_mse_upper=float("inf"), converged=False, num_images=1)
    NullspaceNoise(torch.randn(1, 4, 8), certificate, NullspaceConfig()).save_pretrained(tmp_path)
    assert NullspaceNoise.from_pretrained(tmp_path).certificate == certificate


@pytest.mark.parametrize(
    "tensor, message",
    [
        (torch.zeros(4, 8), r"\(4, 8\)"),
        (torch.zeros(1, 1, 4, 8), r"\(1, 1, 4, 8\)"),
        (torch.tensor([[[0.0, float("nan")]]]), "NaN or infinite"),
        (torch.tensor([[[0.0, float("-inf")]]]), "NaN or infinite"),
        (torch.zeros(3, 4, 8), r"shape \(1, num_patches, hidden_size\).*\(3, 4, 8\)"),
        (torch.zeros(1, 0, 8), r"\(1, 0, 8\)"),
    ],
    ids=["2 dimensions", "4 dimensions", "nan", "inf", "several", "empty"],
)
def test_bad_tensor_is_refused(make_certificate, tensor, message):
    with pytest.raises(ValueError, match=message):
        NullspaceNoise(tensor, make_certificate(), NullspaceConfig())


def test_a_noise_of_another_kind_than_its_method_finds_is_refused(make_certificate):
    with pytest.raises(ValueError, match="`method='sample'` is a `DrawnNoise`, but got a `SharedNoise`"):
        NullspaceNoise(torch.zeros(1, 4, 8), make_certificate(), NullspaceConfig(method="sample"))


@pytest.mark.parametrize("certificate, config", [([], NullspaceConfig()), (None, None), ("certificate", {})])
def test_arguments_of_another_type_are_refused(make_certificate, certificate, config):
    certificate = make_certificate() if certificate == "certificate" else certificate
    with pytest.raises(TypeError, match="its `Certificate` and a `NullspaceConfig`, but got a `(list|NoneType|dict)`"):
        NullspaceNoise(torch.zeros(1, 4, 8), certificate, config)


def keep(size):
    return lambda folder: (folder / NOISE_TENSOR_NAME).write_bytes((folder / NOISE_TENSOR_NAME).read_bytes()[:size])


def write_json(text):
    return lambda folder: (folder / NOISE_CONFIG_NAME).write_text(text)


def change_json(**changes):
    def damage(folder):
        values = json.loads((folder / NOISE_CONFIG_NAME).read_text())
        (folder / NOISE_CONFIG_NAME).write_text(json.dumps({**values, **changes}))

    return damage


def write_tensors(**tensors):
    return lambda folder: save_file(tensors, folder / NOISE_TENSOR_NAME)


@pytest.mark.parametrize(
    "damage, detail",
    [
        (keep(0), "header"),
        (keep(60), "header"),
        (keep(-8), "incomplete|not fully covered"),
        (write_tensors(other=torch.zeros(1, 4, 32)), "noise"),
        (write_tensors(noise=torch.zeros(1, 9, 32)), r"\[1, 9, 32\].*\[1, 4, 32\]"),
        (write_tensors(noise=torch.zeros(1, 4, 32)), "not the one that the JSON was written with"),
        (write_tensors(noise=torch.zeros(1, 4, 32), axes=torch.eye(32)), "made of the tensors"),
        (write_tensors(noise=torch.full((1, 4, 32), float("nan"))), "NaN or infinite"),
        (write_json('{"shape": [1, 4'), "line 1"),
        (write_json("[]"), "list"),
        (change_json(shape=[2, 4, 32]), r"\[1, 4, 32\].*\[2, 4, 32\]"),
        (change_json(certificates=[]), "0 certificates|not enough values"),
        (change_json(certificates=[{"norm": 1.0}]), "lacks"),
        (change_json(config={"epsilom": 1.0}), "epsilom"),
    ],
)
def test_damaged_file_is_refused_with_its_folder(saved, damage, detail):
    damage(saved)
    with pytest.raises(ValueError, match=detail) as error:
        NullspaceNoise.from_pretrained(saved)
    assert "damaged" in str(error.value)
    assert str(saved) in str(error.value)


@pytest.mark.parametrize("name", [NOISE_CONFIG_NAME, NOISE_TENSOR_NAME])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        NullspaceNoise.from_pretrained(str(saved))
    assert name in str(error.value)
    assert str(saved) in str(error.value)


def test_save_into_a_file_raises(make_noise, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        make_noise().save_pretrained(tmp_path / "file")


def test_a_bank_of_an_earlier_version_is_refused_by_what_was_measured(saved):
    change_json(config={**NullspaceConfig().to_dict(), "bank_size": 2})(saved)
    with pytest.raises(
        ValueError, match="is a bank of 2 noises. `bank_size` was removed: .*3.78 points.*again"
    ) as error:
        NullspaceNoise.from_pretrained(saved)
    assert "damaged" not in str(error.value)


def test_draw_of_a_shared_noise_is_that_noise(make_noise):
    noise = make_noise(1)
    assert torch.equal(noise.draw(8, torch.Generator().manual_seed(0)), noise.tensor)


def test_draws_in_axes_are_independent(make_noise):
    noise = make_noise(axes=torch.eye(32))
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([noise.draw(2, generator) for _ in range(3)]).flatten(1)
    cosines = torch.nn.functional.cosine_similarity(draws[:, None], draws[None], dim=-1)
    assert (cosines - torch.eye(6)).abs().max() < 0.4  # 128 dimensions: standard deviation 0.09


def test_repr_tells_the_numbers(make_noise):
    text = repr(make_noise(2, round_index=3))
    assert "shape=(1, 4, 32)" in text
    assert "probability_mse=0.002" in text
    assert "round=3" in text
