"""`robust_accuracy` against hand counts, whatever the batch size, and again on a second call."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch import nn
from transformers import ViTImageProcessorPil

from hf_nullspace.robustness import PixelModel, fgsm, robust_accuracy
from hf_nullspace.robustness.accuracy import ACCURACY_CORRUPTIONS


COUNT = 20
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(classifier_scale=20.0, initializer_range=0.2)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [PILImage.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def pixels(pictures):
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def labels(model, pixels):
    """The model's own predictions, every fourth made wrong."""
    with torch.no_grad():
        predicted = model((pixels - 0.5) / 0.5).logits.argmax(-1)
    predicted[::4] = (predicted[::4] + 1) % 5
    return predicted


@pytest.fixture(scope="module")
def dataset(pictures, labels):
    features = Features({"image": Image(), "label": ClassLabel(num_classes=5)})
    return Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)


@pytest.fixture(scope="module")
def accuracies(model, dataset):
    return robust_accuracy(model, PROCESSOR, dataset)


def test_clean_is_the_hand_count(accuracies):
    assert list(accuracies) == ["clean", *ACCURACY_CORRUPTIONS, "fgsm"]
    assert accuracies["clean"] == 75.0


def test_fgsm_is_the_hand_count(model, accuracies, pixels, labels):
    pixel_model = PixelModel(model, PROCESSOR)
    attacked = fgsm(pixel_model, pixels, labels, 8 / 255)
    with torch.no_grad():
        hits = (pixel_model(attacked).argmax(-1) == labels).sum().item()
    assert accuracies["fgsm"] == pytest.approx(100 * hits / COUNT)
    assert accuracies["fgsm"] < accuracies["clean"]


def test_fgsm_of_radius_zero_is_clean(model, dataset):
    result = robust_accuracy(model, PROCESSOR, dataset, epsilon=0.0)
    assert result["fgsm"] == result["clean"] == 75.0


@pytest.mark.parametrize("batch_size", [3, 64])
def test_batch_size_changes_nothing(model, dataset, accuracies, batch_size):
    assert robust_accuracy(model, PROCESSOR, dataset, batch_size=batch_size) == accuracies


def test_contrast_is_the_hand_count(model, pixels, labels, dataset):
    mean = pixels.mean((2, 3), keepdim=True)
    flat = (((pixels - mean) * 0.05 + mean) * 255).round() / 255
    with torch.no_grad():
        hits = (model((flat - 0.5) / 0.5).logits.argmax(-1) == labels).sum().item()
    assert robust_accuracy(model, PROCESSOR, dataset, severity=5)["contrast"] == pytest.approx(100 * hits / COUNT)


def test_same_picture_twice_gets_two_noises(pictures):
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.differ = []

        def forward(self, pixel_values):
            self.differ.append(not torch.equal(pixel_values[0], pixel_values[1]))
            return SimpleNamespace(logits=pixel_values.flatten(1)[:, :2] * self.weight)

    recorder = Recorder()
    twice = Dataset.from_dict(
        {"image": [pictures[0]] * 2, "label": [0, 0]}, features=Features({"image": Image(), "label": Value("int64")})
    )
    robust_accuracy(recorder, PROCESSOR, twice)
    assert sum(recorder.differ) == 1


def test_columns_by_name(model, dataset, accuracies):
    renamed = dataset.rename_columns({"image": "picture", "label": "digit"})
    assert (
        robust_accuracy(model, PROCESSOR, renamed, image_column_name="picture", label_column_name="digit")
        == accuracies
    )


def test_model_and_global_generators_are_put_back(make_vit, dataset):
    model = make_vit()
    model.train()
    model.vit.embeddings.requires_grad_(False)
    trainable = [weight.requires_grad for weight in model.parameters()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    robust_accuracy(model, PROCESSOR, dataset)
    assert all(module.training for module in model.modules())
    assert [weight.requires_grad for weight in model.parameters()] == trainable
    assert [weight for weight in model.parameters() if weight.grad is not None] == []
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
