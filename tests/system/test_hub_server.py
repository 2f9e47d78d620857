"""The stand-in for the Hub answers the real client as the Hub does."""

import json
import subprocess
import sys
import time
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


@pytest.fixture
def api(hub):
    return HfApi()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"weights" * 100)
    (tmp_path / "files" / "config.json").write_text("{}")
    return tmp_path / "files"


def test_upload_and_download_by_branch_and_commit(hub, api, folder, tmp_path):
    assert api.whoami()["name"] == "user"
    assert api.create_repo("repo").repo_id == "user/repo"
    first = api.upload_folder(repo_id="user/repo", folder_path=folder, commit_message="first").oid
    assert any(request.startswith("PUT /_lfs/") for request in hub.requests)
    (folder / "config.json").write_text('{"changed": true}')
    api.upload_folder(repo_id="user/repo", folder_path=folder, commit_message="second")
    assert hub.messages("user/repo") == ["first", "second"]
    assert sum(request.startswith("PUT /_lfs/") for request in hub.requests) == 1
    old = snapshot_download("user/repo", revision=first, cache_dir=tmp_path / "cache")
    assert Path(old, "config.json").read_text() == "{}"
    new = snapshot_download("user/repo", cache_dir=tmp_path / "cache")
    assert Path(new, "config.json").read_text() == '{"changed": true}'
    assert Path(new, "model.safetensors").read_bytes() == b"weights" * 100
    assert api.get_paths_info("user/repo", ["config.json", "absent"])[0].size == 17


def test_an_unchanged_upload_makes_no_commit(hub, api, folder):
    api.create_repo("repo")
    for _ in range(2):
        api.upload_folder(repo_id="user/repo", folder_path=folder, commit_message="once")
    assert hub.messages("user/repo") == ["once"]


def test_errors_are_those_of_the_hub(hub, api, folder, tmp_path):
    api.create_repo("user/secret", private=True)
    api.upload_folder(repo_id="user/secret", folder_path=folder)
    assert hf_hub_download("user/secret", "config.json", cache_dir=tmp_path)
    for token in ("hf_other", False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("user/secret")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("user/secret")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("somebody/repo")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("user/secret", "absent.json", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/secret", "config.json", revision="absent", cache_dir=tmp_path)


def whoami(endpoint: str, token: str = "hf_owner") -> str:
    request = Request(f"{endpoint}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request) as answer:
        return json.load(answer)["name"]


def test_faults_end_when_they_are_used_up(hub):
    hub.fail("GET /api/whoami", status=503, times=1)
    with pytest.raises(HTTPError, match="503"):
        whoami(hub.endpoint)
    hub.fail("GET /api/whoami", cut=True, times=1)
    with pytest.raises(IncompleteRead):
        whoami(hub.endpoint)
    hub.fail("GET /api/whoami", delay=0.2, times=1)
    start = time.monotonic()
    assert whoami(hub.endpoint) == "user"
    assert time.monotonic() - start > 0.2


def test_client_with_xet_uploads_where_nothing_is_lfs(tmp_path_factory, monkeypatch, folder):
    with HubServer(lfs=False) as hub:
        hub.use_in(monkeypatch, str(tmp_path_factory.mktemp("hub")))
        HfApi().create_repo("repo")
        HfApi().upload_folder(repo_id="user/repo", folder_path=folder)
        assert hub.files("user/repo")["model.safetensors"] == b"weights" * 100
        assert not any("lfs" in request for request in hub.requests)


@pytest.mark.parametrize(
    "metadata",
    ["license: 3", "tags: [1]", "datasets: [1]"],
)
def test_invalid_metadata_is_refused(hub, metadata):
    with pytest.raises(ValueError, match="Invalid metadata"):
        ModelCard(f"---\n{metadata}\n---\n# A model", ignore_metadata_errors=True).validate()


def test_it_serves_as_a_process():
    script = Path(__file__).parents[1] / "support" / "hub_server.py"
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        try:
            endpoint = process.stdout.readline().strip()
            assert whoami(endpoint, "hf_other") == "somebody"
        finally:
            process.terminate()
