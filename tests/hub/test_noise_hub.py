"""A noise goes to the Hub and comes back: revisions, tokens, private repositories, the cache, and no network."""

import pytest
import torch
from huggingface_hub import constants
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
        torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)), [make_certificate()], NullspaceConfig()
    )


def test_round_trip_by_branch_and_commit(hub, noise, make_certificate):
    first = noise.push_to_hub("user/noise", commit_message="first").oid
    other = NullspaceNoise(2 * noise.tensor, [make_certificate(norm=22.0)], noise.config)
    other.push_to_hub("user/noise")
    other.push_to_hub("user/noise", revision="next")
    assert hub.messages("user/noise") == ["first", "Upload nullspace noise"]
    assert set(hub.files("user/noise")) == {"nullspace_noise.safetensors", "nullspace_noise.json"}
    loaded = NullspaceNoise.from_pretrained("user/noise", revision=first)
    assert torch.equal(loaded.tensor, noise.tensor)
    assert loaded.to_dict() == noise.to_dict()
    for revision in (None, "next"):
        assert torch.equal(NullspaceNoise.from_pretrained("user/noise", revision=revision).tensor, other.tensor)
    with pytest.raises(RevisionNotFoundError):
        NullspaceNoise.from_pretrained("user/noise", revision="absent")


def test_private_repository_needs_its_owner(hub, noise):
    noise.push_to_hub("noise", private=True, token="hf_other")
    assert hub.repositories["somebody/noise"].private
    with pytest.raises(RepositoryNotFoundError):
        NullspaceNoise.from_pretrained("somebody/noise")
    loaded = NullspaceNoise.from_pretrained("somebody/noise", token="hf_other")
    assert torch.equal(loaded.tensor, noise.tensor)
    with pytest.raises(HfHubHTTPError):
        noise.push_to_hub("somebody/noise")


def test_second_load_is_from_the_cache_and_offline_too(hub, noise, tmp_path, monkeypatch):
    noise.push_to_hub("user/noise")
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
    noise.push_to_hub("user/noise")
    hub.fail("GET /user/noise/resolve/", times=1, **fault)
    assert torch.equal(NullspaceNoise.from_pretrained("user/noise").tensor, noise.tensor)
    assert hub.faults[0].times == 0


def test_a_download_that_fails_leaves_nothing_damaged(hub, noise):
    noise.push_to_hub("user/noise")
    hub.fail("GET /user/noise/resolve/.*safetensors", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        NullspaceNoise.from_pretrained("user/noise")
    hub.faults.clear()
    assert torch.equal(NullspaceNoise.from_pretrained("user/noise").tensor, noise.tensor)


def test_a_repository_without_noise_is_named(hub):
    from huggingface_hub import HfApi

    HfApi().create_repo("user/empty")
    HfApi().upload_file(repo_id="user/empty", path_in_repo="config.json", path_or_fileobj=b"{}")
    with pytest.raises(FileNotFoundError, match=r"no nullspace_noise.safetensors in user/empty"):
        NullspaceNoise.from_pretrained("user/empty")
