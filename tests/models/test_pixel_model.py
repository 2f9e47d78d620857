"""`PixelModel` normalises exactly as the image processor does, and takes pictures in [0, 1] alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EfficientNetImageProcessorPil, ViTImageProcessorPil

from hf_nullspace.models.pixel_model import PixelModel


class Recorder(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, pixel_values):
        self.seen = pixel_values
        return SimpleNamespace(logits=pixel_values.flatten(1)[:, :2] * self.weight)


def make_processor(**options):
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, {"do_normalize": False}],
    ids=["half", "ImageNet", "none"],
)
def test_normalisation_is_that_of_the_processor(options):
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    processor, model = make_processor(**options), Recorder()
    expected = processor(pictures, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    logits = PixelModel(model, processor)(pixels)
    torch.testing.assert_close(model.seen, expected, rtol=0, atol=1e-6)
    assert torch.equal(logits, model.seen.flatten(1)[:, :2])


def test_logits_are_those_of_the_model(make_vit):
    model, processor = make_vit(classifier_scale=20.0), make_processor()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(PixelModel(model, processor)(pixels), model((pixels - 0.5) / 0.5).logits)


def test_half_precision_model_gives_float32_logits():
    model = Recorder(torch.bfloat16)
    logits = PixelModel(model, make_processor())(torch.ones(1, 3, 16, 16))
    assert (model.seen.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    assert logits.tolist() == [[1.0, 1.0]]


def test_box_itself_is_accepted():
    pixels = torch.cat([torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)])
    assert PixelModel(Recorder(), make_processor())(pixels).tolist() == [[-1.0, -1.0], [1.0, 1.0]]


@pytest.mark.parametrize("value, text", [(-0.01, "-0.01"), (1.01, "1.01"), (255.0, "255"), (float("nan"), "nan")])
def test_pixels_outside_the_box_are_refused(value, text):
    pixels = torch.full((1, 3, 16, 16), 0.5)
    pixels[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match=rf"\[0, 1\].*{text}"):
        PixelModel(Recorder(), make_processor())(pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [100.0] * 3},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5, 1.0, 2.0]},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
    ],
    ids=["none", "to 2", "to 2, not normalised"],
)
def test_other_rescaling_is_that_of_the_processor(options):
    test_normalisation_is_that_of_the_processor(options)


def test_offset_of_the_rescaling_is_that_of_the_processor():
    processor = EfficientNetImageProcessorPil(
        size={"height": 16, "width": 16}, rescale_offset=True, rescale_factor=1 / 127.5, include_top=False
    )
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    model = Recorder()
    PixelModel(model, processor)(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    expected = processor([picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.seen, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_model_agrees_with_float32(make_vit, dtype, tolerance):
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    full, half = make_vit(classifier_scale=20.0), make_vit(classifier_scale=20.0).to(dtype)
    with torch.no_grad():
        logits = [PixelModel(model, make_processor())(pixels) for model in (full, half)]
    assert logits[1].dtype == torch.float32
    assert 0 < (logits[0] - logits[1]).norm() / logits[0].norm() < tolerance


def test_half_precision_pixels_are_normalised_in_float32():
    model = Recorder()
    processor = make_processor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    pixels = torch.full((1, 3, 16, 16), 0.5, dtype=torch.bfloat16)
    PixelModel(model, processor)(pixels)
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(model.seen[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, "reads 3 channels.*mean must have 3 elements.* got 4"),
        ({"image_std": [0.5] * 2}, "reads 3 channels.*std must have 3 elements.* got 2"),
        ({"image_std": [0.5, 0.0, 0.5]}, "positive"),
        ({"image_mean": None}, "ViTImageProcessorPil cannot process a RGB picture"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(make_vit, options, text):
    processor = make_processor()
    for name, value in options.items():
        setattr(processor, name, value)
    with pytest.raises(ValueError, match=text):
        PixelModel(make_vit(), processor)


def test_one_value_serves_all_channels(make_vit):
    processor = make_processor(image_mean=0.5, image_std=0.5)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [PixelModel(make_vit(), each)(pixels) for each in (processor, make_processor())]
    assert torch.equal(*logits)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16)])
def test_wrong_shapes_are_refused(make_vit, shape):
    with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\)"):
        PixelModel(make_vit(), make_processor())(torch.zeros(shape))


def test_output_without_logits_is_refused():
    model = Recorder()
    model.forward = lambda pixel_values: (pixel_values,)
    with pytest.raises(TypeError, match="tuple without `logits`.*return_dict"):
        PixelModel(model, make_processor())(torch.zeros(1, 3, 16, 16))
