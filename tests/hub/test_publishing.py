"""Pushing to the Hub from a training run: what arrives, what stays here, and what happens when the Hub does not work."""

import json
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, Repository
from huggingface_hub import ModelCard, snapshot_download
from published_runs import MODEL_FILES, PICKLES, assert_nothing_private
from quick_cases import others_slow
from safetensors.torch import load, save

from hf_nullspace import NullspaceNoise
from hf_nullspace.hub.manifest import compare_with_manifest
from hf_nullspace.hub.publishing import Publisher, publish


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", f"see {Path.home()}/runs".encode()),
        ("config.json", b'{"token": "hf_owner"}'),
        ("robustness.json", f'{{"host": "{socket.gethostname()}"}}'.encode()),
        ("noise.safetensors", save({"noise": torch.zeros(1)}, metadata={"host": socket.gethostname()})),
        ("scheduler.pt", f"PK {tempfile.gettempdir()}/out".encode()),
    ],
)
def test_what_is_private_is_found(name, content):
    with pytest.raises(AssertionError, match=name):
        assert_nothing_private({name: content})


def test_push_at_the_end_publishes_all_and_nothing_else(hub, make_trainer):
    trainer = make_trainer(hub_private_repo=True, hub_strategy="end")
    trainer.train()
    trainer.evaluate_noise()
    trainer.save_state()
    assert hub.messages("user/out") == []
    info = trainer.push_to_hub(dataset_tags="digits", license="apache-2.0")
    files = hub.files("user/out")
    assert info.oid == hub.repositories["user/out"].find("main").oid
    assert set(files) == MODEL_FILES
    assert hub.repositories["user/out"].private
    assert_nothing_private(files)
    ours = [path for path in Path(trainer.args.output_dir).rglob("*") if path.is_file() and path.suffix != ".bin"]
    assert_nothing_private({str(path.relative_to(trainer.args.output_dir)): path.read_bytes() for path in ours})
    assert load(files["nullspace_noise.safetensors"])["noise"].equal(trainer.noise.tensor)
    card = ModelCard(files["README.md"].decode())
    card.validate()
    assert {"nullspace", "robustness", "vision", "vit", "arxiv:2403.10476"} <= set(card.data.tags)
    assert (card.data.license, card.data.datasets, card.data.pipeline_tag) == (
        "apache-2.0",
        ["digits"],
        "image-classification",
    )
    facts = json.loads(files["nullspace_training.json"])
    (result,) = card.data.eval_results
    assert result.metric_value == round(100 * facts["evaluation_certificate"]["agreement"], 2)
    assert facts["evaluation_certificate"]["num_images"] == 16
    assert 'NullspaceNoise.from_pretrained("user/out")' in card.content


def test_a_base_model_is_named_and_a_local_one_is_not(hub, make_trainer, make_vit, tmp_path):
    trainer = make_trainer(max_steps=2, save_strategy="no")
    trainer.model.config._name_or_path = "somebody/base"
    hub.repositories["somebody/base"] = Repository(private=False)
    trainer.train()
    trainer.push_to_hub(dataset="digits")
    assert ModelCard(hub.files("user/out")["README.md"].decode()).data.base_model == "somebody/base"
    make_vit().save_pretrained(tmp_path / "base")
    trainer.model.config._name_or_path = str(tmp_path / "base")
    trainer.push_to_hub(dataset="digits")
    files = hub.files("user/out")
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model is None
    assert "finetuned from a local checkpoint on the digits dataset" in card.content
    assert_nothing_private(files)


@pytest.mark.parametrize(
    "strategy", others_slow(["every_save", "checkpoint", "all_checkpoints"], ["every_save", "all_checkpoints"])
)
def test_intermediate_pushes_include_noise_and_card(hub, make_trainer, strategy):
    trainer = make_trainer(hub_strategy=strategy, hub_always_push=True, save_total_limit=1)
    trainer.train()
    assert hub.messages("user/out") == ["Training in progress, step 2", "Training in progress, step 4"]
    folders = {
        "every_save": [],
        "checkpoint": ["last-checkpoint"],
        "all_checkpoints": ["checkpoint-2", "checkpoint-4"],
    }
    files = hub.files("user/out")
    assert {name for name in files if "/" not in name} == MODEL_FILES
    assert sorted({name.split("/")[0] for name in files if "/" in name}) == folders[strategy]
    assert not any(name.endswith("training_args.bin") for name in files)
    assert not any(name.endswith(PICKLES) for name in files if "/" not in name)
    assert_nothing_private(files)
    for commit, step in zip(hub.repositories["user/out"].branches["main"][1:], (2, 4), strict=True):
        assert json.loads(commit.files["nullspace_training.json"])["rounds"][-1]["step"] == step - 2
    assert not list(Path(trainer.args.output_dir).glob("_publishing-*"))
    folder = snapshot_download("user/out")
    assert set(compare_with_manifest(folder).values()) == {""}


def test_a_published_checkpoint_resumes(hub, make_trainer, tmp_path):
    whole = make_trainer(hub_strategy="all_checkpoints", hub_always_push=True)
    whole.train()
    folder = snapshot_download("user/out", local_dir=tmp_path / "download")
    resumed = make_trainer(push_to_hub=False, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    weights = whole.model.state_dict()
    assert all(weights[name].equal(value) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        pytest.param({"pattern": "", "cut": True}, {}, id="down", marks=pytest.mark.slow),
        pytest.param({"pattern": "POST", "status": 503}, {}, id="5xx"),
        pytest.param({"pattern": "PUT /_lfs", "cut": True}, {}, id="cut upload"),
        pytest.param({"pattern": "/commit/", "cut": True}, {}, id="cut commit", marks=pytest.mark.slow),
        pytest.param(None, {"hub_token": "hf_wrong"}, id="wrong token"),
        pytest.param(None, {"hub_model_id": "somebody/out"}, id="name of another", marks=pytest.mark.slow),
        pytest.param(None, {"hub_model_id": "somebody/taken"}, id="name taken", marks=pytest.mark.slow),
    ],
)
def test_training_survives_the_hub(hub, make_trainer, caplog, fault, arguments):
    hub.repositories["somebody/taken"] = Repository(private=False)
    if fault is not None:
        hub.fail(**fault)
    trainer = make_trainer(hub_strategy="every_save", **arguments)
    trainer.train()
    assert trainer.push_to_hub() is None
    assert trainer.state.global_step == 4
    assert all(len(repository.branches["main"]) == 1 for repository in hub.repositories.values())
    folder = Path(trainer.args.output_dir)
    assert set(MODEL_FILES) <= {path.name for path in folder.iterdir()}
    assert NullspaceNoise.from_pretrained(folder).tensor.equal(trainer.noise.tensor)
    repo_id = arguments.get("hub_model_id") or trainer.hub_model_id or "out"
    assert f"hf-nullspace push {folder} {repo_id}\n" in caplog.text
    assert not list(folder.glob("_publishing-*"))
    hub.faults.clear()
    for _ in range(2):  # the second push finds all there
        publish(folder, "out")
    assert 'from_pretrained("user/out")' in hub.files("user/out")["README.md"].decode()
    assert len(hub.messages("user/out")) == 1
    assert set(hub.files("user/out")) == MODEL_FILES


def test_no_server_at_all(make_trainer, monkeypatch, tmp_path, caplog):
    with HubServer() as server:
        server.use_in(monkeypatch, str(tmp_path))
    trainer = make_trainer(max_steps=2)
    trainer.train()
    assert trainer.push_to_hub() is None
    assert "Nothing is lost" in caplog.text


def test_results_of_an_earlier_training_are_in_no_new_manifest(make_trainer, caplog):
    trainer = make_trainer(push_to_hub=False, noise_weight=0.0, max_steps=2, save_strategy="no")
    folder = Path(trainer.args.output_dir)
    stale = ["robustness.json", "robustness.png", "outcomes.safetensors", "noise_norm.png", "nullspace_noise.json"]
    for name in [*stale, "notes.txt"]:
        (folder / name).write_text("old")
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert not [name for name in stale if (folder / name).exists()]
    assert (folder / "notes.txt").is_file()
    assert all(name in caplog.text for name in stale)
    assert not set(stale) & set(compare_with_manifest(folder))
    assert "robustness.png" not in (folder / "README.md").read_text()


def test_a_push_in_the_background_can_be_waited_for(hub, make_trainer):
    trainer = make_trainer(max_steps=2, save_strategy="no")
    trainer.train()
    assert trainer.push_to_hub("later", blocking=False, revision="next").result().oid
    assert hub.messages("user/out", "next") == ["later"]
    assert hub.messages("user/out") == []


def test_the_command_repeats_how_it_was_published():
    publisher = Publisher("my runs/out", "user/out", private=True, revision="next")
    assert publisher.command() == "hf-nullspace push 'my runs/out' user/out --private --revision next"


def test_an_empty_folder_is_not_published(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to publish"):
        publish(tmp_path, "user/repo")
