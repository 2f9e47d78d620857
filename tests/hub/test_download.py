"""What the Hub answered is said, not that it cannot be reached."""

import os

import pytest

from hf_nullspace.hub.download import download
from hf_nullspace.hub.hub_errors import hub_meaning


@pytest.fixture
def repository(hub):
    from huggingface_hub import HfApi

    HfApi().create_repo("user/repo")
    return hub


@pytest.mark.parametrize("pattern", ["GET /api/models/user/repo", "(GET|HEAD) /user/repo/resolve/"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not know the access token (401)"),
        (403, "refuses access (403)"),
        (429, "was asked too often (429)"),
        (418, "answered with status 418"),
    ],
)
def test_each_answer_has_its_words(repository, tmp_path, pattern, status, words):
    from huggingface_hub import HfApi

    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/repo")
    repository.fail(pattern, status=status)
    with pytest.raises(OSError, match="user/repo") as caught:
        download("user/repo", cache_dir=tmp_path)
    assert words in str(caught.value)
    assert "cannot be reached" not in str(caught.value)


class Answer:
    def __init__(self, status_code):
        self.status_code = status_code


def test_failures_of_the_hub_and_no_answer_at_all():
    def error(cause=None, status=None, kind=OSError):
        found = kind("x")
        found.__cause__ = cause
        if status is not None:
            found.response = Answer(status)
        return found

    assert hub_meaning(error(error(status=500)))[0] == "the Hub itself fails (500)"
    assert hub_meaning(error(status=503))[0] == "the Hub itself fails (503)"
    assert hub_meaning(error(error()))[0] == "the Hub cannot be reached"
    assert hub_meaning(error(error(kind=type("ReadTimeout", (OSError,), {}))))[0] == "the Hub did not answer in time"


def test_what_is_no_folder_of_files_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert download(tmp_path) == (tmp_path, None)
    with pytest.raises(ValueError, match="`revision=main` chooses a commit .* is a folder"):
        download(tmp_path, revision="main")
    with pytest.raises(ValueError, match="config.json' is a file. Name the folder"):
        download(tmp_path / "config.json")
    os.mkfifo(tmp_path / "README.md")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"pipes or devices where files should be: \['README.md', 'zeros'\]"):
        download(tmp_path)
