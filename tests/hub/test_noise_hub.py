"""A noise goes to the Hub and comes back: revisions, tokens, private repositories, the cache, and no network."""

import tempfile

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_nullspace import NullspaceConfig, NullspaceNoise


@pytest.fixture
def noise(make_certificate):
    return NullspaceNoise(
        torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)), make_certificate(), NullspaceConfig()
    )


def upload(noise, repo_id, private=None, token=None, revision=None, **options):
    """The two files of the noise in a repository, as `hf upload` puts them there."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision)
    with tempfile.TemporaryDirectory() as folder:
        noise.save_pretrained(folder)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, **options)


def test_round_trip_by_branch_and_commit(hub, noise, make_certificate):
    first = upload(noise, "user/noise", commit_message="first").oid
    other = NullspaceNoise(2 * noise.tensor, make_certificate(norm=22.0), noise.config)
    upload(other, "user/noise", commit_message="second")
    upload(other, "user/noise", revision="next")
    assert hub.messages("user/noise") == ["first", "second"]
    assert set(hub.files("user/noise")) == {"nullspace_noise.safetensors", "nullspace_noise.json"}
    loaded = NullspaceNoise.from_pretrained("user/noise", revision=first)
    assert torch.equal(loaded.tensor, noise.tensor)
    assert loaded.to_dict() == noise.to_dict()
    for revision in (None, "next"):
        assert torch.equal(NullspaceNoise.from_pretrained("user/noise", revision=revision).tensor, other.tensor)
    with pytest.raises(RevisionNotFoundError):
        NullspaceNoise.from_pretrained("user/noise", revision="absent")


def test_private_repository_needs_its_owner(hub, noise):
    upload(noise, "somebody/noise", private=True, token="hf_other")
    assert hub.repositories["somebody/noise"].private
    with pytest.raises(RepositoryNotFoundError):
        NullspaceNoise.from_pretrained("somebody/noise")
    loaded = NullspaceNoise.from_pretrained("somebody/noise", token="hf_other")
    assert torch.equal(loaded.tensor, noise.tensor)


def test_second_load_is_from_the_cache_and_offline_too(hub, noise, tmp_path, monkeypatch):
    upload(noise, "user/noise")
    for _ in range(2):
        NullspaceNoise.from_pretrained("user/noise", cache_dir=tmp_path)
    downloads = [request for request in hub.requests if request.startswith("GET /user/noise/resolve/")]
    assert len(downloads) == 2  # the two files, once
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(NullspaceNoise.from_pretrained("user/noise", cache_dir=tmp_path).tensor, noise.tensor)
    with pytest.raises(LocalEntryNotFoundError):
        NullspaceNoise.from_pretrained("user/noise", cache_dir=tmp_path / "empty")
    assert hub.requests == []


@pytest.mark.parametrize("fault", [{"cut": True}, {"delay": 0.2}], ids=["cut", "slow"])
def test_a_download_that_stumbles_goes_on(hub, noise, fault):
    upload(noise, "user/noise")
    hub.fail("GET /user/noise/resolve/", times=1, **fault)
    assert torch.equal(NullspaceNoise.from_pretrained("user/noise").tensor, noise.tensor)
    assert hub.faults[0].times == 0


def test_a_download_that_fails_leaves_nothing_damaged(hub, noise):
    upload(noise, "user/noise")
    hub.fail("GET /user/noise/resolve/.*safetensors", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        NullspaceNoise.from_pretrained("user/noise")
    hub.faults.clear()
    assert torch.equal(NullspaceNoise.from_pretrained("user/noise").tensor, noise.tensor)


def test_a_repository_without_noise_is_named(hub):
    HfApi().create_repo("user/empty")
    HfApi().upload_file(repo_id="user/empty", path_in_repo="config.json", path_or_fileobj=b"{}")
    with pytest.raises(FileNotFoundError, match=r"no nullspace_noise.safetensors in user/empty"):
        NullspaceNoise.from_pretrained("user/empty")
