"""Finished training runs on disk, each with the settings that it was made with, so that none is repeated or mixed up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..training.checkpoints import last_whole_checkpoint
from ..utils.files import json_hash, write_text


RUN_NAME = "training.json"
UNFINISHED_NAME = "unfinished"
# Prefixes of training arguments that do not affect the weights.
NEUTRAL_ARGUMENTS = (
    *("output_dir", "run_name", "disable_tqdm", "report_to", "log_", "logging_", "save_", "eval_", "hub_", "push_to_"),
    *("project", "trackio_", "dataloader_num_", "dataloader_pin_", "dataloader_prefetch_", "dataloader_persistent_"),
    *(
        "remove_unused_",
        "do_",
        "use_cpu",
        "ddp_",
        "include_",
        "skip_memory_",
        "resume_from_",
        "enable_jit_",
        "local_rank",
        "seed",
        "data_seed",
    ),
)


def training_settings(args: TrainingArguments) -> dict[str, Any]:
    """
    The arguments that differ from their defaults and can change the weights, and the seed, as JSON values; those of the
    noise only where it has a weight.
    """
    neutral = NEUTRAL_ARGUMENTS if getattr(args, "noise_weight", 0.0) else (*NEUTRAL_ARGUMENTS, "noise_", "epsilon")
    values = args.to_dict()
    settings = {"seed": args.seed}
    for item in fields(args):
        value = values.get(item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        default = getattr(default, "value", default)  # of an enum
        # Transformers fills in `False` or an empty list for some that are `None`.
        if not item.name.startswith(neutral) and value != default and (value or default):
            settings[item.name] = value
    return json.loads(json.dumps(settings, default=str))


def read_run(folder: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """
    What [`write_run`] wrote; `None` if the folder has no finished run.

    Args:
        folder (`Path`): The run's folder.
        settings (`Mapping`, *optional*): Those that it must have been made with.

    Raises:
        `ValueError`: If the run was made with other settings, or its file is damaged.
    """
    path = folder / RUN_NAME
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        found = run["settings"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Delete {folder} to run it again.") from error
    differing = [] if settings is None else differences(found, settings)
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(differing)}. Choose another `output_dir`, or delete "
            "that folder to run it again, with those of the runs that start from it."
        )
    return run


def begin_run(folder: Path, settings: Mapping[str, Any]) -> bool:
    """
    Creates a folder for a run; deletes what an interrupted run left there, unless it can go on from a checkpoint.

    Returns:
        `bool`: Whether it holds a whole checkpoint of these settings.

    Raises:
        `FileExistsError`: If the folder holds anything else.
    """
    mark = folder / UNFINISHED_NAME
    folder.mkdir(parents=True, exist_ok=True)
    others = [path for path in folder.iterdir() if path != mark]
    if others and not mark.is_file():
        raise FileExistsError(
            f"{folder} holds {sorted(path.name for path in others)}, but no run of a comparison. Choose another "
            "`output_dir`, or move these away."
        )
    if mark.is_file() and mark.read_text(encoding="utf-8") == json_hash(settings) and _has_checkpoint(folder):
        return True
    write_text(mark, json_hash(settings))
    for path in others:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return False


def _has_checkpoint(folder: Path) -> bool:
    try:
        return last_whole_checkpoint(folder) is not None
    except ValueError:  # there are some, and none is whole
        return False


def write_run(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Marks a run as finished, which is the last file written into its folder; its checkpoints are deleted."""
    run = {"settings": settings, "settings_hash": json_hash(settings), **facts}
    write_text(folder / RUN_NAME, json.dumps(run, indent=2) + "\n")
    (folder / UNFINISHED_NAME).unlink(missing_ok=True)
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(checkpoint)


def differences(found: Any, expected: Any, name: str = "") -> list[str]:
    if not (isinstance(found, Mapping) and isinstance(expected, Mapping)):
        return [] if found == expected else [f"{name or 'settings'} {found!r} instead of {expected!r}"]
    prefix = f"{name}." if name else ""
    names = [*found, *(key for key in expected if key not in found)]
    return [
        text
        for key in names
        for text in differences(found.get(key, "its default"), expected.get(key, "its default"), f"{prefix}{key}")
    ]
