"""Pushing to the Hub from a training run: what arrives, what stays here, and what happens when the Hub does not work."""

import json
import re
import socket
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard, snapshot_download
from safetensors.torch import load

from hf_nullspace import NullspaceDataCollator, NullspaceNoise, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.hub import Publisher, compare_with_manifest, publish


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


@pytest.fixture
def logged(caplog):
    """What the package logged, which Transformers keeps from pytest by default."""
    import logging

    logger = logging.getLogger("hf_nullspace")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def assert_nothing_private(files: dict[str, bytes]) -> None:
    """No token and no folder of this machine in any file, and not its name in any text."""
    secrets = ["hf_owner", str(Path.home()), "/tmp/", str(Path.cwd())]
    for name, content in files.items():
        found = [secret for secret in secrets if secret.encode() in content]
        if not name.endswith((".safetensors", ".png")):
            found += re.findall(rf"\b{re.escape(socket.gethostname())}\b", content.decode())
        assert not found, (name, found)


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


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
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
    assert_nothing_private({name: content for name, content in files.items() if not name.endswith(PICKLES)})
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
        ({"pattern": "", "cut": True}, {}),
        ({"pattern": "POST", "status": 503}, {}),
        ({"pattern": "PUT /_lfs", "cut": True}, {}),
        ({"pattern": "/commit/", "cut": True}, {}),
        (None, {"hub_token": "hf_wrong"}),
        (None, {"hub_model_id": "somebody/out"}),
    ],
    ids=["down", "5xx", "cut upload", "cut commit", "wrong token", "name taken"],
)
def test_training_survives_the_hub(hub, make_trainer, logged, fault, arguments):
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
    assert f"hf-nullspace push {folder} {repo_id}\n" in logged.text
    assert not list(folder.glob("_publishing-*"))
    hub.faults.clear()
    for _ in range(2):  # the second push finds all there
        publish(folder, "out")
    assert 'from_pretrained("user/out")' in hub.files("user/out")["README.md"].decode()
    assert len(hub.messages("user/out")) == 1
    assert set(hub.files("user/out")) == MODEL_FILES


def test_no_server_at_all(make_trainer, monkeypatch, tmp_path, logged):
    with HubServer() as server:
        server.use_in(monkeypatch, str(tmp_path))
    trainer = make_trainer(max_steps=2)
    trainer.train()
    assert trainer.push_to_hub() is None
    assert "Nothing is lost" in logged.text


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
