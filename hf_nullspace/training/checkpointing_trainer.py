"""A `Trainer` that saves checkpoints whole, resumes from whole ones only, and goes on exactly where they were written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length
from transformers.utils import logging

from ..utils.checkpoint_files import read_list, write_list
from .augmented_images import augmentation_in_words
from .checkpoints import (
    begin_checkpoint,
    check_model_files,
    check_processes,
    check_whole,
    checkpoints_of_other_runs,
    last_whole_checkpoint,
    load_model_weights,
    resumed_run,
    rotate_checkpoints,
    saving,
)
from .data_position import DataPosition, randomness_of
from .run_identity import Run, read_run, write_run


logger = logging.get_logger(__name__)

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
    [`~transformers.Trainer`] with reliable saving and loading; [`~training.checkpoints`] says why it is needed.

    A checkpoint is whole once the list of its files is written, with their sizes and hashes. Only whole checkpoints are
    resumed from, with the same number of processes. Weights are loaded through the model's class, so that all of them
    are restored. Files that cannot be read raise an error that names the checkpoint and the remedy.
    `resume_from_checkpoint=True` and `save_total_limit` ignore checkpoints of other runs in the same folder. Resuming a
    finished run trains nothing.
    """

    _run = Run()
    _has_nothing_left = False
    _unfinished_checkpoint: Path | None = None
    _real_limit: int | None = None  # `save_total_limit` while `train` keeps it from the parent

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_position = DataPosition()
        self.add_callback(self.data_position)

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
        facts["augmentation"] = augmentation_in_words(self.train_dataset)
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
