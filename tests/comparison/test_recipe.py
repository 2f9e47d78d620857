"""The recipe of a comparison: one head, trained first, that all rows start from, and pictures that all see augmented alike."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_nullspace.cli.commands.compare import parse_compare_arguments
from hf_nullspace.comparison import runner
from hf_nullspace.comparison.plan import Row
from hf_nullspace.training.augmented_images import AugmentedImages


QUICK = ["--max_steps", "1", "--per_device_train_batch_size", "8", "--report_to", "none", "--use_cpu"]
QUICK += ["--disable_tqdm", "true", "--ignore_mismatched_sizes"]


@pytest.fixture
def build(photos, tmp_path):
    """`build(*flags)` gives the runner of a comparison on two classes that the model's head was not trained on."""
    for name, other in (("dark", "night"), ("light", "day")):
        shutil.copytree(photos / "images" / name, tmp_path / "images" / other)
    source = ["--model_name_or_path", str(photos / "model"), "--train_dir", str(tmp_path / "images")]

    def make(*flags: str) -> runner.Runner:
        arguments = [*QUICK, *source, "--output_dir", str(tmp_path / "out"), *flags]
        return runner.Runner(*parse_compare_arguments(arguments, "compare"))

    return make


def test_rows_start_from_one_head_and_see_pictures_augmented_alike(build, photos, tmp_path, monkeypatch):
    made = build()
    trained_on = []
    train = runner.WAYS["plain"].trainer_class.train

    def watched(self, *args, **kwargs):
        model = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        trained_on.append((self.train_dataset, model))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(runner.WAYS["plain"].trainer_class, "train", watched)
    facts = made.train(made.base, 42)
    assert facts["head_first"]["steps"] == 500 and "64 to 100 %" in facts["augmentation"]
    base = load_file(tmp_path / "out" / "base" / "model.safetensors")
    loaded = load_file(photos / "model" / "model.safetensors")
    changed = sorted(name for name in base if not torch.equal(base[name], loaded[name]))
    assert changed == ["classifier.bias", "classifier.weight"] and not trained_on
    for name, seed in (("plain", 42), ("nullspace", 42), ("plain", 43)):
        made.train(Row(name, name, arguments={"noise_num_images": 8, "noise_num_certificate_images": 8}), seed)
    for images, start in trained_on:
        assert isinstance(images, AugmentedImages) and torch.equal(
            start["classifier.weight"], base["classifier.weight"]
        )
    first, alike, other = (images[0]["pixel_values"] for images, _ in trained_on)
    assert torch.equal(first, alike) and not torch.equal(first, other)


def test_a_run_of_another_recipe_is_refused(build):
    made = build("--augmentation", "none", "--head_first_steps", "2")
    made.train(made.base, 42)
    other = build("--augmentation", "trivial", "--head_first_steps", "2")
    with pytest.raises(ValueError, match="other settings: augmentation 'its default' instead of 'trivial'"):
        other.train(other.base, 42)
