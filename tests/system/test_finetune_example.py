"""`examples/finetune.py` as users run it: on the digits, on their own folders and files, resumed, and on bad input."""

import json
import subprocess
import sys

import pytest
import torch
from example_scripts import load_example
from finetune_runs import EXAMPLE, QUICK
from launching import launch
from PIL import Image

from hf_nullspace import NullspaceNoise
from hf_nullspace.robustness.profiles import PREVIEW


QUICK += ["--noise_num_images", "16", "--noise_num_certificate_images", "16", "--use_cpu", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def finetune():
    return load_example("finetune")


@pytest.fixture(scope="module")
def digits(finetune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    options = ["--base_max_steps", "10", "--save_strategy", "steps", "--save_steps", "2"]
    return folder, finetune.main([*QUICK, *options, "--output_dir", str(folder), "--max_robustness_samples", "50"])


def test_digits_compare_base_plain_and_nullspace(digits):
    folder, results = digits
    assert list(results) == ["base", "plain", "nullspace"]
    for row in results.values():
        assert list(row) == [column.name for column in PREVIEW.columns]
        assert all(0 <= value <= 100 for value in row.values())
    saved = json.loads((folder / "all_results.json").read_text())
    assert saved["nullspace_clean"] == results["nullspace"]["clean"]
    assert saved["eval_accuracy"] == json.loads((folder / "eval_results.json").read_text())["eval_accuracy"]


def test_digits_write_everything_beside_the_model(digits):
    folder, results = digits
    noise = NullspaceNoise.from_pretrained(folder)
    assert noise.tensor.shape == (1, 16, 96)
    card = (folder / "README.md").read_text()
    assert f"| nullspace | {results['nullspace']['clean']:.2f} [" in card
    assert f"{noise.certificate.norm:.4g}" in card
    assert "This model was trained from scratch on the scikit-learn digits dataset." in card
    assert "augmentation" not in card and "head_first" not in card
    with Image.open(folder / "noise_norm.png") as figure:
        assert figure.size == (1350, 480)


@pytest.mark.slow
def test_two_processes_run_it_too(tmp_path):
    """Also with fewer validation images than two processes take at a time, which once cost the model."""
    options = ["--base_max_steps", "4", "--output_dir", str(tmp_path), "--max_robustness_samples", "21"]
    options += ["--max_eval_samples", "3", "--per_device_eval_batch_size", "8"]
    printed = launch(EXAMPLE, [*QUICK, *options], processes=2)
    assert "2 process(es)" in printed
    assert printed.count("| nullspace |") == 1
    assert NullspaceNoise.from_pretrained(tmp_path).is_usable


@pytest.mark.slow
def test_two_processes_train_head_and_model_on_the_pictures_of_one(photos, tmp_path):
    """The head is the same bit for bit, and the model but for the order in which gradients are added."""
    import shutil

    from safetensors.torch import load_file

    for name, other in (("dark", "night"), ("light", "day")):
        shutil.copytree(photos / "images" / name, tmp_path / "images" / other)
    flags = ["--model_name_or_path", str(photos / "model"), "--train_dir", str(tmp_path / "images")]
    flags += ["--ignore_mismatched_sizes", "--augmentation", "trivial", "--optim", "sgd", "--learning_rate", "0.1"]
    flags += ["--max_grad_norm", "0", "--noise_weight", "0", "--train_val_split", "0.25", "--report_to", "none"]
    heads, models = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        size = ["--per_device_train_batch_size", str(8 // processes), "--max_steps", "5"]
        launch(EXAMPLE, [*QUICK, *flags, *size, "--output_dir", str(folder)], processes)
        heads.append(load_file(folder / ".trained_head.safetensors"))
        models.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
    assert not torch.equal(models[0]["classifier.weight"], heads[0]["weight"])
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=0, atol=1e-5, msg=name)


def test_saved_model_needs_only_transformers(digits):
    folder, _ = digits
    code = f"""
import sys
from PIL import Image
from transformers import ViTForImageClassification, pipeline
model, info = ViTForImageClassification.from_pretrained({str(folder)!r}, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
answer = pipeline("image-classification", model={str(folder)!r})(Image.new("RGB", (32, 32)), top_k=10)
assert abs(sum(row["score"] for row in answer) - 1) < 1e-5
assert "hf_nullspace" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_resumed_digits_run_ends_with_the_same_weights(digits, finetune, tmp_path):
    from safetensors.torch import load_file

    folder, results = digits
    before = load_file(folder / "model.safetensors")
    checkpoint = str(folder / "checkpoint-2")
    options = ["--base_max_steps", "10", "--save_strategy", "no", "--resume_from_checkpoint", checkpoint]
    again = finetune.main([*QUICK, *options, "--output_dir", str(folder), "--max_robustness_samples", "50"])
    after = load_file(folder / "model.safetensors")
    assert again == results
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_own_folder_and_json_arguments_give_the_same_run(finetune, photos, tmp_path):
    flags = [
        "--model_name_or_path",
        str(photos / "model"),
        "--train_dir",
        str(photos / "images"),
        "--report_to",
        "none",
    ]
    by_flags = finetune.main([*QUICK, *flags, "--max_train_samples", "24", "--output_dir", str(tmp_path / "flags")])
    values = {
        "model_name_or_path": str(photos / "model"),
        "train_dir": str(photos / "images"),
        "report_to": "none",
        "max_train_samples": 24,
        "output_dir": str(tmp_path / "json"),
        "max_steps": 4,
        "noise_refresh_steps": 2,
        "noise_max_steps": 3,
        "per_device_train_batch_size": 8,
        "noise_num_images": 16,
        "noise_num_certificate_images": 16,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "arguments.json").write_text(json.dumps(values))
    by_json = finetune.main([str(tmp_path / "arguments.json")])
    assert list(by_flags) == ["nullspace"]
    assert by_flags == by_json


@pytest.mark.slow
def test_parquet_at_another_image_size(finetune, photos, tmp_path):
    from datasets import load_dataset
    from transformers import AutoImageProcessor, ViTForImageClassification

    load_dataset("imagefolder", data_dir=str(photos / "images"), split="train").to_parquet(tmp_path / "all.parquet")
    flags = ["--model_name_or_path", str(photos / "model"), "--train_file", str(tmp_path / "all.parquet")]
    flags += ["--image_size", "24", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    finetune.main([*QUICK, *flags])
    model = ViTForImageClassification.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert model.config.image_size == 24
    assert NullspaceNoise.from_pretrained(tmp_path / "out").tensor.shape == (1, 9, 96)
    pixels = processor(Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"]
    assert model(pixels).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epsilon", "0"], "`--epsilon`.*0"),
        (["--noise_limit", "-3"], "`--noise_limit`.*-3"),
        (["--noise_refresh_steps", "0"], "`--noise_refresh_steps`.*0"),
        (["--label_column_name", "klass"], "no column 'klass'.*label_column_name"),
        (["--image_column_name", "picture"], "no column 'picture'.*image_column_name"),
        (["--max_train_samples", "4"], "4 images.*8"),
        (["--noise_batch_size", "100"], "images.*100"),
    ],
)
def test_bad_input_is_refused_before_training(finetune, photos, tmp_path, flags, message):
    source = ["--model_name_or_path", str(photos / "model"), "--train_dir", str(photos / "images")]
    with pytest.raises(ValueError, match=message):
        finetune.main([*QUICK, *source, "--report_to", "none", "--output_dir", str(tmp_path / "out"), *flags])
    assert not list(tmp_path.glob("out/*"))


def test_a_corrupt_image_is_named_or_skipped(finetune, photos, tmp_path):
    import shutil

    shutil.copytree(photos / "images", tmp_path / "images")
    (tmp_path / "images" / "dark" / "broken.png").write_bytes(b"not a picture")
    flags = ["--model_name_or_path", str(photos / "model"), "--train_dir", str(tmp_path / "images")]
    flags += ["--train_val_split", "0.1", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="broken.png"):
        finetune.main([*QUICK, *flags])
    results = finetune.main([*QUICK, *flags, "--skip_bad_images"])
    assert list(results) == ["nullspace"]
