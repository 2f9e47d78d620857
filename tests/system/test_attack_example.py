"""`examples/attack_with_other_tools.py` as users run it, with whatever tools are installed."""

import importlib.util

import numpy as np
import pytest
from example_scripts import load_example
from PIL import Image
from transformers import ViTImageProcessorPil


@pytest.fixture
def example():
    return load_example("attack_with_other_tools")


@pytest.fixture
def arguments(make_vit, tmp_path):
    """A model that sees every pixel, and four pictures."""
    make_vit(classifier_scale=4.0, initializer_range=0.2).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{index}.png")
    return [str(tmp_path / "model"), "--images", str(tmp_path / "pictures"), "--epsilon", "8/255"]


def test_installed_tools_attack_and_others_are_named(example, arguments, capsys):
    rates = example.main(arguments)
    printed = capsys.readouterr().out
    assert rates["PGD of hf_nullspace"] >= rates["FGSM of hf_nullspace"] > 0
    assert rates["CW of hf_nullspace"] > 0
    for package, count in (("hf_nullspace", 3), ("torchattacks", 3), ("foolbox", 1), ("pyautoattack", 1)):
        lines = [line for line in printed.splitlines() if f"of {package} " in line]
        assert len(lines) == count
        installed = importlib.util.find_spec(package) is not None
        assert all(("success" in line) == installed for line in lines)
        assert all((f"pip install {package}" in line) == (not installed) for line in lines)


def test_model_needs_pictures(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["some/model"])
    assert "--images" in capsys.readouterr().err
