"""Corruptions: worse with every severity, seeded, and refused by name."""

import numpy as np
import pytest
from PIL import Image

from hf_nullspace.robustness import corrupt
from hf_nullspace.robustness.corruptions import SEVERITIES


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[0:48, 0:48]
    noise = np.random.default_rng(0).integers(0, 64, (48, 48, 3))
    pixels = np.stack([2 * rows, 2 * columns, rows + columns], -1) + noise + 32
    return Image.fromarray(pixels.astype(np.uint8))


def corrupted(picture, name, severity, seed=0):
    result = corrupt(picture, name, severity, np.random.default_rng(seed))
    assert (result.size, result.mode) == (picture.size, "RGB")
    return np.asarray(result, dtype=np.float64)


@pytest.mark.parametrize("name", SEVERITIES)
def test_error_grows_with_severity(picture, name):
    clean = np.asarray(picture, dtype=np.float64)
    errors = [np.abs(corrupted(picture, name, severity) - clean).mean() for severity in range(1, 6)]
    assert errors[0] > 1
    assert errors == sorted(errors)
    assert len(set(errors)) == 5


@pytest.mark.parametrize("name", SEVERITIES)
def test_depends_on_its_generator_alone(picture, name):
    first, again, other = (corrupted(picture, name, 3, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first == other).all() == (name != "gaussian_noise")


def test_gaussian_noise_has_its_standard_deviation():
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    for severity, amount in enumerate(SEVERITIES["gaussian_noise"][:3], 1):
        assert corrupted(grey, "gaussian_noise", severity).std() / 255 == pytest.approx(amount, rel=0.03)


def test_contrast_keeps_the_mean_and_scales_the_rest(picture):
    clean = np.asarray(picture, dtype=np.float64)
    mean = clean.mean((0, 1))
    for severity, amount in enumerate(SEVERITIES["contrast"], 1):
        expected = mean + amount * (clean - mean)
        assert np.abs(corrupted(picture, "contrast", severity) - expected).max() <= 0.5 + 1e-6


def test_blur_leaves_a_flat_picture():
    grey = Image.new("RGB", (32, 32), (10, 200, 90))
    assert (corrupted(grey, "gaussian_blur", 5) == np.asarray(grey)).all()


@pytest.mark.parametrize(
    "name, severity, message",
    [
        ("fog", 3, r"'fog'.*\['contrast', 'gaussian_blur', 'gaussian_noise'\]"),
        ("contrast", 0, "1 to 5, but got 0"),
        ("contrast", 6, "1 to 5, but got 6"),
        ("contrast", 2.5, "1 to 5, but got 2.5"),
        ("contrast", "3", "1 to 5, but got '3'"),
    ],
)
def test_unknown_name_or_severity_is_refused(picture, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(picture, name, severity, np.random.default_rng(0))
