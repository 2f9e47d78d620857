"""Shared by all tests: a tiny ViT, examples and certificates for it; and no network."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models run slower on more threads

import pytest
import tiny_model
import torch
from hub_server import HubServer
from published_runs import make_trainer  # noqa: F401 (a fixture)
from transformers import AutoModelForImageClassification, SegformerConfig, ViTForImageClassification

from hf_nullspace import Certificate


@pytest.fixture(scope="session")
def make_vit():
    """`make_vit(classifier_scale=1.0, seed=0, **config)` builds a ViT with 4 patches of 8x8 and hidden size 32."""

    def build(classifier_scale: float = 1.0, seed: int = 0, **overrides) -> ViTForImageClassification:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = tiny_model.tiny_vit(**overrides)
        model.classifier.weight.data.mul_(classifier_scale)
        return model.eval()

    return build


@pytest.fixture
def tiny_vit(make_vit):
    """A fresh tiny ViT."""
    return make_vit()


@pytest.fixture(scope="session")
def make_examples():
    """`make_examples(count, size=16, seed=0)` gives a list of `{"pixel_values": tensor, "label": int}`."""

    def make(count: int, size: int = 16, num_labels: int = 5, seed: int = 0) -> list[dict]:
        generator = torch.Generator().manual_seed(seed)
        return [
            {"pixel_values": torch.randn(3, size, size, generator=generator), "label": index % num_labels}
            for index in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def examples(make_examples):
    """64 examples."""
    return make_examples(64)


@pytest.fixture(scope="session")
def make_pictures(make_examples):
    """`make_pictures(count)` gives examples whose images are pictures under mean 0.5 and standard deviation 0.5."""

    def make(count: int, **options) -> list[dict]:
        return [{**each, "pixel_values": each["pixel_values"].tanh()} for each in make_examples(count, **options)]

    return make


@pytest.fixture(scope="session")
def make_batches(make_examples):
    """`make_batches(count, batch_size)` gives the examples as a list of batches; iterating it draws no number."""

    def make(count: int, batch_size: int, **options) -> list[dict]:
        images = torch.stack([example["pixel_values"] for example in make_examples(count, **options)])
        return [{"pixel_values": chunk} for chunk in images.split(batch_size)]

    return make


@pytest.fixture(scope="session")
def make_certificate():
    """`make_certificate(**fields)` gives a converged certificate with made-up numbers."""

    def make(**fields) -> Certificate:
        values = {
            "epsilon": 0.03,
            "confidence": 0.95,
            "probability_mse": 0.02,
            "probability_mse_upper": 0.025,
            "logit_distance": 0.5,
            "agreement": 0.99,
            "permuted_probability_mse": 0.4,
            "permuted_agreement": 0.7,
            "norm": 11.0,
            "raw_norm": 11.5,
            "token_norm_min": 1.0,
            "token_norm_median": 2.0,
            "token_norm_max": 3.0,
            "converged": True,
            "num_images": 128,
            "steps": 7,
            "seconds": 0.25,
        }
        return Certificate(**{**values, **fields})

    return make


@pytest.fixture
def overlapping_model():
    """A classifier with three labels whose 7x7 patches are cut every 4 pixels."""
    config = SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[8],
        patch_sizes=[7],
        strides=[4],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=8,
        num_labels=3,
    )
    return AutoModelForImageClassification.from_config(config).eval()


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A Hub of this test's own, which the clients in this process talk to as the user `user`."""
    with HubServer() as server:
        yield server.use_in(monkeypatch, str(tmp_path_factory.mktemp("hub")))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Two classes of 16 noisy pictures, each with its own brightness, and a small ViT to start from."""
    import numpy as np
    from PIL import Image

    from hf_nullspace.models.digits_vit import build_digits_model

    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / "images" / name).mkdir(parents=True)
        for index in range(16):
            picture = rng.integers(level - 50, level + 50, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(picture).save(root / "images" / name / f"{index}.png")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, processor = build_digits_model(["dark", "light"])
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    return root
