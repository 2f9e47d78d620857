"""Pictures of every mode, orientation and format become upright RGB, the same for every reader."""

import io
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps
from transformers import ViTImageProcessorPil

from hf_nullspace.data.pictures import read_picture, read_pictures
from hf_nullspace.data.robustness_datasets import dataset_for_model, prepare_picture
from hf_nullspace.data.splits import drop_unreadable_images
from hf_nullspace.models.preprocessing import Preprocessing, image_transform
from hf_nullspace.robustness.sources import image_source


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.new("L", (5, 4), 128).save(tmp_path / "b_grey.png")
    Image.new("RGBA", (5, 4), (255, 0, 0, 0)).save(tmp_path / "deeper" / "transparent.png")
    Image.new("RGB", (5, 4), (0, 0, 255)).save(tmp_path / "a_colour.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_grey_and_transparent_pictures_become_rgb(folder):
    pictures = read_pictures(folder)
    assert [picture.mode for picture in pictures] == ["RGB"] * 3
    assert [np.asarray(picture)[0, 0].tolist() for picture in pictures[1:]] == [[128] * 3, [255, 0, 0]]
    assert len(read_pictures(folder, max_images=2)) == 2


def test_a_seed_mixes_the_sub_folders_and_gives_the_same_pictures_again(tmp_path):
    for shade in range(40):
        path = tmp_path / str(shade // 20) / f"{shade:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), shade).save(path)
    shades, again, others = (
        [np.asarray(picture)[0, 0, 0] for picture in read_pictures(tmp_path, 20, seed)] for seed in (0, 0, 1)
    )
    assert shades == again != others
    assert 5 <= sum(shade < 20 for shade in shades) <= 15
    assert sorted(np.asarray(picture)[0, 0, 0] for picture in read_pictures(tmp_path, seed=0)) == list(range(40))


def test_unreadable_pictures_are_left_out_and_named(folder, caplog):
    (folder / "broken.png").write_bytes(b"no picture")
    assert len(read_pictures(folder)) == 3
    assert "broken.png" in caplog.text


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_pictures(tmp_path / "missing")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no picture that can be read; it has 1 .*a.png"):
        read_pictures(tmp_path)


COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = Image.fromarray(COLOURS)


def shades_of(bits):
    return np.random.default_rng(1).integers(0, 2**bits, (5, 7))


def make_mode(mode):
    """A picture of that mode, and what it is as RGB."""
    if mode in ("1", "L"):
        picture = RGB.convert(mode)
        return picture, np.repeat(np.asarray(picture.convert("L"))[..., None], 3, 2)
    if mode in ("LA", "La", "PA", "P"):
        grey = RGB.convert("L")
        picture = grey.convert("LA") if mode == "LA" else grey.convert("LA").convert("La") if mode == "La" else grey
        if mode in ("P", "PA"):
            picture = grey.convert("P")
            picture = picture.convert("PA") if mode == "PA" else picture
        return picture, np.repeat(np.asarray(grey)[..., None], 3, 2)
    if mode.startswith("I;16"):
        shades = shades_of(16)
        dtype = ">u2" if mode == "I;16B" else "<u2"
        picture = Image.frombytes(mode, (7, 5), shades.astype(dtype).tobytes())
        return picture, np.repeat((shades / 257).round()[..., None], 3, 2)
    return RGB.convert(mode), np.asarray(RGB.convert(mode).convert("RGB"))


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
MODES += ["I;16", "I;16B", "I;16L"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    picture, expected = make_mode(mode)
    assert picture.mode == mode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_picture(picture)
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), expected)
    again = read_picture(read)
    assert np.array_equal(np.asarray(again), expected)


def test_lab_pictures_become_their_colours():
    # L* = 53.24, a* = 80.09, b* = 67.20 is the red of sRGB under D65; Pillow's Lab has another white, so near it.
    red = read_picture(Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (136, 128 + 80, 128 + 67)]))
    assert np.abs(np.asarray(red)[0, 0].astype(int) - [255, 0, 0]).max() < 40


@pytest.mark.parametrize("mode, kind", [("I", "32-bit integers"), ("F", "floats")])
def test_pictures_without_a_white_are_refused_by_name(tmp_path, caplog, mode, kind):
    Image.fromarray(shades_of(16).astype(np.int32 if mode == "I" else np.float32)).save(tmp_path / "depth.tif")
    for source in (tmp_path / "depth.tif", Image.open(tmp_path / "depth.tif")):
        with pytest.raises(ValueError, match=f"depth.tif cannot be read: it holds {kind}"):
            read_picture(source)
    RGB.save(tmp_path / "a.png")
    assert len(read_pictures(tmp_path)) == 1
    assert "depth.tif" in caplog.text and kind in caplog.text
    files = [str(tmp_path / name) for name in ("depth.tif", "a.png")]
    dataset = Dataset.from_dict({"image": files}, features=Features({"image": ImageFeature()}))
    with pytest.raises(ValueError, match=f"1 of 2 images.*depth.tif.*{kind}"):
        drop_unreadable_images(dataset, "image")
    with pytest.raises(ValueError, match=f"depth.tif.*{kind}"):
        image_transform(ViTImageProcessorPil(), "image", "label")({**dataset[:], "label": [0, 0]})


def test_sixteen_bits_are_scaled_in_every_format(tmp_path):
    shades = np.full((4, 4), 45000, dtype=np.uint16)
    Image.fromarray(shades).save(tmp_path / "a.png")
    Image.fromarray(shades).save(tmp_path / "b.tif")
    (tmp_path / "c.pgm").write_bytes(b"P5 4 4 65535\n" + shades.astype(">u2").tobytes())
    Image.frombytes("I;16B", (4, 4), shades.astype(">u2").tobytes()).save(tmp_path / "d.tif")
    assert Image.open(tmp_path / "c.pgm").mode == "I"
    values = np.stack([np.asarray(picture) for picture in read_pictures(tmp_path)])
    assert values.shape == (4, 4, 4, 3)
    assert (values == 175).all()
    assert abs(175 / 255 - 45000 / 65535) < 0.5 / 255


def tiff_of_16_bits(shades, bits, photometric):
    """A TIFF file of one strip, whose shades may have fewer bits than 16 or be inverted."""
    height, width = shades.shape
    packed = shades.astype("<u2").tobytes()
    if bits == 12:
        pairs = shades.reshape(-1, 2)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        packed = packed.astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(packed))]
    offset = 8 + len(packed)
    entries = b"".join(
        np.array([tag, 4], "<u2").tobytes() + np.array([1, value], "<u4").tobytes() for tag, value in tags
    )
    return (
        b"II*\0"
        + np.array([offset], "<u4").tobytes()
        + packed
        + np.array([len(tags)], "<u2").tobytes()
        + entries
        + bytes(4)
    )


def test_tiff_files_of_twelve_bits_and_with_white_as_zero():
    shades = np.array([[0, 1000], [3000, 4095]])
    read = np.asarray(read_picture(tiff_of_16_bits(shades, 12, 1)))[..., 0]
    assert read.tolist() == (shades / 4095 * 255).round().tolist()
    shades = np.array([[0, 20535], [65535, 32768]])
    read = np.asarray(read_picture(tiff_of_16_bits(shades, 16, 0)))[..., 0]
    assert read.tolist() == [[255, 175], [0, 127]]


FORMATS = {"PNG": "png", "TIFF": "tif", "JPEG": "jpg", "WEBP": "webp"}


def save_oriented(path, orientation, name, mode="RGB"):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if name == "WEBP" else {"quality": 100, "subsampling": 0} if name == "JPEG" else {}
    picture = Image.fromarray(shades_of(16).astype(np.uint16)) if mode == "I;16" else RGB.convert(mode)
    picture.save(path, name, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", FORMATS)
def test_every_orientation_is_upright_for_every_reader(tmp_path, orientation, name):
    """Where row 0 and column 0 of the file lie, by the EXIF standard; nothing is turned twice."""
    path = tmp_path / f"a.{FORMATS[name]}"
    save_oriented(path, orientation, name)
    array = np.asarray(Image.open(path)) if name == "JPEG" else COLOURS
    turned = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: array.swapaxes(0, 1)[:, ::-1],
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: array.swapaxes(0, 1)[::-1],
    }[orientation]
    features = Features({"image": ImageFeature(), "label": datasets_label()})
    dataset = Dataset.from_dict({"image": [str(path)], "label": [0]}, features=features)
    source = image_source(dataset_for_model(dataset, {0: "only"}), None, "evaluation")
    unread = dataset.cast_column("image", ImageFeature(decode=False))[0]["image"]
    sources = [path, Image.open(path), path.read_bytes(), unread, dataset[0]["image"], *read_pictures(tmp_path)]
    sources += [*source.read([0]), prepare_picture(Image.open(path), "image_processor")]
    for each in sources:
        assert np.array_equal(np.asarray(read_picture(each)), turned)
    processor = ViTImageProcessorPil(size={"height": 6, "width": 8})
    expected = processor([Image.fromarray(np.ascontiguousarray(turned))], return_tensors="pt")["pixel_values"]
    transform = image_transform(processor, "image", "label")
    assert torch.equal(Preprocessing(processor).to_model_inputs(sources)["pixel_values"][0], expected[0])
    assert torch.equal(dataset.with_transform(transform)[0]["pixel_values"], expected[0])


def datasets_label():
    from datasets import ClassLabel

    return ClassLabel(names=["only"])


@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGBA", "1"])
def test_orientation_holds_in_every_mode(tmp_path, mode):
    save_oriented(tmp_path / "a.png", 6, "PNG", mode)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
        upright = ImageOps.exif_transpose(picture)
    upright.info.clear()
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png")), np.asarray(read_picture(upright)))
    assert read_picture(tmp_path / "a.png").size == (5, 7)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_orientations_of_no_meaning_are_none(tmp_path, orientation):
    save_oriented(tmp_path / "a.png", orientation, "PNG")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png")), COLOURS)


def test_transparency_is_dropped_and_the_first_frame_read(tmp_path):
    hidden = RGB.copy()
    hidden.putalpha(0)
    hidden.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png")), COLOURS)
    palette = RGB.quantize(8)
    palette.save(tmp_path / "b.png", transparency=bytes(8))
    assert Image.open(tmp_path / "b.png").mode == "P"
    assert np.array_equal(np.asarray(read_picture(tmp_path / "b.png")), np.asarray(palette.convert("RGB")))
    frames = [Image.new("L", (3, 3), shade) for shade in (50, 200)]
    for name in ("c.gif", "c.tif", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert (np.asarray(read_picture(tmp_path / name)) == 50).all()


def test_damaged_and_missing_files_are_named(tmp_path):
    save_oriented(tmp_path / "whole.jpg", 1, "JPEG")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    for source, message in (
        (tmp_path / "half.jpg", "half.jpg cannot be read"),
        (tmp_path / "none.jpg", "none.jpg cannot be read"),
        ({"path": "column.jpg", "bytes": b"no picture"}, "column.jpg cannot be read"),
        (b"no picture", "A picture cannot be read"),
        (None, "A picture cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_picture(source)
    with pytest.raises(ValueError, match="Picture 1 cannot be read"):
        Preprocessing(ViTImageProcessorPil()).to_model_inputs([RGB, io.BytesIO(b"no picture")])
