"""`NullspaceNoise`: bitwise saving and loading, every refusal, and draws from the bank."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from hf_nullspace import NullspaceConfig, NullspaceNoise
from hf_nullspace.noise.nullspace_noise import NOISE_CONFIG_NAME, NOISE_TENSOR_NAME


@pytest.fixture
def make_noise(make_certificate):
    def make(bank_size=1, mean=0.0, **options):
        tensor = torch.randn(bank_size, 4, 32, generator=torch.Generator().manual_seed(bank_size)) + mean
        certificates = [make_certificate(probability_mse=0.001 * (index + 1)) for index in range(bank_size)]
        return NullspaceNoise(tensor, certificates, NullspaceConfig(bank_size=bank_size), **options)

    return make


@pytest.fixture
def saved(make_noise, tmp_path):
    make_noise(2).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bank_size", [1, 3])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
def test_save_and_load_change_no_bit(make_noise, tmp_path, bank_size, mean):
    noise = make_noise(bank_size, mean, round_index=5)
    for folder in (tmp_path / "new" / "first", tmp_path / "second"):
        noise.save_pretrained(folder)
        loaded = NullspaceNoise.from_pretrained(folder)
        assert torch.equal(loaded.tensor, noise.tensor)
        assert loaded.to_dict() == noise.to_dict()
        assert (loaded.config, loaded.certificates, loaded.round_index) == (noise.config, noise.certificates, 5)
        noise = loaded
    first, second = ((tmp_path / name / NOISE_TENSOR_NAME).read_bytes() for name in ("new/first", "second"))
    assert first == second


def test_axes_are_saved_and_tell_noises_apart(make_noise, tmp_path):
    axes = torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
    noise = make_noise(axes=axes)
    noise.save_pretrained(tmp_path)
    loaded = NullspaceNoise.from_pretrained(tmp_path)
    assert torch.equal(loaded.axes, axes) and loaded.to_dict() == noise.to_dict()
    assert len({noise.digest(), make_noise().digest(), make_noise(axes=-axes).digest()}) == 3


@pytest.mark.parametrize(("bank_size", "shape"), [(1, (32, 4)), (2, (32, 32))])
def test_axes_of_another_shape_or_beside_a_bank_are_refused(make_noise, bank_size, shape):
    with pytest.raises(ValueError, match=r"`axes` must have shape \(32, 32\) and stand beside one noise"):
        make_noise(bank_size, axes=torch.ones(shape))


def test_axes_give_every_image_a_noise_of_its_own(make_noise):
    axes = torch.diag(torch.cat([torch.ones(8), torch.zeros(24)]))
    noise = make_noise(axes=axes)
    drawn = noise.draw(6, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 4, 32) and (drawn[..., 8:] == 0).all()
    torch.testing.assert_close(drawn.flatten(1).norm(dim=1), noise.tensor.norm().expand(6))
    assert len({row.numpy().tobytes() for row in drawn}) == 6
    smaller = noise.draw(6, torch.Generator().manual_seed(0), random_scale=True)
    assert (smaller.flatten(1).norm(dim=1) < noise.tensor.norm()).all()


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
    assert NullspaceNoise(changed, noise.certificates, noise.config).digest() != noise.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_hidden_mean_is_removed(make_certificate, dtype):
    tensor = torch.tensor([[[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]], dtype=dtype)
    noise = NullspaceNoise(tensor.requires_grad_(), [make_certificate()], NullspaceConfig())
    assert noise.tensor.tolist() == [[[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]
    assert (noise.tensor.dtype, noise.tensor.requires_grad) == (torch.float32, False)


def test_infinite_bound_survives(make_certificate, tmp_path):
    certificate = make_certificate(probability_mse_upper=float("inf"), converged=False, num_images=1)
    NullspaceNoise(torch.randn(1, 4, 8), [certificate], NullspaceConfig()).save_pretrained(tmp_path)
    assert NullspaceNoise.from_pretrained(tmp_path).certificates == (certificate,)


@pytest.mark.parametrize(
    "tensor, num_certificates, message",
    [
        (torch.zeros(4, 8), 1, r"\(4, 8\)"),
        (torch.zeros(1, 1, 4, 8), 1, r"\(1, 1, 4, 8\)"),
        (torch.tensor([[[0.0, float("nan")]]]), 1, "NaN or infinite"),
        (torch.tensor([[[0.0, float("-inf")]]]), 1, "NaN or infinite"),
        (torch.zeros(3, 4, 8), 2, "2 certificates for 3 noises"),
        (torch.zeros(0, 4, 8), 0, r"\(0, 4, 8\)"),
    ],
    ids=["2 dimensions", "4 dimensions", "nan", "inf", "certificates", "empty"],
)
def test_bad_tensor_is_refused(make_certificate, tensor, num_certificates, message):
    with pytest.raises(ValueError, match=message):
        NullspaceNoise(tensor, [make_certificate()] * num_certificates, NullspaceConfig())


def test_certificate_of_a_bank_is_its_worst(make_noise, make_certificate):
    noise = make_noise(3)
    assert noise.certificate is noise.certificates[2]
    assert noise.converged
    failed = make_certificate(probability_mse=0.5, converged=False)
    mixed = NullspaceNoise(torch.zeros(2, 4, 8), [failed, make_certificate()], NullspaceConfig())
    assert (mixed.certificate.probability_mse, mixed.converged) == (0.5, False)


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
        (write_tensors(other=torch.zeros(2, 4, 32)), "noise"),
        (write_tensors(noise=torch.zeros(2, 9, 32)), r"\[2, 9, 32\].*\[2, 4, 32\]"),
        (write_tensors(noise=torch.full((2, 4, 32), float("nan"))), "NaN or infinite"),
        (write_json('{"shape": [2, 4'), "line 1"),
        (write_json("[]"), "list"),
        (change_json(shape=[1, 4, 32]), r"\[2, 4, 32\].*\[1, 4, 32\]"),
        (change_json(certificates=[]), "0 certificates for 2 noises"),
        (change_json(certificates=[{"norm": 1.0}] * 2), "lacks"),
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


def test_draw_from_a_make_noise_one_is_that_noise(make_noise):
    noise = make_noise(1)
    assert torch.equal(noise.draw(8, torch.Generator().manual_seed(0)), noise.tensor)


def test_draw_gives_rows_of_the_bank(make_noise):
    noise = make_noise(4)
    draws = [noise.draw(64, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (64, 4, 32)
    rows = (draws[0][:, None] == noise.tensor[None]).flatten(2).all(-1)
    assert rows.sum(1).tolist() == [1] * 64
    assert (rows.sum(0) > 0).all()
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_draws_from_a_bank_differ_until_it_is_used_up(make_noise):
    noise = make_noise(4)
    draws = torch.stack(list(noise.draws(8, 16, torch.Generator().manual_seed(0))))
    members = (draws[:, :, None] == noise.tensor).flatten(3).all(-1).int().argmax(-1)  # (draw, image)
    assert members[:4].sort(0).values.tolist() == [[member] * 16 for member in range(4)]
    assert torch.equal(members[4:], members[:4])
    assert len(set(members[0].tolist())) == 4
    assert torch.equal(draws[0], noise.draw(16, torch.Generator().manual_seed(0)))


def test_draws_in_axes_are_independent(make_noise):
    noise = make_noise(axes=torch.eye(32))
    draws = torch.cat(list(noise.draws(3, 2, torch.Generator().manual_seed(0)))).flatten(1)
    cosines = torch.nn.functional.cosine_similarity(draws[:, None], draws[None], dim=-1)
    assert (cosines - torch.eye(6)).abs().max() < 0.4  # 128 dimensions: standard deviation 0.09


def test_repr_tells_the_numbers(make_noise):
    text = repr(make_noise(2, round_index=3))
    assert "shape=(2, 4, 32)" in text
    assert "probability_mse=0.002" in text
    assert "round=3" in text


def test_random_scale_shrinks_each_image_by_its_own_number(make_noise):
    noise = make_noise(1)
    drawn = noise.draw(200, torch.Generator().manual_seed(0), random_scale=True)
    scales = (drawn * noise.tensor).sum((1, 2)) / noise.tensor.square().sum()
    torch.testing.assert_close(drawn, scales[:, None, None] * noise.tensor)
    assert 0 <= scales.min() < 0.05
    assert 0.95 < scales.max() <= 1
    assert scales.mean() == pytest.approx(0.5, abs=0.1)


def test_convex_combinations_have_weights_on_the_simplex(make_noise):
    noise = make_noise(3)
    drawn = noise.draw(400, torch.Generator().manual_seed(0), convex_combination=True)
    weights = torch.linalg.lstsq(noise.tensor.flatten(1).T, drawn.flatten(1).T).solution.T
    torch.testing.assert_close(weights @ noise.tensor.flatten(1), drawn.flatten(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(400), rtol=0, atol=1e-4)
    assert weights.min() >= -1e-4
    torch.testing.assert_close(weights.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.05)


def test_pairwise_cosine_by_hand(make_noise):
    noise = make_noise(2)
    first, second = noise.tensor.flatten(1)
    expected = first @ second / first.norm() / second.norm()
    torch.testing.assert_close(noise.pairwise_cosine(), torch.tensor([[1.0, expected], [expected, 1.0]]))
