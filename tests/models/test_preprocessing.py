"""Everything that sees a picture sees exactly what the image processor gives, whatever the processor is."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor, BatchFeature, Siglip2ImageProcessorPil, ViTImageProcessorPil
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import is_torchvision_available
from whole_path import require_timm

from hf_nullspace.models.pixel_model import PixelModel
from hf_nullspace.models.preprocessing import Preprocessing, image_transform
from hf_nullspace.robustness.sources import to_pixels


# Options that make a processor's pictures small.
SMALL = {
    "ConvNextImageProcessorPil": {"size": {"shortest_edge": 32}},
    "DonutImageProcessorPil": {"size": {"height": 40, "width": 30}},
    "Gemma3ImageProcessorPil": {"size": {"height": 32, "width": 32}},
    "Siglip2ImageProcessorPil": {"patch_size": 8, "max_num_patches": 16},
    "TextNetImageProcessorPil": {"size": {"shortest_edge": 64}},
}
SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
# Name -> class and options: every class that `AutoImageProcessor` takes for a classifier, and options that change values.
PROCESSORS = {}
for model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
    class_name = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {}).get("pil", "")
    if class_name.endswith("Pil") and class_name != "ImageGPTImageProcessorPil":
        PROCESSORS[class_name] = (class_name, SMALL.get(class_name, {}))
PROCESSORS |= {
    "no rescaling": (
        "ViTImageProcessorPil",
        {**SQUARE, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    ),
    "neither": ("ViTImageProcessorPil", {**SQUARE, "do_rescale": False, "do_normalize": False}),
    "rescaling to [0, 2]": ("ViTImageProcessorPil", {**SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
    "offset": ("EfficientNetImageProcessorPil", {**SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
    "offset, one division": (
        "EfficientNetImageProcessorPil",
        {**SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False},
    ),
    "RGB kept": ("MobileViTImageProcessorPil", {**CROPPED, "do_flip_channel_order": False}),
    "no resizing": ("ViTImageProcessorPil", {"do_resize": False}),
    "padding": ("ViTImageProcessorPil", {"do_resize": False, "do_pad": True, "pad_size": {"height": 99, "width": 99}}),
    "crop larger than the picture": ("CLIPImageProcessorPil", {**CROPPED, "crop_size": {"height": 48, "width": 48}}),
}
# The same classes as torchvision runs them, where it is installed.
TORCHVISION = {name[:-3]: (name[:-3], options) for name, (_, options) in PROCESSORS.items() if name.endswith("Pil")}
if is_torchvision_available():
    PROCESSORS |= TORCHVISION | {"PPLCNetImageProcessor": ("PPLCNetImageProcessor", {})}
every_processor = pytest.mark.parametrize("name", PROCESSORS)


def make_processor(name):
    class_name, options = PROCESSORS[name]
    return getattr(transformers, class_name)(**options)


def make_picture(width=60, height=45, seed=0):
    """Noise: every resampling and every edge shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        self.seen = pixel_values
        return transformers.modeling_outputs.ImageClassifierOutput(logits=pixel_values.flatten(1)[:, :2] * self.weight)


@every_processor
def test_every_reader_gives_what_the_processor_gives(name):
    processor, pictures = make_processor(name), [make_picture(), make_picture(seed=1)]
    expected = processor(pictures, return_tensors="pt")
    preprocessing = Preprocessing(processor)
    batch = image_transform(processor, "image", "label")({"image": pictures, "label": [0, 1]})
    inputs = preprocessing.to_model_inputs(pictures)
    for key, value in expected.items():
        assert torch.equal(inputs[key], torch.as_tensor(value)), key
        assert torch.equal(torch.stack(batch[key]), torch.as_tensor(value)), key
    values = expected["pixel_values"]
    assert (preprocessing.into_box(values) - values).abs().max() <= 1e-4
    if preprocessing.gives_patches:
        return
    pixels, model = to_pixels(pictures, preprocessing, "image_processor"), Recorder()
    PixelModel(model, preprocessing)(pixels)
    for seen in (preprocessing.normalize(pixels), model.seen):
        assert ((seen - values).abs() / values.abs().clamp_min(1)).max() <= 1e-4
    torch.testing.assert_close(preprocessing.denormalize(values), pixels, rtol=0, atol=1e-6)


@every_processor
def test_sizes_are_fixed_where_every_picture_gets_one(name):
    processor = make_processor(name)
    shapes = {
        tuple(processor([make_picture(*size)], return_tensors="pt")["pixel_values"].shape[2:])
        for size in ((60, 45), (45, 60), (50, 50))
    }
    preprocessing = Preprocessing(processor)
    fixed = shapes.pop() if len(shapes) == 1 and not preprocessing.gives_patches else None
    assert preprocessing.processed_size == fixed


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "convnext_tiny", "inception_v3", "mobilevit_xs"])
def test_timm_processors_are_read_by_their_transforms(architecture):
    require_timm()
    import timm

    config = timm.get_pretrained_cfg(architecture).to_dict()
    processor = transformers.TimmWrapperImageProcessor(config, architecture=architecture)
    pictures = [make_picture(), make_picture(45, 60)]
    expected = processor(pictures, return_tensors="pt")["pixel_values"]
    preprocessing = Preprocessing(processor)
    assert preprocessing.mean == pytest.approx(config["mean"], abs=1e-12)
    assert preprocessing.std == pytest.approx(config["std"], abs=1e-12)
    assert preprocessing.processed_size == tuple(expected.shape[2:])
    assert torch.equal(preprocessing.to_model_inputs(pictures)["pixel_values"], expected)
    model = Recorder()
    PixelModel(model, processor)(preprocessing.to_pixels(pictures))
    torch.testing.assert_close(model.seen, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name, mean, std, order",
    [
        ("no rescaling", 0.5, 0.5, (0, 1, 2)),
        ("neither", 0.0, 1 / 255, (0, 1, 2)),
        ("EfficientNetImageProcessorPil", 0.5, 0.25, (0, 1, 2)),
        ("offset", 0.75, 0.125, (0, 1, 2)),
        ("MobileViTImageProcessorPil", 0.0, 1.0, (2, 1, 0)),
    ],
)
def test_affine_maps_by_hand(name, mean, std, order):
    preprocessing = Preprocessing(make_processor(name))
    assert preprocessing.mean == pytest.approx([mean] * 3, abs=1e-12)
    assert preprocessing.std == pytest.approx([std] * 3, abs=1e-12)
    assert preprocessing.channel_order == order


def test_protocols_that_resize_themselves_meet_the_order_of_channels():
    """Corruptions and attacks see red first, the model blue."""
    preprocessing = Preprocessing(transformers.MobileViTImageProcessorPil(crop_size={"height": 32, "width": 32}))
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    pixels = to_pixels([red], preprocessing, "none")
    assert torch.equal(pixels, to_pixels([red], preprocessing, "image_processor"))
    assert pixels[0, :, 0, 0].tolist() == [1, 0, 0]
    assert preprocessing.normalize(pixels)[0, :, 0, 0].tolist() == [0, 0, 1]


class Own(BaseImageProcessor):
    """A processor that nobody here has seen."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __call__(self, images, return_tensors=None):
        arrays = [np.asarray(picture.resize((16, 16)), dtype=np.float32) / 255 for picture in images]
        values = np.stack([self.change(array) for array in arrays])
        return BatchFeature({"pixel_values": torch.from_numpy(values).permute(0, 3, 1, 2).float()})


def stretched(pixels):
    """The contrast of each channel that has one raised to the whole range."""
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    return np.where(high > low, (pixels - low) / np.maximum(high - low, 1e-6), pixels)


def test_unseen_affine_processors_are_measured():
    scale, shift = np.array([2.0, 3.0, 4.0]), np.array([0.5, -1.0, 0.25])
    preprocessing = Preprocessing(Own(lambda pixels: (pixels * scale + shift)[..., [1, 2, 0]]))
    assert preprocessing.channel_order == (1, 2, 0)
    assert preprocessing.std == pytest.approx([1 / 3, 1 / 4, 1 / 2], abs=1e-6)
    assert preprocessing.mean == pytest.approx([1 / 3, -1 / 16, -1 / 4], abs=1e-6)
    picture = make_picture()
    pixels = preprocessing.to_pixels([picture])
    torch.testing.assert_close(
        pixels, torch.from_numpy(np.array(picture.resize((16, 16)))).permute(2, 0, 1)[None] / 255
    )


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda pixels: pixels**2.2, "no affine map"),
        (lambda pixels: 1 - pixels, "White must be larger"),
        (lambda pixels: pixels @ np.full((3, 3), 1 / 3), "no affine map"),
        (lambda pixels: (pixels - pixels.mean()) / (pixels.std() + 1e-6), "White must be larger"),
        (stretched, "contents of the picture"),
        (lambda pixels: pixels * np.linspace(0.9, 1, 16)[:, None, None], "place in the picture"),
        (lambda pixels: pixels + np.random.default_rng().normal(0, 1e-7, pixels.shape), "other values each time"),
        (lambda pixels: pixels[..., :2], "2 channels"),
    ],
    ids=["gamma", "negative", "mixed channels", "standardised", "contrast", "vignette", "random", "two channels"],
)
def test_processors_of_another_kind_are_refused(change, reason):
    with pytest.raises(ValueError, match=rf"Own .*{reason}"):
        Preprocessing(Own(change))


def test_processors_without_pixels_are_refused():
    clusters = np.random.default_rng(0).uniform(-1, 1, (8, 3)).tolist()
    processor = transformers.ImageGPTImageProcessorPil(clusters=clusters, size={"height": 8, "width": 8})
    with pytest.raises(ValueError, match="ImageGPTImageProcessorPil .*no `pixel_values`, only .*input_ids"):
        Preprocessing(processor)
    with pytest.raises(TypeError, match="must be callable.*`object`"):
        Preprocessing(object())


def test_overshoot_is_clamped_for_pixels_and_kept_for_training():
    preprocessing = Preprocessing(
        Own(
            lambda pixels: (
                np.where(pixels > 0.99, 1.05, pixels) * 2 - 1
                if pixels.min() < 0.01 < 0.99 < pixels.max()
                else pixels * 2 - 1
            )
        )
    )
    picture = Image.fromarray(
        np.repeat(np.array([[0, 255]], dtype=np.uint8), 16, 0).repeat(8, 1)[..., None].repeat(3, 2)
    )
    values = preprocessing.to_model_inputs([picture])["pixel_values"]
    assert values.max() == pytest.approx(1.1)
    assert preprocessing.into_box(values).max() == 1
    assert torch.equal(preprocessing.into_box(values)[values < 1], values[values < 1])
    assert preprocessing.to_pixels([picture]).max() == 1


def test_patches_have_pixels_but_no_pictures():
    preprocessing = Preprocessing(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16))
    assert (preprocessing.mean, preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="cuts pictures into patches itself"):
        preprocessing.to_pixels([make_picture()])


def test_pictures_that_do_not_fit_are_named(tmp_path):
    for name, size in (("a.png", (60, 45)), ("b.png", (45, 60))):
        make_picture(*size).save(tmp_path / name)
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    preprocessing = Preprocessing(ViTImageProcessorPil(do_resize=False))
    with pytest.raises(ValueError, match=r"a\.png the shape \(3, 45, 60\) and .*b\.png the shape \(3, 60, 45\)"):
        preprocessing.to_model_inputs(pictures)
    padded = ViTImageProcessorPil(do_resize=False, do_pad=True, pad_size={"height": 70, "width": 50})
    with pytest.raises(
        ValueError, match=r"a\.png, of 45x60 pixels.*ViTImageProcessorPil: Padding dimensions are negative"
    ):
        Preprocessing(padded).to_model_inputs(pictures)


def test_files_bytes_and_columns_are_read_alike(tmp_path):
    picture, buffer = make_picture(), io.BytesIO()
    picture.save(tmp_path / "a.png")
    picture.save(buffer, "PNG")
    sources = [picture, tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue()]
    sources += [{"path": None, "bytes": buffer.getvalue()}, {"path": str(tmp_path / "a.png"), "bytes": None}]
    values = Preprocessing(ViTImageProcessorPil(**SQUARE)).to_model_inputs(sources)["pixel_values"]
    assert all(torch.equal(value, values[0]) for value in values)


GREY = {**SQUARE, "image_mean": [0.4], "image_std": [0.2]}


def test_one_channel_models_read_grey_pictures():
    processor, picture = ViTImageProcessorPil(**GREY), make_picture()
    expected = processor([picture.convert("L")], return_tensors="pt")["pixel_values"]
    for preprocessing in (Preprocessing(processor), Preprocessing.of(processor, 1)):
        assert (preprocessing.mode, preprocessing.mean, preprocessing.std) == ("L", (0.4,), (0.2,))
        assert torch.equal(preprocessing.to_model_inputs([picture])["pixel_values"], expected)
        torch.testing.assert_close(preprocessing.normalize(preprocessing.to_pixels([picture])), expected)
    plain = ViTImageProcessorPil(**SQUARE, do_normalize=False)
    assert [Preprocessing(plain, channels).num_channels for channels in (None, 1, 3)] == [3, 1, 3]
    assert Preprocessing.of(Preprocessing(plain), 1).num_channels == 1


@pytest.mark.parametrize(
    "options, channels, message",
    [
        (
            SQUARE,
            1,
            r"read as RGB.* model reads 1 channel, but ViTImageProcessorPil cannot.*grey.*1 value in `image_mean`",
        ),
        (
            {**SQUARE, "do_convert_rgb": True},
            1,
            "model reads 1 channel, but .*gives 3 channels for pictures of 1|mean",
        ),
        (GREY, 3, "model reads 3 channels, but ViTImageProcessorPil cannot.*RGB.*3 values"),
        (SQUARE, 4, "this model reads 4 channels"),
        ({**SQUARE, "image_mean": [0.5] * 4}, None, "cannot process a plain RGB picture: .*4"),
    ],
)
def test_channels_that_do_not_fit_are_refused(options, channels, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(ViTImageProcessorPil(**options), channels)
