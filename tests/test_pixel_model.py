"""`PixelModel` normalises exactly as the image processor does, and takes pictures in [0, 1] alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTImageProcessorPil

from hf_nullspace.robustness import PixelModel


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
