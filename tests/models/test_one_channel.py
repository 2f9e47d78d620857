"""Models of grey pictures on the whole path: training, probing, evaluation under corruptions and attacks."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_nullspace import (
    NullspaceDataCollator,
    NullspaceTrainer,
    NullspaceTrainingArguments,
    PatchNullspace,
    evaluate_robustness,
    probe,
)
from hf_nullspace.models.loading import ModelArguments, load_model
from hf_nullspace.models.preprocessing import Preprocessing, image_transform
from hf_nullspace.robustness.corruptions import corrupt
from hf_nullspace.robustness.sources import corrupt_pixels


SIZE = {"size": {"height": 16, "width": 16}}


@pytest.fixture(scope="module")
def model(make_vit):
    return make_vit(classifier_scale=20.0, num_channels=1, num_labels=2, id2label={0: "a", 1: "b"})


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessorPil(**SIZE, image_mean=[0.5], image_std=[0.5])


@pytest.fixture(scope="module")
def dataset():
    shades = np.random.default_rng(0).integers(0, 256, (16, 16, 16), dtype=np.uint8)
    pictures = [Image.fromarray(array).convert(mode) for array, mode in zip(shades, ["L", "RGB"] * 8, strict=True)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": pictures, "label": [0, 1] * 8}, features=features)


def test_training_reads_grey_pictures(model, processor, dataset, tmp_path):
    args = NullspaceTrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        noise_max_steps=2,
        noise_num_images=8,
        noise_num_certificate_images=8,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    prepared = dataset.with_transform(image_transform(processor, "image", "label", num_channels=1))
    assert prepared[1]["pixel_values"].shape == (1, 16, 16)
    expected = processor([dataset[1]["image"].convert("L")], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(prepared[1]["pixel_values"], expected)
    trainer = NullspaceTrainer(model, args, NullspaceDataCollator(num_labels=2), prepared, processing_class=processor)
    trainer.train()
    assert trainer.noise.tensor.shape == (1, 4, 32)


def test_evaluation_sees_what_the_processor_gives(model, processor, dataset):
    report = evaluate_robustness(model, processor, dataset, "quick", disable_tqdm=True)
    assert {"clean", "fgsm"} <= set(report.columns)
    values = processor([picture.convert("L") for picture in dataset["image"]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        right = model.eval()(values).logits.argmax(-1) == torch.tensor(dataset["label"])
    assert report.columns["clean"]["accuracy"] == pytest.approx(100 * right.double().mean().item())


def test_probing_finds_the_nullspace_of_one_channel(model, processor, dataset):
    report = probe(model, processor, dataset["image"][:3], disable_tqdm=True)
    assert report.exact["patch_features"] == 64
    assert report.exact["dimension"] == PatchNullspace.from_model(model).dimension == 32
    assert report.exact["relative_logit_change"] < 1e-4


def test_corruptions_are_those_of_the_colour_picture_read_as_grey():
    shades = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    pixels = torch.from_numpy(shades)[None].float() / 255
    corrupted = corrupt_pixels(pixels, "contrast", 3, seed=0, index=0)
    expected = corrupt(Image.fromarray(shades).convert("RGB"), "contrast", 3, np.random.default_rng(0)).convert("L")
    assert torch.equal(corrupted, torch.from_numpy(np.array(expected))[None].float() / 255)


def test_a_processor_of_colour_pictures_is_refused_by_every_part(model, dataset):
    colour = ViTImageProcessorPil(**SIZE)
    message = "[Pp]ictures are read as RGB.* this model reads 1 channel"
    with pytest.raises(ValueError, match=message):
        image_transform(colour, "image", "label", num_channels=1)
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(model, colour, dataset, "quick")
    with pytest.raises(ValueError, match=message):
        probe(model, colour, dataset["image"][:2])


def test_without_a_processor_one_is_assumed_that_fits(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    _, processor = load_model(ModelArguments(str(tmp_path)))
    preprocessing = Preprocessing(processor, 1)
    assert (preprocessing.mean, preprocessing.std, preprocessing.processed_size) == ((0.449,), (0.226,), (16, 16))
    assert "assuming ImageNet's mean [0.449]" in caplog.text
