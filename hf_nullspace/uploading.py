"""Files of a folder to a repository of the Hub, in one commit."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from huggingface_hub import CommitInfo, HfApi


def upload_files(
    folder: str | os.PathLike,
    paths: Sequence[str],
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """
    Uploads `paths` of `folder`; repository and branch are made if need be, unchanged files are left alone.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        paths (`Sequence[str]`): Files in it, relative to it.
        repo_id (`str`): `"user/repo"`, or a name within the namespace of the token's owner.
        commit_message (`str`): Message of the commit.
        private (`bool`, *optional*): Whether a new repository is private. By default as the owner set it on the Hub.
        token (`str` or `bool`, *optional*): Access token with write permission; by default the one logged in with.
        revision (`str`, *optional*): Branch to commit to. Defaults to `"main"`.

    Raises:
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses.
    """
    api = HfApi(library_name="hf_nullspace", token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and revision != "main" and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message,
        revision=revision,
        allow_patterns=[glob.escape(path) for path in paths],
    )
