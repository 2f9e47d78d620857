"""Publishes a folder or a checkpoint. A failing upload never ends a training run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, run_as_future
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from ..utils.checkpoint_files import list_again
from ..utils.hub_upload import open_repository, upload_files
from .manifest import publishable_files, write_manifest
from .model_card import CARD_NAME, TRAINING_NAME, name_repository


logger = logging.get_logger(__name__)


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str = "Upload folder with hf_nullspace",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    further_files: Sequence[str] = (),
) -> CommitInfo:
    """
    Publishes the model, noise, report, figures and card of a folder, with a manifest of their hashes.

    `training_args.bin`, checkpoints and other sub-folders are not published; see [`publishable_files`]. Files that the
    repository already has are not sent again, so a failed push can be repeated by calling this function again.

    Args:
        folder (`str` or `os.PathLike`): What `NullspaceTrainer` wrote.
        repo_id (`str`): `"user/repo"`, or a name within the namespace of the token's owner.
        commit_message (`str`, *optional*): Message of the commit.
        private, token, revision (*optional*): See [`open_repository`].
        further_files (`Sequence[str]`, *optional*): Files of sub-folders to publish as well, relative to `folder`.

    Raises:
        `FileNotFoundError`: If `folder` holds nothing to publish.
    """
    if not Path(folder).is_dir() or not publishable_files(folder):
        raise FileNotFoundError(
            f"There is nothing to publish in {str(folder)!r}. Name a folder that `NullspaceTrainer` wrote."
        )
    repo_id = open_repository(repo_id, private, token, revision)
    card = Path(folder, CARD_NAME)
    if card.is_file():
        card.write_text(name_repository(card.read_text(encoding="utf-8"), repo_id), encoding="utf-8")
    write_manifest(folder)
    paths = [*publishable_files(folder), *further_files]
    return upload_files(folder, paths, repo_id, commit_message=commit_message, token=token, revision=revision)


@dataclass(frozen=True)
class Publisher:
    """
    Publishes one run; a failure is logged with the command that publishes later, and never raised.

    Args:
        folder (`str`): Output folder of the run.
        repo_id (`str`): Where to.
        private, token, revision (*optional*): See [`open_repository`].
    """

    folder: str
    repo_id: str
    private: bool | None = None
    token: str | None = None
    revision: str | None = None

    def command(self) -> str:
        """The command that publishes the folder later."""
        words = ["hf-nullspace", "push", str(self.folder), self.repo_id]
        words += ["--private"] if self.private else []
        words += ["--revision", self.revision] if self.revision else []
        return shlex.join(words)

    def open(self) -> str:
        """Creates the repository if it does not exist and returns its full id; see [`open_repository`]."""
        return open_repository(self.repo_id, self.private, self.token, self.revision)

    @contextmanager
    def survive(self) -> Iterator[None]:
        """Logs every error inside the `with` block and goes on: hours of training count for more than an upload."""
        try:
            yield
        except Exception as error:  # HTTP, sockets, xet and credentials each raise their own exception types
            logger.error(
                f"Publishing to {self.repo_id!r} failed: {type(error).__name__}: {error}\nNothing is lost: training "
                f"goes on, and its results are in {str(self.folder)!r}. Once the cause is removed, publish them with\n"
                f"    {self.command()}\n(with another name if this one belongs to somebody else)."
            )

    def publish(self, commit_message: str, folder: str | None = None, **kwargs) -> CommitInfo | None:
        """[`publish`] for `folder`, by default the run's; returns `None` if it failed."""
        access: dict[str, Any] = {"private": self.private, "token": self.token, "revision": self.revision}
        with self.survive():
            return publish(folder or self.folder, self.repo_id, commit_message=commit_message, **access, **kwargs)

    def publish_in_background(self, commit_message: str) -> Future:
        """[`~Publisher.publish`] in a background thread, one upload at a time in the order of the calls."""
        return run_as_future(self.publish, commit_message)

    def publish_checkpoint_in_background(
        self, checkpoint: str | os.PathLike, commit_message: str, path_in_repo: str | None = None
    ) -> Future:
        """
        Publishes the model of a checkpoint with the run's card and figures, while training goes on.

        Files are linked aside first, since rotation may delete the checkpoint before it is sent.

        Args:
            checkpoint (`str` or `os.PathLike`): Its folder.
            commit_message (`str`): Message of the commit.
            path_in_repo (`str`, *optional*): Folder for all that is needed to resume from the checkpoint.
        """
        stage = Path(tempfile.mkdtemp(prefix="_publishing-", dir=self.folder))
        further = []
        for path in [Path(self.folder, CARD_NAME), Path(self.folder, TRAINING_NAME), *Path(self.folder).glob("*.png")]:
            shutil.copy(path, stage)
        for name in publishable_files(checkpoint):
            _link(Path(checkpoint, name), stage / name)
        if path_in_repo is not None:
            (stage / path_in_repo).mkdir()
            for path in sorted(Path(checkpoint).iterdir()):
                if path.is_file() and path.name != TRAINING_ARGS_NAME:
                    _link(path, stage / path_in_repo / path.name)
                    further.append(f"{path_in_repo}/{path.name}")
            _hide_folders(stage / path_in_repo / TRAINER_STATE_NAME)
        return run_as_future(self._publish_stage, stage, commit_message, further)

    def _publish_stage(self, stage: Path, commit_message: str, further_files: list[str]) -> CommitInfo | None:
        try:
            return self.publish(commit_message, folder=str(stage), further_files=further_files)
        finally:
            shutil.rmtree(stage)


def _link(source: Path, target: Path) -> None:
    """Hard-links a finished file; copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _hide_folders(path: Path) -> None:
    """Leaves only the name of the best checkpoint in a trainer state, without the folders of this machine."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    path.unlink()  # the checkpoint itself has the other name of this file
    path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    list_again(path.parent, path.name)
