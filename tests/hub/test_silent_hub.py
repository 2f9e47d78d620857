"""A Hub that accepts connections and never answers costs seconds, and nothing that was trained."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from published_runs import MODEL_FILES

from hf_nullspace.utils import hub_upload as uploading
from hf_nullspace.utils.hub_upload import answered


@pytest.fixture
def silent_hub(monkeypatch, tmp_path):
    """A socket that accepts whatever comes, reads it, and says nothing; the clients of this process take it for the Hub."""
    import huggingface_hub

    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connections.append(listener.accept()[0])
            except OSError:  # closed
                return

    threading.Thread(target=accept, daemon=True).start()
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for name, value in {"ENDPOINT": endpoint, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": f"{tmp_path}/token"}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(uploading, "ANSWER_SECONDS", 0.5)
    yield connections
    listener.close()
    for connection in connections:
        connection.close()


def test_training_begins_and_ends_all_the_same(silent_hub, make_trainer, caplog):
    begin = time.perf_counter()
    trainer = make_trainer(hub_strategy="end", hub_model_id="user/out", max_steps=2)
    constructed = time.perf_counter() - begin
    assert silent_hub, "the Hub was asked"
    assert constructed < 10
    assert "TimeoutError: The Hub did not answer within 0.5 s." in caplog.text
    trainer.model.config._name_or_path = "somebody/base"  # whose license `Trainer` would wait for
    trainer.train()
    assert trainer.push_to_hub() is None
    folder = Path(trainer.args.output_dir)
    assert set(MODEL_FILES) <= {path.name for path in folder.iterdir()}
    assert caplog.text.count(f"hf-nullspace push {folder} user/out\n") == 2
    assert "The license of 'somebody/base' is not in the card: TimeoutError" in caplog.text
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == (None, "somebody/base")


def test_every_strategy_ends(silent_hub, make_trainer, caplog):
    trainer = make_trainer(hub_strategy="every_save", hub_model_id="user/out", hub_always_push=True)
    trainer.train()
    assert trainer.push_to_hub() is None
    assert trainer.state.global_step == 4
    assert not list(Path(trainer.args.output_dir).glob("_publishing-*"))


def test_an_answer_and_an_error_come_through():
    assert answered(json.loads, "[1]") == [1]
    with pytest.raises(json.JSONDecodeError):
        answered(json.loads, "[")

    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="^its own$"):
        answered(late)
