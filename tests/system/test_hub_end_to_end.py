"""From the example's command line to the Hub, and from there into a new process that knows nothing of this one."""

import json
import os
import runpy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from finetune_runs import EXAMPLE, QUICK
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from launching import launch
from page_checks import check_card, check_page
from PIL import Image
from published import card_of
from published_runs import MODEL_FILES, assert_nothing_private

from hf_nullspace.cli.main import main
from hf_nullspace.hub.download import download
from hf_nullspace.hub.manifest import MANIFEST_NAME
from hf_nullspace.hub.verification_images import PublishedImages


pytestmark = pytest.mark.slow

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
    server.faults.clear()
    del branch[commits:]


@pytest.fixture
def edit(hub):
    """`edit()` gives the files of a new commit, to be changed in place."""
    return lambda: hub.repositories["user/digits"].add("main", "edit", dict(hub.files("user/digits"))).files


def verify(capsys, *options: str, repo_or_folder: str = "user/digits") -> tuple[int, str]:
    """Exit code and output of `hf-nullspace verify`; with the code 2, also what it says on the other stream."""
    try:
        main(["verify", repo_or_folder, *options])
        code = 0
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    return code, printed.out + printed.err if code == 2 else printed.out


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
        ("certificate", "converged", True, "certified within epsilon"),
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
    code, printed = verify(capsys, "--max_images", "8")
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
    assert (
        "- numbers of the report: the outcomes give others for ['contrast_3.accuracy', 'contrast_3.correct']"
        in printed
    )
    assert "- file" not in printed


def test_one_number_without_the_others(edit, capsys, tmp_path):
    files = edit()
    facts = json.loads(files["nullspace_training.json"])
    facts["certificate"]["agreement"] = abs(facts["certificate"]["agreement"] - 0.001)  # 1.001 would be no share
    files["nullspace_training.json"] = json.dumps(facts).encode()
    card = ModelCard(files["README.md"].decode())
    card.data.eval_results[0].metric_value += 1
    files["README.md"] = str(card).encode()
    code, printed = verify(capsys, "--max_images", "8")
    assert code == 1
    assert "- file README.md: has" in printed
    assert "- file nullspace_training.json: has" in printed
    rewrite_manifest(files)
    code, printed = verify(capsys, "--max_images", "8", "--cache_dir", str(tmp_path / "again"))
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
    assert "- noise can be read: There is no nullspace_noise.json" in printed
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


def test_several_folders_count_as_one(hub, capsys, tmp_path):
    for index, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), 3 * (100 * index,)).save(tmp_path / name / "only.png")
    images = PublishedImages(None, 0, (tmp_path / "first", tmp_path / "second"))
    assert [picture.getpixel((0, 0))[0] for picture in images.pictures()] == [0, 100]
    _, printed = verify(capsys, "--images", str(tmp_path / "first"), str(tmp_path / "second"))
    assert "| agreement |" in printed
    assert "not checked: the pictures have no labels" in printed


def test_without_a_report(edit, capsys):
    files = edit()
    facts = json.loads(files["nullspace_training.json"])
    del files["robustness.json"]
    manifest = json.loads(files[MANIFEST_NAME])
    del manifest["files"]["robustness.json"]
    files[MANIFEST_NAME] = json.dumps(manifest).encode()
    code, printed = verify(capsys, "--max_images", "8")
    assert code == 1
    assert "- accuracy of the report: there is no robustness.json, but the card states accuracies" in printed
    facts["results"] = facts["intervals"] = facts["differences"] = facts["correct"] = None
    card = card_of(facts, files["README.md"].decode())
    files = edit()
    files.update({"README.md": card.encode(), "nullspace_training.json": json.dumps(facts).encode()})
    rewrite_manifest(files)
    code, printed = verify(capsys, "--max_images", "64")
    assert code == 0, printed
    assert "| accuracy of the report |  |  | not checked: there is no robustness.json |" in printed


def test_without_noise(edit, capsys):
    files = edit()
    facts = json.loads(files["nullspace_training.json"])
    facts.update(certificate=None, evaluation_certificate=None, bank_size=0)
    card = card_of(facts, files["README.md"].decode())
    files.update({"README.md": card.encode(), "nullspace_training.json": json.dumps(facts).encode()})
    manifest = json.loads(files[MANIFEST_NAME])
    for name in ("nullspace_noise.json", "nullspace_noise.safetensors"):
        del files[name], manifest["files"][name]
    files[MANIFEST_NAME] = json.dumps(manifest).encode()
    rewrite_manifest(files)
    code, printed = verify(capsys, "--max_images", "64")
    assert code == 0, printed
    assert "| certificate |  |  | not checked: it was trained without noise |" in printed
    assert "| accuracy (%), clean |" in printed


def test_of_a_newer_format(edit, capsys):
    files = edit()
    files[MANIFEST_NAME] = json.dumps({**json.loads(files[MANIFEST_NAME]), "version": 2}).encode()
    code, printed = verify(capsys)
    assert code == 2
    assert "is of format 2; this hf_nullspace reads format 1. Upgrade it with `pip install -U hf_nullspace`" in printed


def test_trained_on_images_that_nobody_has(edit, capsys):
    files = edit()
    facts = json.loads(files["nullspace_training.json"])
    facts["dataset"] = "holiday photos"
    files["nullspace_training.json"] = json.dumps(facts).encode()
    assert verify(capsys)[0] == 1, "a file that changed fails without any image"
    files = edit()
    files["README.md"] = card_of(facts, files["README.md"].decode()).encode()
    rewrite_manifest(files)
    code, printed = verify(capsys)
    assert code == 2, printed
    assert "trained on holiday photos, which this package does not bring" in printed
    assert "`--images`" in printed
    code, printed = verify(capsys, "--images", "no/such/folder")
    assert code == 2
    assert "hf-nullspace verify: error: There is no folder 'no/such/folder' (`--images`)" in printed


@pytest.mark.parametrize(
    ("repo_or_folder", "options", "message"),
    [
        ("user/digits", ["--revision", "absent"], "'user/digits' has no revision 'absent'"),
        ("user/absent", [], "neither a folder nor a repository 'user/absent'"),
        ("outputs/no/such/folder", [], "neither a folder here nor the name of a repository"),
        ("user/digits", ["--token", "hf_wrong"], "'user/digits'"),
    ],
)
def test_what_cannot_be_had_is_said(hub, capsys, repo_or_folder, options, message):
    code, printed = verify(capsys, *options, repo_or_folder=repo_or_folder)
    assert code == 2
    assert message in printed
    assert len(printed.splitlines()) < 10, "no traceback"


@pytest.mark.parametrize("fault", [{"cut": True}, {"status": 503}], ids=["cut", "5xx"])
def test_a_download_that_fails_is_said(hub, capsys, fault):
    hub.fail("GET /user/digits/resolve/.*/config.json", **fault)
    code, printed = verify(capsys)
    assert code == 2
    assert "Downloading 'user/digits' failed: " in printed


@pytest.mark.parametrize("offline", [True, False], ids=["offline mode", "no server"])
def test_without_a_network_the_cache_is_used(hub, capsys, tmp_path, monkeypatch, offline):
    cache, commit = ["--cache_dir", str(tmp_path / "cache")], hub.repositories["user/digits"].find("main").oid
    download("user/digits", cache_dir=tmp_path / "cache")
    with HubServer() as closed:
        closed.use_in(monkeypatch, str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    code, printed = verify(capsys, *cache, "--max_images", "64")
    assert code == 0, printed
    assert f"user/digits, commit {commit}: " in printed
    code, printed = verify(capsys, "--cache_dir", str(tmp_path / "empty"))
    assert code == 2
    reason = "offline mode is on (HF_HUB_OFFLINE)" if offline else "the Hub cannot be reached"
    assert f"{reason}, and 'user/digits' is not in the cache." in printed


def test_a_page_of_the_run_has_all_its_numbers(hub, published, tmp_path):
    script = Path(__file__).parents[2] / "model_cards" / "collect.py"
    collect = runpy.run_path(str(script))["collect"]
    page = collect(published[1], tmp_path, "python examples/finetune.py")
    check_page(page / "README.md")
    check_page(page / "robustness.md")
    check_card(page)
    text = (page / "README.md").read_text(encoding="utf-8")
    assert "**Nothing has been published yet.**" in text
    facts = json.loads((page / "nullspace_training.json").read_text(encoding="utf-8"))
    assert set(facts["differences"]) == set(facts["results"]["plain"]) == set(facts["intervals"]["base"])
    assert "| nullspace - plain |" in text
    assert not list(page.glob("*.safetensors"))


def test_push_command_finds_all_there(hub, published, capsys):
    commits = len(hub.messages("user/digits"))
    main(["push", str(published[1]), "user/digits"])
    assert "Published: " in capsys.readouterr().out
    assert len(hub.messages("user/digits")) == commits
