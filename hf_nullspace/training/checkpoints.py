"""
Reliable checkpoints: checks that a checkpoint is complete, says what is wrong with it if not, and restores every weight.

`Trainer` loads the weight file non-strictly and without converting names. `save_pretrained` writes a ViT's encoder under
older names than the live model uses, so `Trainer` would restore the head and silently leave the encoder unchanged. Delete
`load_model_weights` when `Trainer._load_from_checkpoint` and `_load_best_model` convert names as `from_pretrained` does.

`Trainer` also resumes from the last folder without checking its contents or which run wrote it. Without `optimizer.pt`
or the random states it silently continues with a new optimizer and other random numbers. Here a checkpoint is whole if
its files match its list of files ([`checkpoint_files`]), which is written last. Checkpoints of `Trainer` and of older
versions have no list. They are checked by the names of their files, of which `trainer_state.json` is written last.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, logging

from ..utils.checkpoint_files import LIST_NAME, read_list, what_differs, write_list
from .run_identity import Run, read_run


logger = logging.get_logger(__name__)

REMEDY = (
    "Delete that checkpoint and resume from an earlier one; `resume_from_checkpoint=True` takes the last whole one."
)
# Prefixes of the files in a checkpoint that only a resumed run reads.
RUN_STATES = ("optimizer", "scheduler", "scaler", "rng_state", "data_state", "averaged_weights")


# ---- Is it whole? -----------------------------------------------------------------------------------------------
def what_is_missing(checkpoint: str | Path) -> str | None:
    """
    Why a checkpoint cannot be resumed from; `None` if it can.

    Every file is compared with the size and the SHA-256 in the checkpoint's list, which takes about a second per GB on
    most processors. Without a list, only the files that every checkpoint of `Trainer` has are looked for. A sharded
    optimizer has other files.
    """
    folder = Path(checkpoint)
    try:
        values = read_list(folder)
    except ValueError as error:
        return str(error)
    if values is None:
        return _what_is_missing_by_name(folder)
    if values.get("save_only_model") and values["files"] is not None:
        return "it was saved with `save_only_model`, so it has no optimizer, schedule or random states to go on with"
    return what_differs(folder, values)


def _what_is_missing_by_name(folder: Path) -> str | None:
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {TRAINER_STATE_NAME}, which is written last, so its save was cut short"
    except (OSError, ValueError) as error:
        return f"its {TRAINER_STATE_NAME} cannot be read ({error})"
    names = {path.name for path in folder.iterdir()}
    for name in sorted(names):
        # What `torch.save` writes is a zip archive, whose table of contents comes last.
        is_archive = name in (OPTIMIZER_NAME, SCHEDULER_NAME) or name.startswith("rng_state")
        if is_archive and (folder / name).is_file() and not zipfile.is_zipfile(folder / name):
            return f"its {name} is cut short or damaged"
    if not any(name.startswith("rng_state") for name in names):
        return "it has no random states (rng_state.pth)"
    has_optimizer = any(name.startswith("optimizer") for name in names)
    if "latest" in names:  # DeepSpeed keeps optimizer and schedule in a folder that this file names
        return None
    if SCHEDULER_NAME not in names:
        return (
            f"it has no {SCHEDULER_NAME}" if has_optimizer else f"it has no {OPTIMIZER_NAME} and no {SCHEDULER_NAME}"
        )
    return None if has_optimizer else f"it has no {OPTIMIZER_NAME}"


def check_whole(checkpoint: str | Path) -> None:
    """
    Refuses to resume from a checkpoint that would not continue the run exactly.

    Raises:
        `FileNotFoundError`: If there is no such folder.
        `ValueError`: If its save was cut short, or files are gone or changed since; the message names the last whole
            checkpoint.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}. {_whole_ones(folder.parent)}")
    missing = what_is_missing(folder)
    if missing is not None:
        raise ValueError(
            f"The checkpoint {checkpoint} is not whole: {missing}. Delete it. {_whole_ones(folder.parent)}"
        )


def check_model_files(checkpoint: str | Path) -> None:
    """
    Refuses to load weights and noise that have changed since they were written. Files without a list are not checked.

    Raises:
        `ValueError`: If a file of the model is gone or changed.
    """
    folder = Path(checkpoint)
    try:
        values = read_list(folder)
        differs = values and what_differs(folder, values, lambda name: not name.startswith(RUN_STATES))
    except ValueError as error:
        differs = str(error)
    if differs:
        raise ValueError(f"The checkpoint {checkpoint} is not whole: {differs}. Take the weights of another one.")


def check_processes(checkpoint: str | Path, num_processes: int, process_index: int) -> None:
    """
    Refuses a number of processes that differs from the checkpoint's, since each process has its own random states and
    its own images of a batch. Every process must call it.

    Raises:
        `ValueError`: If there are more or fewer, or if the random state of this process is lost.
    """
    folder = Path(checkpoint)
    values = read_list(folder)
    if values is not None:
        then = values["num_processes"]
    elif (folder / "rng_state.pth").is_file():
        then = 1
    else:  # of several machines, each may have no more than its own
        ranks = [path.stem.removeprefix("rng_state_") for path in folder.glob("rng_state_*.pth")]
        then = max(num_processes, 2, *(int(rank) + 1 for rank in ranks if rank.isdigit()))
    if then != num_processes:
        raise ValueError(
            f"The checkpoint {checkpoint} was saved by {then} process(es), but now there are {num_processes}: they "
            f"would see other images in other batches, and draw other random numbers. Resume with {then}, or start a "
            "new run from the checkpoint's weights."
        )
    name = "rng_state.pth" if num_processes == 1 else f"rng_state_{process_index}.pth"
    if not (folder / name).is_file():
        raise ValueError(
            f"The checkpoint {checkpoint} has no random states of process {process_index} ({name}). {REMEDY}"
        )


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """
    The last checkpoint that is whole, of the run that the folder belongs to; `None` if there is no checkpoint of it.

    Later checkpoints, and checkpoints of other runs, are named in a warning.

    Raises:
        `ValueError`: If the run has checkpoints, and none is whole.
    """
    others = checkpoints_of_other_runs(output_dir)
    if others:
        logger.warning(f"{output_dir} belongs to another run than {_names(others)}, which are left alone.")
    skipped: dict[Path, str] = {}
    for checkpoint in _checkpoints(output_dir):
        if checkpoint in others:
            continue
        missing = what_is_missing(checkpoint)
        if missing is None:
            for folder, reason in skipped.items():
                logger.warning(f"Skipping {folder}: {reason}. Resuming from {checkpoint}; the other can be deleted.")
            return str(checkpoint)
        skipped[checkpoint] = missing
    if skipped:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in skipped.items())
        raise ValueError(
            f"No checkpoint in {output_dir} is whole ({reasons}). Delete them and train without "
            "`resume_from_checkpoint`."
        )
    return None


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders in an output folder, the last one first."""
    steps = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if folder.is_dir() and folder.name.rpartition("-")[2].isdigit():
            steps[folder] = _step_of(folder)
    return sorted(steps, key=steps.get, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _whole_ones(output_dir: str | Path) -> str:
    others = checkpoints_of_other_runs(output_dir)
    own = (folder for folder in _checkpoints(output_dir) if folder not in others)
    last = next((folder for folder in own if what_is_missing(folder) is None), None)
    if last is None:
        return f"No checkpoint in {output_dir} is whole: train without `resume_from_checkpoint`."
    return f"The last whole checkpoint is {last}."


# ---- Whose is it? -----------------------------------------------------------------------------------------------
def run_of(checkpoint: str | Path) -> Run | None:
    """The run that saved a checkpoint; `None` if its list is damaged."""
    try:
        values = read_list(Path(checkpoint))
    except ValueError:
        return None
    return Run() if values is None else Run(**values["run"])


def checkpoints_of_other_runs(output_dir: str | Path, run: Run | None = None) -> list[Path]:
    """
    The checkpoints in an output folder that are not of the run it belongs to.

    Args:
        output_dir (`str` or `Path`): The output folder.
        run ([`Run`], *optional*): Defaults to the run that the folder belongs to; without one, all are its own.
    """
    run = run or read_run(output_dir)
    if run is None:
        return []
    owners = {checkpoint: run_of(checkpoint) for checkpoint in _checkpoints(output_dir)}
    return [
        checkpoint
        for checkpoint, owner in owners.items()
        if owner is not None and any(checkpoint.iterdir()) and not run.has(owner, _step_of(checkpoint))
    ]


def resumed_run(checkpoint: str | Path, output_dir: str | Path) -> Run:
    """The run that goes on from a checkpoint: the same one, or a branch where the folder has later steps of it."""
    run = run_of(checkpoint) or Run()
    step = read_step(checkpoint)
    later = [other for other in _checkpoints(output_dir) if _step_of(other) > step]
    strangers = checkpoints_of_other_runs(output_dir, run)
    return run if all(other in strangers for other in later) else run.branch(step)


def read_step(checkpoint: str | Path) -> int:
    """The optimizer step that a checkpoint was saved after."""
    return json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]


def _names(checkpoints: list[Path]) -> str:
    return ", ".join(checkpoint.name for checkpoint in checkpoints)


# ---- Saving -----------------------------------------------------------------------------------------------------
def begin_checkpoint(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Makes an empty folder for a checkpoint that is not whole until `write_list` says so, whatever was there."""
    _empty(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_list(checkpoint, facts, is_complete=False)


def rotate_checkpoints(output_dir: str | Path, run: Run, limit: int | None, keep: list[str | Path | None]) -> None:
    """
    Deletes the earliest checkpoints of a run, by their steps: a clock may be set back.

    Args:
        output_dir (`str` or `Path`): The output folder.
        run ([`Run`]): Checkpoints of other runs are neither counted nor deleted.
        limit (`int`, *optional*): So many are left. `None` or 0 deletes none.
        keep (`list`): These are left whatever the limit is, and counted.
    """
    if not limit or limit < 0:
        return
    others = checkpoints_of_other_runs(output_dir, run)
    kept = {Path(checkpoint).resolve() for checkpoint in keep if checkpoint is not None}
    own = [checkpoint for checkpoint in _checkpoints(output_dir) if checkpoint not in others]
    rest = [checkpoint for checkpoint in own if checkpoint.resolve() not in kept]
    # Incomplete checkpoints are useless, so they are deleted first.
    rest.sort(key=lambda checkpoint: (_was_finished(checkpoint), _step_of(checkpoint)), reverse=True)
    for checkpoint in rest[max(0, limit - (len(own) - len(rest))) :]:
        logger.info(f"Deleting the older checkpoint {checkpoint} due to `save_total_limit`")
        _empty(checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)


def _was_finished(checkpoint: Path) -> bool:
    try:
        values = read_list(checkpoint)
    except ValueError:
        return False
    return (checkpoint / TRAINER_STATE_NAME).is_file() if values is None else values["files"] is not None


def _empty(checkpoint: Path) -> None:
    """Deletes the files of a checkpoint: first `trainer_state.json`, last the list, so that it never looks whole."""
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    for path in sorted(checkpoint.glob("*"), key=lambda path: path.name == LIST_NAME):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def saving(output_dir: str) -> Iterator[None]:
    """
    Wraps a save: a disk error is raised again with a message that says what is still intact and what to do.

    Raises:
        `OSError`: For an `OSError`, or the errors that `torch.save` and safetensors raise when a disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Only torch's file writer raises RuntimeErrors about the disk; others are about memory or a lost process.
        if isinstance(error, RuntimeError) and not any(
            word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream error")
        ):
            raise
        free = shutil.disk_usage(output_dir).free / 2**20
        raise OSError(
            f"A checkpoint could not be saved in {output_dir}, whose disk has {free:.0f} MiB free: {error}. "
            f"{_whole_ones(output_dir)} Free some space, or lower `save_total_limit`, and go on with "
            "`resume_from_checkpoint=True`, which skips the checkpoint that was cut short."
        ) from error


def load_model_weights(model: nn.Module, checkpoint: str) -> bool:
    """
    Puts every weight of `checkpoint` into `model`.

    Args:
        model (`nn.Module`): The live model, unwrapped.
        checkpoint (`str`): A folder that `save_pretrained` wrote.

    Returns:
        `bool`: `False` if the model is not a Transformers model, or the weights are an adapter's; `Trainer` should then
        load them.

    Raises:
        `ValueError`: If the checkpoint is damaged, has no `config.json`, lacks a weight of the model, or holds it in
            another shape.
    """
    folder = Path(checkpoint)
    if not isinstance(model, PreTrainedModel):
        return False
    if not (folder / CONFIG_NAME).is_file():
        if (folder / ADAPTER_CONFIG_NAME).is_file():
            return False
        raise ValueError(
            f"The checkpoint {checkpoint} has no {CONFIG_NAME}, so nothing says what its weights belong to. {REMEDY}"
        )
    try:
        loaded, info = type(model).from_pretrained(
            checkpoint,
            config=model.config,
            dtype=model.dtype,
            ignore_mismatched_sizes=True,  # so that they are listed; they are refused below
            output_loading_info=True,
        )
    except Exception as error:  # whatever a cut or missing file raises, the reader needs to know which checkpoint
        raise ValueError(f"The weights in {checkpoint} cannot be read: {error}. {REMEDY}") from error
    missing = sorted(info["missing_keys"])
    mismatched = sorted(map(str, info["mismatched_keys"]))
    if missing or mismatched:
        raise ValueError(
            f"The checkpoint {checkpoint} does not fit {type(model).__name__}: it lacks {missing or 'nothing'} and "
            f"has other shapes for {mismatched or 'nothing'}. Resume with the model it was saved from."
        )
    model.load_state_dict(loaded.state_dict())
    return True


def report_lost_loss(loss: float, step: int, args: TrainingArguments, scaler: torch.amp.GradScaler | None) -> None:
    """
    Reports a loss that is not finite, between the backward pass and the optimizer step, so that weights and checkpoints
    stay intact. The gradient scaler of fp16 skips such steps itself, so a warning is enough there.

    Raises:
        `FloatingPointError`: If there is no scaler.
    """
    if scaler is not None:
        logger.warning(f"The loss of step {step} is {loss}; the gradient scaler of fp16 leaves the step out.")
        return
    raise FloatingPointError(
        f"The loss of step {step} is {loss}. The weights are still those before the step, and no checkpoint holds "
        f"others. Check the images and labels of the batch, lower `learning_rate` ({args.learning_rate:g}) or "
        f"`noise_weight` ({args.noise_weight:g}), or raise the precision; then go on from the last checkpoint with "
        "`resume_from_checkpoint=True`."
    )


def check_writable(directory: str) -> None:
    """
    Makes sure that results can be saved, before there are any.

    Raises:
        `OSError`: If the folder cannot be made or written.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(
            f"The output folder {directory!r} cannot be written: {error}. Free some space or give another `output_dir`."
        ) from error
