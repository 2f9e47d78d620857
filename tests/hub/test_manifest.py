"""The manifest: what it lists, and what it finds changed."""

import json
from hashlib import sha256

import pytest

from hf_nullspace.hub.manifest import MANIFEST_NAME, compare_with_manifest, publishable_files, write_manifest


@pytest.fixture
def folder(tmp_path):
    names = ["model.safetensors", "README.md", "figure.png", "training_args.bin", "trainer_state.json", ".env.json"]
    for name in [*names, "_stage.json", "checkpoint-2/config.json", "optimizer.pt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_lists_what_is_published(folder):
    assert publishable_files(folder) == ["README.md", "figure.png", "model.safetensors"]
    write_manifest(folder)
    files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    assert files["README.md"] == {"size": 9, "sha256": sha256(b"README.md").hexdigest()}
    assert list(files) == ["README.md", "figure.png", "model.safetensors"]
    assert set(compare_with_manifest(folder).values()) == {""}


def test_finds_what_changed(folder):
    write_manifest(folder)
    (folder / "README.md").write_text("readme.md")
    (folder / "figure.png").write_text("shorter")
    (folder / "model.safetensors").unlink()
    assert compare_with_manifest(folder) == {
        "README.md": "has another SHA-256 than was published",
        "figure.png": "has 7 bytes, published were 10",
        "model.safetensors": "is missing",
    }


@pytest.mark.parametrize(
    "content", ["no json", "{}", '{"files": {"a": {}}}', '{"files": {"../a": {"size": 1, "sha256": ""}}}']
)
def test_damaged_manifest_is_refused(folder, content):
    (folder / MANIFEST_NAME).write_text(content)
    with pytest.raises(ValueError, match="is damaged"):
        compare_with_manifest(folder)
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(FileNotFoundError, match="hf-nullspace push"):
        compare_with_manifest(folder)
