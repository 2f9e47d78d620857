"""Corruptions: worse with every severity at every size, seeded, true to their closed forms, and refused by name."""

import colorsys
import io
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images

from hf_nullspace.data.imagenet import IMAGENET_C_CORRUPTIONS
from hf_nullspace.robustness.corruptions import CORRUPTIONS, SEVERITIES, arrays, blur, corrupt, digital, noise, weather


SIZES = [(32, 32), (56, 56), (90, 40)]
DETERMINISTIC = ["defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"]


def make_picture(size):
    """Shaded, with discs of several sizes and a fine texture: something for every corruption to change."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width] / min(size)
    waves = np.sin(9 * rows + 4 * columns**2) * np.cos(7 * columns) + 0.5 * np.sin(60 * rows * columns)
    discs = sum((rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in ((0.3, 0.3, 0.2), (0.7, 0.6, 0.1)))
    texture = np.random.default_rng(0).normal(size=(height, width))
    pixels = [100 + 40 * waves + 60 * discs + 10 * texture, 120 - 50 * discs + 30 * waves, 60 + 60 * rows - 30 * waves]
    return Image.fromarray(np.stack(pixels, -1).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs():
    """The middle squares of the two that ship inside scikit-learn."""
    return [Image.fromarray(pixels).crop((107, 0, 534, 427)) for pixels in load_sample_images().images]


@pytest.fixture(scope="module")
def picture():
    return make_picture((56, 56))


def corrupted(picture, name, severity, seed=0):
    result = corrupt(picture, name, severity, np.random.default_rng(seed))
    assert (result.size, result.mode) == (picture.size, "RGB")
    return np.asarray(result, dtype=np.float64)


def test_the_fifteen_in_the_order_of_the_paper():
    assert " ".join(IMAGENET_C_CORRUPTIONS) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog "
        "brightness contrast elastic_transform pixelate jpeg_compression"
    )
    assert set(CORRUPTIONS) == set(IMAGENET_C_CORRUPTIONS)
    assert SEVERITIES == (1, 2, 3, 4, 5)


def errors_by_severity(pictures, name):
    return [
        np.mean(
            [
                np.abs(corrupted(picture, name, severity, seed) - np.asarray(picture, dtype=np.float64)).mean()
                for picture in pictures
                for seed in range(3)
            ]
        )
        for severity in SEVERITIES
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_error_grows_with_severity_on_photographs(photographs, name, size):
    errors = errors_by_severity([picture.resize(size, Image.Resampling.BICUBIC) for picture in photographs], name)
    assert errors[0] > 1
    assert (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "fog"])  # two levels are equally thick
def test_error_grows_with_severity_on_a_drawn_picture(picture, name):
    errors = errors_by_severity([picture], name)
    assert (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_depends_on_its_generator_alone(picture, name):
    before, state = np.asarray(picture).copy(), np.random.get_state()[1].copy()
    first, again, other = (corrupted(picture, name, 3, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first == other).all() == (name in DETERMINISTIC)
    assert (np.asarray(picture) == before).all()
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 30), (300, 5)])
def test_any_size(size):
    for name in CORRUPTIONS:
        corrupted(Image.new("RGB", size, (90, 20, 200)), name, 5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_other_modes_are_those_of_their_rgb_picture(picture, mode):
    other = picture.convert(mode)
    assert (corrupted(other, "fog", 2) == corrupted(other.convert("RGB"), "fog", 2)).all()


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"])
def test_what_only_moves_light_leaves_a_flat_picture(name):
    flat = Image.new("RGB", (40, 32), (10, 200, 90))
    assert (corrupted(flat, name, 5) == np.asarray(flat)).all()


def test_noise_has_its_published_moments():
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    for severity in (1, 2):
        result = corrupted(grey, "gaussian_noise", severity) / 255
        assert result.std() == pytest.approx(noise.STANDARD_DEVIATIONS[severity - 1], rel=0.03)
        result = corrupted(grey, "shot_noise", severity) / 255
        assert result.mean() == pytest.approx(128 / 255, abs=0.01)
        assert result.var() == pytest.approx(128 / 255 / noise.PHOTONS[severity - 1], rel=0.05)
    result = corrupted(grey, "impulse_noise", 5)
    assert (result == 0).mean() == pytest.approx(0.135, abs=0.01)
    assert (result == 255).mean() == pytest.approx(0.135, abs=0.01)
    assert set(np.unique(result)) == {0, 128, 255}


def test_convolution_is_scipys():
    rng = np.random.default_rng(0)
    pixels = rng.random((20, 31, 3), dtype=np.float32)
    kernel = rng.random((7, 7), dtype=np.float32)
    for channel in range(3):
        expected = ndimage.convolve(pixels[..., channel].astype(np.float64), kernel, mode="reflect")
        assert np.abs(arrays.convolve(pixels, kernel)[..., channel] - expected).max() < 1e-4


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0, 10.0])
def test_disc_has_the_spread_of_a_disc(radius):
    kernel = blur.disc_kernel(radius)
    rows = np.arange(len(kernel))[:, None] - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(kernel - kernel.T).max() < 1e-6
    # A uniform disc has a variance of r^2 / 4 along each axis; linear interpolation adds d * (1 - d) for a share d.
    points = np.linspace(-radius, radius, 4001)
    weights = np.sqrt(radius**2 - points**2 + 1e-12)
    share = points - np.floor(points)
    expected = radius**2 / 4 + (weights * share * (1 - share)).sum() / weights.sum()
    assert (kernel * rows**2).sum() == pytest.approx(expected, rel=0.02)


def test_streak_is_a_half_gaussian_in_its_direction():
    kernel = arrays.streak_kernel(40, 15, 0)
    centre = len(kernel) // 2
    assert kernel[:, :centre].sum() == 0
    assert kernel[centre].sum() == pytest.approx(1)
    distances = np.arange(1, 40)
    profile = kernel[centre, centre + 1 : centre + 40] / kernel[centre, centre + 1]
    assert profile == pytest.approx(np.exp(-(distances**2 - 1) / 450), rel=0.02)
    assert np.abs(arrays.streak_kernel(40, 15, 90) - kernel.T).max() < 1e-6


@pytest.mark.parametrize("reach, rounds", [(0.3, 1), (1.0, 1), (1.6, 2), (3.0, 1)])
def test_glass_swaps_pixels_with_the_spread_of_its_reach(reach, rounds):
    shape = (120, 90)
    places = blur.swapped_places(shape, reach, rounds, np.random.default_rng(0))
    assert (np.sort(places) == np.arange(places.size)).all()
    moved = np.abs(places.reshape(shape) // 90 - np.arange(120)[:, None])[20:-20, 20:-20]
    # Uniform on -n..n has variance n * (n + 1) / 3; each pixel takes part in two swaps of a round, its own and another's.
    lower = int(reach)
    chance = (reach**2 - lower**2) / (2 * lower + 1)
    variance = (1 - chance) * lower * (lower + 1) / 3 + chance * (lower + 1) * (lower + 2) / 3
    assert (moved**2).mean() == pytest.approx(2 * rounds * variance, rel=0.1)


def test_zoom_blur_averages_its_zooms():
    rows, columns = np.mgrid[0:65, 0:65] - 32.0
    cone = 200 - 4 * np.sqrt(rows**2 + columns**2)
    result = corrupted(Image.fromarray(np.stack([cone] * 3, -1).astype(np.uint8)), "zoom_blur", 5)[..., 0]
    zooms = blur.ZOOMS[4]
    # A cone zoomed by z has 1 / z of its slope.
    slope = 4 * (1 + (1 / zooms).sum()) / (len(zooms) + 1)
    assert (result[32, 40] - result[32, 60]) / 20 == pytest.approx(slope, rel=0.02)


def test_brightness_is_hsv(picture):
    for severity, amount in enumerate(digital.BRIGHTNESS, 1):
        result = corrupted(picture, "brightness", severity)
        for place in [(0, 0), (20, 17), (50, 3)]:
            hue, saturation, value = colorsys.rgb_to_hsv(*(np.asarray(picture)[place] / 255))
            expected = np.multiply(colorsys.hsv_to_rgb(hue, saturation, min(1, value + amount)), 255)
            assert np.abs(result[place] - expected).max() <= 0.5 + 1e-3
    assert (corrupted(Image.new("RGB", (3, 3)), "brightness", 2) == 51).all()


def test_contrast_keeps_the_mean_and_scales_the_rest(picture):
    clean = np.asarray(picture, dtype=np.float64)
    mean = clean.mean((0, 1))
    for severity, amount in enumerate(digital.CONTRAST, 1):
        expected = mean + amount * (clean - mean)
        assert np.abs(corrupted(picture, "contrast", severity) - expected).max() <= 0.5 + 1e-3


def test_elastic_displacement_has_its_size():
    for scale in (1 / 7, 1.0):
        field = digital.smooth_field((64, 80), scale, np.random.default_rng(0))
        assert np.sqrt((field**2).mean()) == pytest.approx(1, abs=1e-5)
    ramp = np.tile(np.arange(224, dtype=np.float32)[:, None, None] / 255, (1, 224, 3))
    moved = (digital.elastic_transform(ramp, 5, np.random.default_rng(0)) - ramp)[20:-20] * 255
    assert np.sqrt((moved**2).mean()) == pytest.approx(2.44, rel=0.03)


def test_pixelate_is_the_mean_of_its_blocks():
    pixels = np.random.default_rng(0).random((224, 224, 3)).astype(np.float32)
    result = digital.pixelate(pixels, 5, np.random.default_rng(0))
    blocks = pixels.reshape(56, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(result - blocks.repeat(4, 0).repeat(4, 1)).max() < 1e-6


def test_jpeg_is_pillows(picture):
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=15)
        assert (corrupted(picture, "jpeg_compression", 3) == np.asarray(Image.open(file))).all()


def test_fog_keeps_the_brightest_value(picture):
    pixels = arrays.to_pixels(picture)
    for severity in SEVERITIES:
        fogged = weather.fog(pixels, severity, np.random.default_rng(0))
        assert 0 <= fogged.min() and fogged.max() <= pixels.max() + 1e-6


@pytest.mark.parametrize("smoothness, roughness", [(1.4, 0.11), (2.0, 0.03)])
def test_plasma_is_smoother_with_smoothness(smoothness, roughness):
    cloud = weather.plasma((100, 224), smoothness, np.random.default_rng(0))
    assert (cloud.shape, cloud.min(), cloud.max()) == ((100, 224), 0, 1)
    assert np.abs(np.diff(cloud, axis=1)).mean() < roughness


@pytest.mark.parametrize("name", ["snow", "fog", "frost"])
def test_weather_is_the_same_share_of_every_size(name):
    """One seed draws one layer: a black picture of half the size shows the same weather, smaller."""
    large = Image.fromarray(corrupted(Image.new("RGB", (128, 128), (9, 9, 9)), name, 3).astype(np.uint8))
    small = corrupted(Image.new("RGB", (64, 64), (9, 9, 9)), name, 3)
    expected = np.asarray(large.resize((64, 64), Image.Resampling.BILINEAR), dtype=np.float64)
    assert np.abs(small - expected).mean() < 4


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "elastic_transform"])
def test_lengths_scale_with_the_shorter_side(name):
    smooth = make_picture((112, 112)).resize((448, 448), Image.Resampling.BICUBIC)
    errors = []
    for side in (448, 224):
        picture = smooth.resize((side, side), Image.Resampling.BICUBIC)
        clean = np.asarray(picture, dtype=np.float64)
        errors.append(np.mean([np.abs(corrupted(picture, name, 5, seed) - clean).mean() for seed in range(3)]))
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


@pytest.mark.parametrize(
    "name, severity, message",
    [
        ("gaussian_blur", 3, r"'gaussian_blur'.*\['brightness', 'contrast'"),
        ("contrast", 0, "1 to 5, but got 0"),
        ("contrast", 6, "1 to 5, but got 6"),
        ("contrast", 2.5, "1 to 5, but got 2.5"),
        ("contrast", True, "1 to 5, but got True"),
        ("contrast", "3", "1 to 5, but got '3'"),
    ],
)
def test_unknown_name_or_severity_is_refused(picture, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(picture, name, severity, np.random.default_rng(0))


def test_other_types_are_refused(picture):
    with pytest.raises(TypeError, match="PIL image, but got ndarray"):
        corrupt(np.asarray(picture), "fog", 1, np.random.default_rng(0))
    with pytest.raises(TypeError, match="numpy Generator, but got int"):
        corrupt(picture, "fog", 1, 0)


def test_missing_scipy_names_the_extra(picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.fft", None)
    with pytest.raises(ImportError, match=r"hf_nullspace\[eval\]"):
        corrupt(picture, "defocus_blur", 1, np.random.default_rng(0))
