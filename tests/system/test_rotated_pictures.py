"""Photographs that a camera stored sideways, from finetuning to the card and to whoever verifies it on the same files."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_nullspace.cli.main import main
from hf_nullspace.hub.verification import verify
from hf_nullspace.robustness import RobustnessReport


ORIENTATION = 0x0112


# How a picture is stored that is upright by each orientation of EXIF.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save_pictures(folder, count: int, seed: int) -> None:
    """Pictures that are lighter on the side that their class names, half of each class stored by other orientations."""
    random = np.random.default_rng(seed)
    for name, share in (("left", [1.0, 0.2]), ("right", [0.2, 1.0])):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            pixels = 200 * np.repeat(share, 8)[None, :, None] * np.ones((16, 1, 3)) + random.integers(
                0, 56, (16, 16, 3)
            )
            orientation = 1 + place % 8
            picture, exif = Image.fromarray(pixels.astype(np.uint8)), Image.Exif()
            if STORED[orientation] is not None:
                picture = picture.transpose(STORED[orientation])
            exif[ORIENTATION] = orientation
            picture.save(folder / name / f"{place:02}.jpg", exif=exif, quality=95)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """The folder of the pictures, and that of a model which was finetuned on them by the command."""
    folder = tmp_path_factory.mktemp("rotated")
    save_pictures(folder / "train", 64, seed=0)
    save_pictures(folder / "validation", 32, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        names = {"id2label": {0: "left", 1: "right"}, "label2id": {"left": 0, "right": 1}}
        model = ViTForImageClassification(
            ViTConfig(image_size=16, patch_size=8, initializer_range=0.2, **size, **names)
        )
    model.save_pretrained(folder / "model")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "model")
    flags = ["--train_dir", str(folder / "train"), "--validation_dir", str(folder / "validation")]
    flags += ["--output_dir", str(folder / "out"), "--max_steps", "80", "--noise_refresh_steps", "40"]
    flags += ["--learning_rate", "1e-2", "--per_device_train_batch_size", "16", "--use_cpu", "--report_to", "none"]
    flags += ["--augmentation", "none"]  # crops would move the side that is lighter
    main(["finetune", str(folder / "model"), *flags, "--noise_num_images", "64", "--noise_method", "boundary"])
    return folder, folder / "out"


def test_the_command_learns_what_is_upright(finetuned):
    _, model = finetuned
    report = RobustnessReport.load(model)
    assert report.columns["clean"]["correct"] == report.columns["clean"]["count"] == 64


def test_the_card_holds_on_the_same_files(finetuned):
    folder, model = finetuned
    verification = verify(model, images=folder / "validation")
    assert verification.failed == [], verification.to_markdown()
    claims = {claim.name: claim.holds for claim in verification.claims}
    for name in ("accuracy (%), clean", "accuracy (%), fgsm", "accuracy (evaluation)", "agreement"):
        assert claims[name] is True, verification.to_markdown()
    assert "images of the report" not in claims, "they are the very images, compared one by one"


def test_the_same_files_read_as_they_are_stored_are_others(finetuned, tmp_path):
    folder, model = finetuned
    shutil.copytree(folder / "validation", tmp_path / "stored")
    for path in (tmp_path / "stored").rglob("*.jpg"):
        with Image.open(path) as picture:
            picture.convert("RGB").save(path)
    failed = {claim.name for claim in verify(model, images=tmp_path / "stored").failed}
    assert {"accuracy (%), clean", "accuracy (evaluation)"} <= failed


def test_evaluate_measures_what_the_card_says(finetuned, tmp_path):
    folder, model = finetuned
    flags = ["--images", str(folder / "validation"), "--profile", "preview", "--output_dir", str(tmp_path)]
    main(["evaluate", str(model), *flags])
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert found["columns"] == json.loads((model / "robustness.json").read_text())["columns"]
