"""
Checkpoints that can be relied on: which of them are whole, what is wrong with the others, and every weight restored.

`Trainer` reads the weight file as it lies and loads it non-strictly. `save_pretrained` writes a ViT's encoder under
older names than the live model uses, so that would restore the head and leave the encoder as it was, in silence. Delete
`load_model_weights` when `Trainer._load_from_checkpoint` and `_load_best_model` convert names as `from_pretrained` does.

`Trainer` also resumes from the last folder whatever is in it: without `optimizer.pt` or the random states it goes on in
silence with a new optimizer and other random numbers. Its own last act in a save is to write `trainer_state.json`, so
that file tells a whole checkpoint from one whose writer died.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, logging


logger = logging.get_logger(__name__)

REMEDY = (
    "Delete that checkpoint and resume from an earlier one; `resume_from_checkpoint=True` takes the last whole one."
)


def what_is_missing(checkpoint: str | Path) -> str | None:
    """
    What keeps a checkpoint from being whole; `None` if nothing does.

    Only the files that every checkpoint of `Trainer` has are looked for; a sharded optimizer has files of its own.
    """
    folder = Path(checkpoint)
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {TRAINER_STATE_NAME}, which is written last, so its save was cut short"
    except (OSError, ValueError) as error:
        return f"its {TRAINER_STATE_NAME} cannot be read ({error})"
    names = {path.name for path in folder.iterdir()}
    if not any(name.startswith("rng_state") for name in names):
        return "it has no random states (rng_state.pth)"
    if SCHEDULER_NAME in names and not any(name.startswith("optimizer") for name in names):
        return f"it has no {OPTIMIZER_NAME}"
    if OPTIMIZER_NAME in names and SCHEDULER_NAME not in names:
        return f"it has no {SCHEDULER_NAME}"
    return None


def check_whole(checkpoint: str | Path) -> None:
    """
    Refuses to resume from what would not continue the run exactly.

    Raises:
        `FileNotFoundError`: If there is no such folder.
        `ValueError`: If its save was cut short, or files are gone since; the message names the last whole checkpoint.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}. {_whole_ones(folder.parent)}")
    missing = what_is_missing(folder)
    if missing is not None:
        raise ValueError(
            f"The checkpoint {checkpoint} is not whole: {missing}. Delete it. {_whole_ones(folder.parent)}"
        )


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """
    The last checkpoint of a run that is whole; `None` if the run has no checkpoints. Later ones are named in a warning.

    Raises:
        `ValueError`: If there are checkpoints, and none is whole.
    """
    skipped = {}
    for checkpoint in _checkpoints(output_dir):
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
    """The checkpoint folders of a run, the last one first."""
    steps = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.rpartition("-")[2]
        if folder.is_dir() and step.isdigit():
            steps[folder] = int(step)
    return sorted(steps, key=steps.get, reverse=True)


def _whole_ones(output_dir: str | Path) -> str:
    last = next((folder for folder in _checkpoints(output_dir) if what_is_missing(folder) is None), None)
    if last is None:
        return f"No checkpoint in {output_dir} is whole: train without `resume_from_checkpoint`."
    return f"The last whole checkpoint is {last}."


def begin_checkpoint(directory: str | Path) -> None:
    """Takes away the mark of a whole checkpoint from a folder that is about to be written again."""
    if Path(directory).name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        Path(directory, TRAINER_STATE_NAME).unlink(missing_ok=True)


@contextmanager
def saving(output_dir: str) -> Iterator[None]:
    """
    Around a save: an error of the disk comes out as one that says what is still intact, and what to do.

    Raises:
        `OSError`: For an `OSError`, or whatever `torch.save` and safetensors raise where a disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Of RuntimeErrors only those of torch's file writer: others (memory, a lost process) are no matter of the disk.
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


@contextmanager
def restoring(what: str, checkpoint: str | None) -> Iterator[None]:
    """
    Around a load: names the checkpoint, and the remedy, whatever a damaged file raises.

    Raises:
        `ValueError`: For any error.
    """
    try:
        yield
    except Exception as error:  # zip files, pickles and state dicts fail in ways of their own
        raise ValueError(f"The {what} in {checkpoint} cannot be restored: {error}. {REMEDY}") from error


def load_model_weights(model: nn.Module, checkpoint: str) -> bool:
    """
    Puts every weight of `checkpoint` into `model`.

    Args:
        model (`nn.Module`): The live model, unwrapped.
        checkpoint (`str`): A folder that `save_pretrained` wrote.

    Returns:
        `bool`: `False` if this is not a plain Transformers checkpoint (an adapter, say) and `Trainer` should load it.

    Raises:
        `ValueError`: If the checkpoint is damaged, lacks a weight of the model, or holds it in another shape.
    """
    if not isinstance(model, PreTrainedModel) or not Path(checkpoint, CONFIG_NAME).is_file():
        return False
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
    missing, mismatched = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    if missing or mismatched:
        raise ValueError(
            f"The checkpoint {checkpoint} does not fit {type(model).__name__}: it lacks {missing or 'nothing'} and "
            f"has other shapes for {mismatched or 'nothing'}. Resume with the model it was saved from."
        )
    model.load_state_dict(loaded.state_dict())
    return True


def report_lost_loss(loss: float, step: int, args: TrainingArguments, scaler: torch.amp.GradScaler | None) -> None:
    """
    Called between the backward pass and the optimizer step with a loss that is not finite, so that no weight and no
    checkpoint is lost to it. The gradient scaler of fp16 leaves such steps out by itself; then a warning will do.

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
