"""The output folder of a finetuning run: which run owns it, its finished phases, and files of earlier runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from ..comparison.runs import differences
from ..hub.manifest import publishable_files
from ..robustness.examples import EXAMPLES_NAME
from ..training.removed_arguments import check_settings
from ..utils.files import write_text
from ..utils.page import PAGE_NAME


logger = logging.get_logger(__name__)

RECORD_NAME = ".finetune_run.json"
# Files that only a run writes.
OWN_PATTERNS = (
    *("README.md", "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("model*.safetensors", "model.safetensors.index.json", "adapter_config.json", "adapter_model*.safetensors"),
    *("training_args.bin", "trainer_state.json", "*_results.json", "nullspace_*.json", "nullspace_noise.safetensors"),
    *(
        "averaged_weights.safetensors",
        ".trained_head.safetensors",
        "robustness.json",
        "robustness.md",
        "robustness.png",
    ),
    *("outcomes.safetensors", EXAMPLES_NAME, PAGE_NAME),
    *("noise_norm.png", "checkpoint-*", "base", "plain", "_publishing-*", ".measuring", ".partial"),
)
# One of these proves that a run wrote the folder: a README.md alone may be the user's.
EVIDENCE = (RECORD_NAME, "checkpoint-*", "nullspace_*.json", "training_args.bin", "trainer_state.json", ".measuring")


class RunFolder:
    """
    An output folder that belongs to one run.

    Args:
        folder (`str` or `Path`): The folder; it is created if need be.
        settings (`Mapping`): The settings that identify the run, as JSON values.
        resume (`bool`): Whether the run continues from the files in the folder.
        overwrite (`bool`): Whether files of another run may be deleted.

    Raises:
        `ValueError`: If the folder holds another run, or files that would be published with this one; before anything
            in it changes.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], resume: bool, overwrite: bool):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings, default=str))
        self.finished: list[str] = []
        self.stale = [] if resume else own_files(self.folder)
        record = self._read()
        if resume and overwrite:
            raise ValueError(
                "`resume_from_checkpoint` goes on with what `overwrite_output_dir` would delete. Give one of them."
            )
        if resume and record is not None:
            check_settings(record["settings"], self.folder / RECORD_NAME, known=["ema_decay"])
            differing = differences(record["settings"], self.settings)
            if differing:
                raise ValueError(
                    f"The run in {str(folder)!r} has other settings: {'; '.join(differing)}. Resume it with its own, "
                    "or begin a new run in another `output_dir`."
                )
            self.finished = record["finished"]
        elif self.stale and overwrite and not _matching(self.folder, EVIDENCE):
            raise ValueError(
                f"Nothing says that a run wrote what is in {str(folder)!r} ({_listed(self.stale)}), so "
                "`overwrite_output_dir` deletes none of it. Choose another `output_dir`, or move it away."
            )
        elif self.stale and not overwrite:
            raise ValueError(
                f"{str(folder)!r} holds another run ({_listed(self.stale)}), whose files would mix with those of this "
                "one. Go on with it with `resume_from_checkpoint=True`, delete its files first with "
                "`overwrite_output_dir`, or choose another `output_dir`."
            )
        if not resume:
            self._refuse_strangers()
        PartialState().wait_for_everyone()  # nobody writes before all have looked

    def begin(self) -> None:
        """Deletes files of another run with a log message, and claims the folder for this run."""
        if PartialState().is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.stale:
                logger.warning(f"Deleting the files of another run in {str(self.folder)!r}: {_listed(self.stale)}.")
            for name in self.stale:
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self._write()
        PartialState().wait_for_everyone()

    def finish(self, phase: str) -> None:
        """Records that a phase is finished and its results are saved."""
        self.finished = [*(name for name in self.finished if name != phase), phase]
        if PartialState().is_main_process:
            self._write()

    def reopen(self, *phases: str) -> None:
        """Records that phases are not finished any more."""
        self.finished = [name for name in self.finished if name not in phases]
        if PartialState().is_main_process:
            self._write()

    def _read(self) -> dict[str, Any] | None:
        if not (self.folder / RECORD_NAME).is_file():
            return None
        try:
            record = json.loads((self.folder / RECORD_NAME).read_text(encoding="utf-8"))
            return {"settings": record["settings"], "finished": list(record["finished"])}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.folder / RECORD_NAME} is damaged ({error!r}), so nothing says which run the folder holds. "
                "Choose another `output_dir`, or delete the file and name the checkpoint to resume from."
            ) from error

    def _write(self) -> None:
        text = json.dumps({"settings": self.settings, "finished": self.finished}, indent=2) + "\n"
        write_text(self.folder / RECORD_NAME, text)

    def _refuse_strangers(self) -> None:
        """Refuses files that would be published with the model although no run wrote them."""
        if not self.folder.is_dir():
            return
        strangers = [name for name in publishable_files(self.folder) if name not in self.stale]
        if strangers:
            raise ValueError(
                f"{str(self.folder)!r} holds files that would be published with the model, though they are none of its "
                f"run's: {_listed(strangers)}. Move them away, or choose another `output_dir`."
            )


def own_files(folder: str | Path) -> list[str]:
    """Names of what runs left in a folder: models, checkpoints, results, figures and cards, without logs and the like."""
    return _matching(Path(folder), OWN_PATTERNS)


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
