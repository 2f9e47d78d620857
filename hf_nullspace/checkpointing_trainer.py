"""`Trainer` that resumes exactly or not at all, and says what is left when a save fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length
from transformers.utils import logging

from .checkpoint_files import read_list, write_list
from .checkpointing import (
    begin_checkpoint,
    check_model_files,
    check_processes,
    check_whole,
    checkpoints_of_other_runs,
    last_whole_checkpoint,
    load_model_weights,
    restoring,
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
    [`~transformers.Trainer`] with other saving and loading; [`checkpointing`] says what its own lack.

    A checkpoint is whole once the list of its files is written, with their sizes and hashes. Only whole ones are resumed
    from, by the same number of processes and through the model's class, so that every weight comes back; whatever cannot
    be read is an error that names the checkpoint and the remedy. `resume_from_checkpoint=True` takes none of another run
    that was trained in the same folder, and `save_total_limit` counts and deletes none of it. A run that is finished is
    finished: resuming it trains nothing.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_position = DataPosition()
        self.add_callback(self.data_position)

    _run = Run()
    _saved_position: dict[str, Any] | None = None
    _has_nothing_left = False
    _unfinished_checkpoint: Path | None = None
    _real_save_total_limit: int | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial=None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if resume_from_checkpoint:
            output_dir = self._get_output_dir(trial)
            resume_from_checkpoint = self._on_first_process(lambda: _find(resume_from_checkpoint, output_dir))
            self._on_every_process(
                lambda: check_processes(resume_from_checkpoint, self.args.world_size, self.args.process_index)
            )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    # ---- Beginning and ending -----------------------------------------------------------------------------------

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        output_dir = self._get_output_dir(trial)
        self._has_nothing_left, self._saved_position = False, None
        if resume_from_checkpoint is None:
            self._begin_run(Run.new(), output_dir)
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
        return self._find_position(resume_from_checkpoint, progress) if is_in_order else progress

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
        """The state names the best checkpoint by a path, and the run's folder may have been moved or copied."""
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
        """Whether the run sees its images in the order that it would have had."""
        then, now = (read_list(Path(checkpoint)) or {}).get("order"), self._order_facts()
        changed = [name for name in now if then is not None and then.get(name) != now[name]]
        if changed:
            before, after = ({name: facts.get(name) for name in changed} for facts in (then, now))
            logger.warning(
                f"The checkpoint {checkpoint} was saved with {before}, but now it is {after}: the run goes on, but on "
                "other images than it would have without the interruption."
            )
        return not changed

    def _find_position(self, checkpoint: str, progress: tuple[int, int]) -> tuple[int, int]:
        """The pass over the data and the batches of it that were taken; `progress` where that is not known."""
        positions = (read_list(Path(checkpoint)) or {}).get("positions")
        saved = positions[self.args.process_index] if positions else None
        is_stream = not has_length(self.train_dataset)
        if saved is None:
            if is_stream:
                logger.warning(
                    f"The checkpoint {checkpoint} does not say how often the stream was passed: if more than once, the "
                    "run goes on with other images."
                )
            return progress
        if self.args.ignore_data_skip:
            if saved["batches"]:
                logger.warning(
                    "With `ignore_data_skip` the pass over the training set begins anew: the run goes on, but on other "
                    "images than it would have without the interruption."
                )
            return (saved["epoch"], 0) if is_stream else progress
        if saved["has_leftover"]:
            logger.warning(
                f"{checkpoint} was saved between two passes with gradients of micro-batches that completed no step, which "
                "no checkpoint holds: the run goes on without them. Save by steps, or choose "
                "`gradient_accumulation_steps` such that a pass is a whole number of steps."
            )
        self._saved_position = saved
        return saved["epoch"], saved["batches"]

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

    def _run_epoch(
        self,
        model,
        epoch,
        train_dataloader,
        steps_in_epoch,
        num_update_steps_per_epoch,
        trial,
        ignore_keys_for_eval,
        start_time,
        resume_from_checkpoint,
        epochs_trained,
        steps_trained_in_current_epoch,
    ) -> None:
        self.data_position.begin_pass(epoch, steps_in_epoch)
        saved, self._saved_position = self._saved_position, None
        if saved is not None and saved["batches"]:
            self.data_position.replay(saved, train_dataloader, lambda: self._load_rng_state(resume_from_checkpoint))
        super()._run_epoch(
            model=model,
            epoch=epoch,
            train_dataloader=train_dataloader,
            steps_in_epoch=steps_in_epoch,
            num_update_steps_per_epoch=num_update_steps_per_epoch,
            trial=trial,
            ignore_keys_for_eval=ignore_keys_for_eval,
            start_time=start_time,
            resume_from_checkpoint=resume_from_checkpoint,
            epochs_trained=epochs_trained,
            steps_trained_in_current_epoch=steps_trained_in_current_epoch,
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches = self.data_position.taking(epoch_iterator, self.state.global_step)
        return super().get_batch_samples(batches, num_batches, device)

    def _restore_patience(self) -> bool:
        """Lets early stopping count on from where it was; whether it had stopped the run."""
        states = self.state.stateful_callbacks.get(EarlyStoppingCallback.__name__, [])
        callbacks = [
            callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)
        ]
        for callback, state in zip(callbacks, states if isinstance(states, list) else [states], strict=False):
            callback.early_stopping_patience_counter = state["attributes"]["early_stopping_patience_counter"]
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience for callback in callbacks
        )

    def _finalize_training(self, trial, num_train_samples, start_time) -> TrainOutput:
        with self._limited_to(None) as limit:
            output = super()._finalize_training(trial, num_train_samples, start_time)
        best = self.state.best_model_checkpoint
        if self.args.should_save and limit == 1 and best is not None:  # the last one is not needed any more
            rotate_checkpoints(self._get_output_dir(trial), self._run, 1, [best])
        if self._has_nothing_left:
            # Its loss and its speed are those of no step.
            return TrainOutput(output.global_step, float("nan"), {"total_flos": output.metrics["total_flos"]})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not (self._has_nothing_left and "train_runtime" in logs):
            super().log(logs, start_time)

    # ---- Saving -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        output_dir = self._get_output_dir(trial)
        folder = Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with saving(output_dir), self._limited_to(None) as limit:
            if self.args.should_save:
                begin_checkpoint(folder, self._facts())
            self.accelerator.wait_for_everyone()  # nobody writes before it is empty
            self._unfinished_checkpoint, self._real_save_total_limit = folder, limit
            try:
                super()._save_checkpoint(model, trial)
                self._finish_checkpoint()
            finally:
                self._unfinished_checkpoint = self._real_save_total_limit = None
            if self.args.should_save:
                rotate_checkpoints(output_dir, self._run, limit, [folder, self.state.best_model_checkpoint])

    def _facts(self) -> dict[str, Any]:
        return {
            "run": self._run.to_dict(),
            "num_processes": self.args.world_size,
            "save_only_model": self.args.save_only_model,
            "order": self._order_facts(),
        }

    def _finish_checkpoint(self) -> None:
        """Lists the files of the checkpoint, when every process has written its own."""
        folder, self._unfinished_checkpoint = self._unfinished_checkpoint, None
        if folder is not None:
            positions = [self.data_position.to_dict(self.state.global_step)]
            if self.args.world_size > 1:
                positions = gather_object(positions)
            if self.args.should_save:
                write_list(folder, {**self._facts(), "positions": positions}, is_complete=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._finish_checkpoint()
        super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _limited_to(self, limit: int | None) -> Iterator[int | None]:
        """Another `save_total_limit` meanwhile: the parent's rotation goes by the clock, and by no run."""
        before, self.args.save_total_limit = self.args.save_total_limit, limit
        try:
            yield before
        finally:
            self.args.save_total_limit = before

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self._limited_to(
            self._real_save_total_limit or self.args.save_total_limit
        ):  # the arguments are saved too
            super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # `trainer_state.json` comes next, which bare `Trainer`s take for the end: not before every process has written.
        self.accelerator.wait_for_everyone()

    # ---- Loading ------------------------------------------------------------------------------------------------

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.data_position.is_restored:
            return  # between two batches that were read, where they belong; this comes after both
        with restoring("random state", checkpoint):
            super()._load_rng_state(checkpoint)
        self.data_position.states_are_loaded()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring("state of the optimizer and the schedule", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_weights(self.model if model is None else model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._on_first_process(lambda: check_model_files(self.state.best_model_checkpoint))
        if not self._load_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_weights(self, model: nn.Module, checkpoint: str) -> bool:
        """Whether the weights are restored; those that are spread over processes are left to the parent."""
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not is_sharded and load_model_weights(model, checkpoint)

    # ---- Several processes --------------------------------------------------------------------------------------

    def _on_first_process(self, read: Callable[[], Any]) -> Any:
        """What the first process reads, or raises, on all of them: a folder is hashed once, and nobody disagrees."""
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
    if resume_from_checkpoint is not True:
        check_whole(resume_from_checkpoint)
        return str(resume_from_checkpoint)
    found = last_whole_checkpoint(output_dir)
    if found is None:
        raise ValueError(f"No valid checkpoint found in output directory ({output_dir}).")
    return found


def _outcome(call: Callable[[], Any]) -> list[Any]:
    try:
        return [call(), None]
    except (OSError, ValueError) as error:
        return [None, error]
