"""Trainers that push to a server of these tests."""

import io
import re
import socket
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments


PICKLES = (".bin", ".pt", ".pth", ".pkl")


MODEL_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "nullspace_manifest.json",
    "nullspace_noise.json",
    "nullspace_noise.safetensors",
    "nullspace_training.json",
}


@pytest.fixture
def make_trainer(tmp_path, make_vit, examples):
    def make(**arguments) -> NullspaceTrainer:
        settings = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "noise_refresh_steps": 2,
            "noise_max_steps": 2,
            "noise_num_images": 16,
            "noise_num_certificate_images": 16,
            "save_strategy": "steps",
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "push_to_hub": True,
            "hub_token": "hf_owner",
        }
        args = NullspaceTrainingArguments(**{**settings, **arguments})
        return NullspaceTrainer(make_vit(), args, NullspaceDataCollator(), examples, examples[:16])

    return make


def assert_nothing_private(files: dict[str, bytes]) -> None:
    """No token and no folder of this machine in any byte, and not its name in any text, header or figure's metadata."""
    secrets = ["hf_owner", str(Path.home()), tempfile.gettempdir(), str(Path.cwd()), str(Path(__file__).parents[2])]
    for name, content in files.items():
        found = [secret for secret in secrets if secret.encode() in content]
        if name.endswith(".safetensors"):
            text = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
        elif name.endswith(".png"):
            text = str(Image.open(io.BytesIO(content)).info)
        else:
            text = "" if name.endswith(PICKLES) else content.decode()
        found += re.findall(rf"\b{re.escape(socket.gethostname())}\b", text)
        assert not found, (name, found)
