"""From the example's command line to the Hub, and from there into a new process that knows nothing of this one."""

import json
import os
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard
from launching import launch
from PIL import Image
from test_finetune_example import EXAMPLE, QUICK
from test_publishing import MODEL_FILES, assert_nothing_private

from hf_nullspace.cli import main
from hf_nullspace.hub import MANIFEST_NAME


LOAD = """
import json, sys
from hashlib import sha256
from PIL import Image
from transformers import ViTForImageClassification, pipeline
model = ViTForImageClassification.from_pretrained("user/digits")
answer = pipeline("image-classification", "user/digits")(Image.new("RGB", (32, 32)), top_k=10)
assert "hf_nullspace" not in sys.modules
from hf_nullspace import NullspaceNoise
noise = NullspaceNoise.from_pretrained("user/digits")
weights = {name: sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()}
print(json.dumps({"weights": weights, "score": sum(row["score"] for row in answer), "noise": noise.tensor.tolist()}))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The server after `examples/finetune.py --push_to_hub` in two processes, and the folder of the run."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    options = ["--push_to_hub", "--hub_model_id", "user/digits", "--base_max_steps", "30", "--save_steps", "2"]
    options += ["--hub_strategy", "every_save", "--save_strategy", "steps", "--max_robustness_samples", "50"]
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        launch(EXAMPLE, [*QUICK, *options, "--output_dir", str(folder)], processes=2)
        yield hub, folder


@pytest.fixture
def hub(published, monkeypatch, tmp_path):
    """The server, for clients in this process, with an empty cache; later commits are forgotten afterwards."""
    server, _ = published
    branch = server.repositories["user/digits"].branches["main"]
    commits = len(branch)
    yield server.use_in(monkeypatch, str(tmp_path))
    del branch[commits:]


@pytest.fixture
def edit(hub):
    """`edit()` gives the files of a new commit, to be changed in place."""
    return lambda: hub.repositories["user/digits"].add("main", "edit", dict(hub.files("user/digits"))).files


def verify(capsys, *options: str) -> tuple[int, str]:
    """Exit code and output of `hf-nullspace verify`."""
    try:
        main(["verify", "user/digits", *options])
        code = 0
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr().out


def rewrite_manifest(files: dict[str, bytes]) -> None:
    """What somebody does who changes a file and wants nobody to know."""
    manifest = json.loads(files[MANIFEST_NAME])
    for name, row in manifest["files"].items():
        row.update(size=len(files[name]), sha256=sha256(files[name]).hexdigest())
    files[MANIFEST_NAME] = json.dumps(manifest).encode()


def change(files: dict[str, bytes], name: str, field: str, value: float) -> None:
    """Another value for a field of the certificates in a JSON file."""
    content = json.loads(files[name])
    for certificate in content.get("certificates") or [content["certificate"]]:
        certificate[field] = value
    files[name] = json.dumps(content).encode()


def test_repository_is_complete_and_names_nothing_private(published):
    hub, folder = published
    files = hub.files("user/digits")
    others = {"noise_norm.png", "robustness.png", "robustness.json", "robustness.md", "outcomes.safetensors"}
    assert {*MODEL_FILES, *others, "preprocessor_config.json"} <= set(files)
    assert not [name for name in files if "/" in name or name.endswith((".bin", ".pt", ".pth"))]
    assert_nothing_private(files)
    assert all(content == (folder / name).read_bytes() for name, content in files.items())
    messages = hub.messages("user/digits")
    assert len(messages) == len(set(messages)), "each push is one commit, however many processes there are"
    assert messages[-2:] == ["Model save", "End of training"]
    assert hub.requests.count("POST /api/models/user/digits/commit/main") == len(messages)


def test_card_has_valid_metadata_and_its_figure(hub):
    files = hub.files("user/digits")
    card = ModelCard(files["README.md"].decode())
    card.validate()
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["digits"])
    assert {"nullspace", "robustness", "vision", "vit", "arxiv:2403.10476"} <= set(card.data.tags)
    assert {result.metric_name for result in card.data.eval_results} >= {"accuracy (clean)", "accuracy (fgsm)"}
    for linked in ("noise_norm.png", "robustness.png"):
        assert f"]({linked})" in card.content
        assert files[linked].startswith(b"\x89PNG")


def test_new_process_with_an_empty_cache_loads_it(published, tmp_path):
    from transformers import ViTForImageClassification

    from hf_nullspace import NullspaceNoise

    server, folder = published
    environment = {**os.environ, **server.environment(tmp_path)}
    result = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    loaded = json.loads(result.stdout.splitlines()[-1])
    weights = ViTForImageClassification.from_pretrained(folder).state_dict()
    assert loaded["weights"] == {name: sha256(value.numpy().tobytes()).hexdigest() for name, value in weights.items()}
    assert abs(loaded["score"] - 1) < 1e-5
    assert loaded["noise"] == NullspaceNoise.from_pretrained(folder).tensor.tolist()


def test_verify_passes(hub, capsys):
    code, printed = verify(capsys)
    assert code == 0, printed
    assert "FAILS" not in printed
    for claim in ("file robustness.json", "norm", "probability_mse", "weights of the report", "accuracy (%), fgsm"):
        assert f"| {claim} |" in printed


def test_one_byte_of_the_noise(edit, capsys):
    files = edit()
    content = files["nullspace_noise.safetensors"]
    files["nullspace_noise.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    code, printed = verify(capsys, "--max_images", "32")
    assert code == 1
    assert "- file nullspace_noise.safetensors: has another SHA-256 than was published" in printed
    edit()["nullspace_noise.safetensors"] = content[:-1]
    code, printed = verify(capsys)
    assert code == 1
    assert f"has {len(content) - 1} bytes, published were {len(content)}" in printed
    assert "The noise in" in printed


@pytest.mark.parametrize(
    ("place", "field", "value", "failing"),
    [
        ("certificate", "norm", 1e3, "norm"),
        ("certificate", "converged", False, "certified within epsilon"),
        ("evaluation_certificate", "permuted_agreement", 0.5, "permuted_agreement"),
        ("evaluation_certificate", "probability_mse", 1.5, "probability_mse"),
    ],
)
def test_one_number_of_the_certificate(edit, capsys, place, field, value, failing):
    files = edit()
    facts = json.loads(files["nullspace_training.json"])
    facts[place][field] = value
    files["nullspace_training.json"] = json.dumps(facts).encode()
    if place == "certificate":
        noise = json.loads(files["nullspace_noise.json"])
        noise["certificates"][0][field] = value
        files["nullspace_noise.json"] = json.dumps(noise).encode()
    rewrite_manifest(files)
    code, printed = verify(capsys, "--max_images", "64")
    assert code == 1
    assert f"\n- {failing}: " in printed


def test_one_number_of_the_report(edit, capsys, tmp_path):
    files = edit()
    report, facts = json.loads(files["robustness.json"]), json.loads(files["nullspace_training.json"])
    row = report["columns"]["contrast_3"]
    row["accuracy"] -= 2.0
    files["robustness.json"] = json.dumps(report).encode()
    code, printed = verify(capsys)
    assert code == 1
    assert "- file robustness.json: has" in printed
    assert "accuracy, counts and nullspace_training.json differ in ['contrast_3']" in printed
    # One image of fifty is two per cent: all files agree, and still it is not what comes out.
    row["correct"] -= 2
    row["accuracy"] = facts["results"]["nullspace"]["contrast_3"] = 2.0 * row["correct"]
    files = edit()
    files.update(
        {"robustness.json": json.dumps(report).encode(), "nullspace_training.json": json.dumps(facts).encode()}
    )
    rewrite_manifest(files)
    code, printed = verify(capsys)
    assert code == 1
    assert "- accuracy (%), contrast_3: 2 of the same 50 images differ" in printed
    assert "- file" not in printed


def test_one_number_without_the_others(edit, capsys, tmp_path):
    files = edit()
    facts = json.loads(files["nullspace_training.json"])
    facts["certificate"]["agreement"] += 0.001
    files["nullspace_training.json"] = json.dumps(facts).encode()
    card = ModelCard(files["README.md"].decode())
    card.data.eval_results[0].metric_value += 1
    files["README.md"] = str(card).encode()
    code, printed = verify(capsys, "--max_images", "32")
    assert code == 1
    assert "- file README.md: has" in printed
    assert "- file nullspace_training.json: has" in printed
    rewrite_manifest(files)
    code, printed = verify(capsys, "--max_images", "32", "--cache_dir", str(tmp_path / "again"))
    assert code == 1
    assert "- file" not in printed
    assert "nullspace_noise.json and nullspace_training.json differ in ['agreement']" in printed
    assert f"differ in ['{card.data.eval_results[0].metric_name}']" in printed


def test_missing_files_are_named(edit, capsys):
    files = edit()
    del files["noise_norm.png"], files["nullspace_noise.json"]
    code, printed = verify(capsys)
    assert code == 1
    assert "- file noise_norm.png: is missing" in printed
    assert "- files that fit together: There is no nullspace_noise.json" in printed
    del edit()[MANIFEST_NAME]
    assert f"- file {MANIFEST_NAME}: There is no" in verify(capsys)[1]


@pytest.mark.parametrize("classes", [["", ""], ["3", "5"]], ids=["unlabelled", "labelled"])
def test_other_images_are_measured_too(hub, capsys, tmp_path, classes):
    for index, name in enumerate(2 * classes):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    _, printed = verify(capsys, "--images", str(tmp_path / "photos"), "--batch_size", "2")
    assert "| agreement |" in printed
    assert ("not checked: the pictures have no labels" in printed) == (not any(classes))
    assert ("| accuracy (%), clean |" in printed) == all(classes)


def test_push_command_finds_all_there(hub, published, capsys):
    commits = len(hub.messages("user/digits"))
    main(["push", str(published[1]), "user/digits"])
    assert "Published: " in capsys.readouterr().out
    assert len(hub.messages("user/digits")) == commits
