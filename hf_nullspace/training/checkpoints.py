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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, logging

from ..utils.checkpoint_files import LIST_NAME, read_list, what_differs, write_list
from .data_position import DataPosition, randomness_of
from .run_identity import Run, read_run, write_run


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


# Arguments that decide which images come in which step.
ORDER_ARGUMENTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "train_sampling_strategy",
    "seed",
    "data_seed",
)


class CheckpointingTrainer(Trainer):
    """
    [`~transformers.Trainer`] with reliable saving and loading; the docstring of this module says why it is needed.

    A checkpoint is whole once the list of its files is written, with their sizes and hashes. Only whole checkpoints are
    resumed from, with the same number of processes. Weights are loaded through the model's class, so that all of them
    are restored. Files that cannot be read raise an error that names the checkpoint and the remedy.
    `resume_from_checkpoint=True` and `save_total_limit` ignore checkpoints of other runs in the same folder. Resuming a
    finished run trains nothing.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_position = DataPosition()
        self.add_callback(self.data_position)

    _run = Run()
    _has_nothing_left = False
    _unfinished_checkpoint: Path | None = None
    _real_limit: int | None = None  # `save_total_limit` while `train` keeps it from the parent

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial=None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if resume_from_checkpoint:
            output_dir = self._get_output_dir(trial)
            wanted = resume_from_checkpoint
            found = self._on_first_process(lambda: _find(wanted, output_dir))
            self._on_every_process(lambda: check_processes(found, self.args.world_size, self.args.process_index))
            resume_from_checkpoint = found
        # Callbacks see the checkpoint only through the arguments.
        given = self.args.resume_from_checkpoint
        self.args.resume_from_checkpoint = resume_from_checkpoint or None
        try:
            with self._limited_to(None) as self._real_limit:
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.args.resume_from_checkpoint = given
            self._real_limit = None
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:  # the last is not needed
            rotate_checkpoints(self._get_output_dir(trial), self._run, 1, [best])
        if self._has_nothing_left:
            # No step was run, so there is no loss and no speed to report.
            return TrainOutput(output.global_step, float("nan"), {"total_flos": output.metrics["total_flos"]})
        return output

    # ---- Beginning and ending -----------------------------------------------------------------------------------

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        """
        Finds where a resumed run goes on, and whether anything is left of it.

        Goes when `Trainer` takes the place in the data that a resumed run goes on from.
        """
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        output_dir = self._get_output_dir(trial)
        self._has_nothing_left = False
        if resume_from_checkpoint is None:
            self._begin_run(Run.new(), output_dir)
            self.data_position.begin()
            return progress
        self._begin_run(resumed_run(resume_from_checkpoint, output_dir), output_dir)
        self._find_best_checkpoint(Path(resume_from_checkpoint).parent)
        is_in_order = self._warn_of_another_order(resume_from_checkpoint)
        stopped_early = self._restore_patience()
        if stopped_early or self.state.global_step >= max_steps:
            self._has_nothing_left = True
            reason = "stopped early" if stopped_early else f"was to end at step {max_steps}"
            logger.warning(
                f"The run of {resume_from_checkpoint} is finished: it {reason}, and that checkpoint is of step "
                f"{self.state.global_step}. Nothing is trained."
            )
            return num_train_epochs, 0
        saved = self._find_position(resume_from_checkpoint) if is_in_order else None
        if saved is not None:
            progress = saved["epoch"], saved["batches"]
        load = partial(self._load_rng_state, resume_from_checkpoint)
        self.data_position.begin(*progress, saved, load)
        return progress

    def _begin_run(self, run: Run, output_dir: str) -> None:
        self._run = run
        if not self.args.should_save:
            return
        others = checkpoints_of_other_runs(output_dir, run)
        if others and run != read_run(output_dir):
            logger.warning(
                f"{output_dir} has checkpoints of another run: {', '.join(folder.name for folder in others)}. They are "
                "neither resumed from nor deleted, but this run's take the place of those of the same step. Give each "
                "run an `output_dir` of its own to keep both."
            )
        write_run(output_dir, run)

    def _find_best_checkpoint(self, folder: Path) -> None:
        """Updates the path of the best checkpoint, since the run's folder may have been moved or copied."""
        if self.state.best_global_step:
            best = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
                if self.args.load_best_model_at_end:
                    self._on_first_process(lambda: check_model_files(best))

    def _order_facts(self) -> dict[str, Any]:
        facts = {name: getattr(self.args, name, None) for name in ORDER_ARGUMENTS}
        if self.args.auto_find_batch_size:  # restored by the parent
            del facts["per_device_train_batch_size"]
        facts = {name: value if value is None else str(value) for name, value in facts.items()}
        return {**facts, "images": str(len(self.train_dataset)) if has_length(self.train_dataset) else None}

    def _warn_of_another_order(self, checkpoint: str) -> bool:
        """Whether the run sees its images in the order of an uninterrupted run; warns if it does not."""
        then = (read_list(Path(checkpoint)) or {}).get("order")
        now = self._order_facts()
        changed = [name for name in now if then is not None and then.get(name) != now[name]]
        if changed:
            before, after = ({name: facts.get(name) for name in changed} for facts in (then, now))
            logger.warning(
                f"The checkpoint {checkpoint} was saved with {before}, but now it is {after}: the run goes on, but on "
                "other images than it would have without the interruption."
            )
        return not changed

    def _find_position(self, checkpoint: str) -> dict[str, Any] | None:
        """Where in its data the run goes on; `None` if that follows from its steps, or is not known."""
        positions = (read_list(Path(checkpoint)) or {}).get("positions")
        saved = positions[self.args.process_index] if positions else None
        is_stream = not has_length(self.train_dataset)
        if saved is None:
            if is_stream:
                logger.warning(
                    f"The checkpoint {checkpoint} does not say how often the stream was passed: if more than once, the "
                    "run goes on with other images."
                )
            return None
        if self.args.ignore_data_skip:
            if saved["batches"]:
                logger.warning(
                    "With `ignore_data_skip` the pass over the training set begins anew: the run goes on, but on other "
                    "images than it would have without the interruption."
                )
            return {**saved, "batches": 0} if is_stream else None
        if saved["has_leftover"]:
            logger.warning(
                f"{checkpoint} was saved between two passes with gradients of micro-batches that completed no step, which "
                "no checkpoint holds: the run goes on without them. Save by steps, or choose "
                "`gradient_accumulation_steps` such that a pass is a whole number of steps."
            )
        return saved

    # ---- Reading ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        self.data_position.watch(loader, self.args.process_index)
        if self.args.save_strategy != "no" and not isinstance(loader.dataset, IterableDataset):
            self._warn_of_lost_randomness(randomness_of(loader), loader.num_workers)
            if not self.args.accelerator_config.use_seedable_sampler and self.args.world_size > 1:
                logger.warning(
                    "Without `use_seedable_sampler` several processes order the images by a generator that no checkpoint "
                    "holds: a run that is resumed after its first pass goes on with other images."
                )
        return loader

    def _warn_of_lost_randomness(self, randomness: str | None, num_workers: int) -> None:
        if randomness == "own":
            logger.warning(
                "Reading a training image twice gives two images, though the global random generators are as before: its "
                "transforms draw from a generator of their own, which no checkpoint holds. A run that is resumed sees "
                "other augmentations than it would have without the interruption. Let them draw from `torch`'s, NumPy's "
                "or Python's global generator."
            )
        if randomness == "global" and num_workers:
            logger.warning(
                f"Training images are augmented at random in {num_workers} data loader workers, whose random states no "
                "checkpoint holds. A run that is resumed in the middle of a pass sees other augmentations than it would "
                "have without the interruption. `dataloader_num_workers=0` resumes exactly."
            )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches = self.data_position.taking(epoch_iterator, self.state.global_step)
        samples = super().get_batch_samples(batches, num_batches, device)
        self.data_position.batches_are_read()
        return samples

    def _restore_patience(self) -> bool:
        """Restores the counter of early stopping; returns whether it had stopped the run."""
        states = self.state.stateful_callbacks.get(EarlyStoppingCallback.__name__, [])
        callbacks = [
            callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)
        ]
        for callback, state in zip(callbacks, states if isinstance(states, list) else [states], strict=False):
            callback.early_stopping_patience_counter = state["attributes"]["early_stopping_patience_counter"]
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience for callback in callbacks
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not (self._has_nothing_left and "train_runtime" in logs):
            super().log(logs, start_time)

    # ---- Saving -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """
        Saves a checkpoint that is whole once the list of its files is written, and deletes the earliest of the run.

        Goes when `Trainer` marks a checkpoint as whole, and counts those of one run by their steps.
        """
        output_dir = self._get_output_dir(trial)
        folder = Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with saving(output_dir):
            if self.args.should_save:
                begin_checkpoint(folder, self._facts())
                if not self.args.save_only_model:
                    self.save_run_state(str(folder))
            self.accelerator.wait_for_everyone()  # no process writes before the folder is empty
            self._unfinished_checkpoint = folder
            try:
                super()._save_checkpoint(model, trial)
                self._finish_checkpoint()
            finally:
                self._unfinished_checkpoint = None
            if self.args.should_save:
                keep = [folder, self.state.best_model_checkpoint]
                rotate_checkpoints(output_dir, self._run, self._real_limit, keep)

    def _facts(self) -> dict[str, Any]:
        return {
            "run": self._run.to_dict(),
            "num_processes": self.args.world_size,
            "save_only_model": self.args.save_only_model,
            "order": self._order_facts(),
        }

    def _finish_checkpoint(self) -> None:
        """Lists the files of the checkpoint, when every process has written its own."""
        folder = self._unfinished_checkpoint
        self._unfinished_checkpoint = None
        if folder is not None:
            positions = [self.data_position.to_dict(self.state.global_step)]
            if self.args.world_size > 1:
                positions = gather_object(positions)
            if self.args.should_save:
                write_list(folder, {**self._facts(), "positions": positions}, is_complete=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """
        Pushes a checkpoint that is whole.

        Goes when [`PublishingTrainer`]'s does, or `Trainer` pushes after `on_save`.
        """
        self._finish_checkpoint()
        super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _limited_to(self, limit: int | None) -> Iterator[int | None]:
        """Sets `save_total_limit` inside the block: the parent's rotation goes by file times and ignores runs."""
        before = self.args.save_total_limit
        self.args.save_total_limit = limit
        try:
            yield before
        finally:
            self.args.save_total_limit = before

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # The arguments are saved too, so they must hold the limit that was asked for.
        with self._limited_to(self._real_limit or self.args.save_total_limit):
            super().save_model(output_dir, _internal_call)

    def save_run_state(self, checkpoint: str) -> None:
        """Writes further state that a resumed run reads; subclasses override this to add their own."""

    # ---- Loading ------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """
        Loads every weight through the model's class.

        Goes when `Trainer` converts the names of weights as `from_pretrained` does.
        """
        if not self._load_weights(self.model if model is None else model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """
        Loads every weight of the best checkpoint through the model's class.

        Goes when `Trainer` converts the names of weights as `from_pretrained` does.
        """
        self._on_first_process(lambda: check_model_files(self.state.best_model_checkpoint))
        if not self._load_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_weights(self, model: nn.Module, checkpoint: str) -> bool:
        """Whether the weights were restored here; sharded weights are left to the parent."""
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not is_sharded and load_model_weights(model, checkpoint)

    # ---- Several processes --------------------------------------------------------------------------------------

    def _on_first_process(self, read: Callable[[], Any]) -> Any:
        """Runs `read` on the first process; all processes return its result or raise its error."""
        outcome = [None, None]
        if self.args.process_index == 0:
            outcome = _outcome(read)
        if self.args.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _on_every_process(self, check: Callable[[], None]) -> None:
        """Raises on all processes what `check` raises on any."""
        errors = [_outcome(check)[1]]
        if self.args.world_size > 1:
            errors = gather_object(errors)
        for error in errors:
            if error is not None:
                raise error


def _find(resume_from_checkpoint: str | bool, output_dir: str) -> str:
    if isinstance(resume_from_checkpoint, str):
        check_whole(resume_from_checkpoint)
        return resume_from_checkpoint
    found = last_whole_checkpoint(output_dir)
    if found is None:
        raise ValueError(f"No valid checkpoint found in output directory ({output_dir}).")
    return found


def _outcome(call: Callable[[], Any]) -> list[Any]:
    try:
        return [call(), None]
    except (OSError, ValueError) as error:
        return [None, error]
