"""Uploads files of a folder to a repository of the Hub, in one commit."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from huggingface_hub import CommitInfo, HfApi


# The Hub usually answers within a second. Without an answer, the client itself would wait forever.
ANSWER_SECONDS = 10.0
Value = TypeVar("Value")


def answered(function: Callable[..., Value], *args, **kwargs) -> Value:
    """
    Calls a function of the Hub with a time limit of `ANSWER_SECONDS`; its result and errors are passed on.

    Raises:
        `TimeoutError`: If there is no answer in time. The call goes on in a daemon thread.
    """
    answer: Future = Future()

    def call() -> None:
        try:
            answer.set_result(function(*args, **kwargs))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True, name="hub").start()
    try:
        return answer.result(ANSWER_SECONDS)
    except FutureTimeoutError as error:
        if answer.done():
            raise
        raise TimeoutError(f"The Hub did not answer within {ANSWER_SECONDS:g} s.") from error


def open_repository(
    repo_id: str, private: bool | None = None, token: str | bool | None = None, revision: str | None = None
) -> str:
    """
    Creates a repository and its branch if they do not exist.

    Args:
        repo_id (`str`): `"user/repo"`, or a name within the namespace of the token's owner.
        private (`bool`, *optional*): Whether a new repository is private. By default as the owner set it on the Hub.
        token (`str` or `bool`, *optional*): Access token with write permission; by default the one logged in with.
        revision (`str`, *optional*): The branch. Defaults to `"main"`.

    Returns:
        `str`: The repository's full id.

    Raises:
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses.
        `TimeoutError`: If it does not answer.
    """
    api = HfApi(library_name="hf_nullspace", token=token)
    repo_id = answered(api.create_repo, repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and revision != "main" and not revision.startswith("refs/"):
        answered(api.create_branch, repo_id, branch=revision, exist_ok=True)
    return repo_id


def upload_files(
    folder: str | os.PathLike,
    paths: Sequence[str],
    repo_id: str,
    *,
    commit_message: str,
    token: str | bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """
    Uploads `paths` of `folder` to a repository that [`open_repository`] made; unchanged files are left alone.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        paths (`Sequence[str]`): Files in it, relative to it.
        repo_id (`str`): The full id of the repository.
        commit_message (`str`): Message of the commit.
        token, revision (*optional*): As for [`open_repository`].

    Raises:
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses.
    """
    return HfApi(library_name="hf_nullspace", token=token).upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message,
        revision=revision,
        allow_patterns=[glob.escape(path) for path in paths],
    )
