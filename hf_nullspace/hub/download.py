"""Downloads a published repository into a folder, with clear errors."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..utils.escaping import plain_text
from .hub_errors import hub_meaning
from .manifest import PUBLISHED_SUFFIXES


def download(
    repo_or_folder: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> tuple[Path, str | None]:
    """
    Downloads what a repository publishes, without its checkpoints; without a network, takes it from the cache.

    Args:
        repo_or_folder (`str` or `os.PathLike`): `"user/repo"`, or a folder, which is taken as it is.
        revision, token, cache_dir (*optional*): As for [`verify`].

    Returns:
        `tuple[Path, str or None]`: The folder, and the commit if it was downloaded from a repository.

    Raises:
        `ValueError`: If it is a file, a folder that holds pipes or devices, or a folder and a `revision` is given.
        `OSError`: If there is no such folder, repository or revision, access is denied, or the Hub cannot be reached
            and the cache does not have it.
    """
    name = str(repo_or_folder)
    if Path(repo_or_folder).is_dir():
        if revision is not None:
            raise ValueError(f"`revision={revision}` chooses a commit of a Hub repository, but {name!r} is a folder.")
        return check_regular(Path(repo_or_folder)), None
    if Path(repo_or_folder).exists():
        raise ValueError(f"{name!r} is a file. Name the folder that it lies in, or a repository.")
    patterns = [f"*{suffix}" for suffix in PUBLISHED_SUFFIXES]
    options = {"revision": revision, "token": token, "cache_dir": cache_dir}
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"], **options))
    except HFValidationError as error:
        raise OSError(
            f"{name!r} is neither a folder here nor the name of a repository, which looks like user/repo."
        ) from error
    except GatedRepoError as error:
        raise OSError(f"{name!r} is gated: accept its terms on the Hub, then pass `--token` or log in.") from error
    except RevisionNotFoundError as error:
        raise OSError(
            f"{name!r} has no revision {revision!r}. Name a branch, a tag or a whole commit id with `--revision`."
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"There is neither a folder nor a repository {name!r}. If it is private, log in with `hf auth login`, or "
            "pass `--token`."
        ) from error
    except LocalEntryNotFoundError as error:
        where = f"revision {revision!r} of {name!r}" if revision else repr(name)
        reason, advice = hub_meaning(OfflineModeIsEnabled() if constants.HF_HUB_OFFLINE else error)
        raise OSError(f"{reason}, and {where} is not in the cache. {advice}") from error
    except HfHubHTTPError as error:
        raise OSError("Downloading {!r} failed: {}. {}".format(name, *hub_meaning(error))) from error
    except Exception as error:  # HTTP libraries raise their own exception types
        reason = f"{plain_text(error, 200)} ({type(error).__name__})"
        raise OSError(f"Downloading {name!r} failed: {reason}. Try again later.") from error
    return folder, folder.name


def check_regular(folder: Path) -> Path:
    """
    Makes sure that reading a folder ends.

    Raises:
        `ValueError`: If it holds a pipe or a device, which libraries would wait for or read without an end.
    """
    strange = [
        path.name for path in sorted(folder.iterdir()) if path.exists() and not (path.is_file() or path.is_dir())
    ]
    if strange:
        raise ValueError(f"{str(folder)!r} holds pipes or devices where files should be: {strange[:5]}. Remove them.")
    return folder
