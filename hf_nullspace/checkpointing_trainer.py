"""`Trainer` that resumes exactly or not at all, and says what is left when a save fails."""

from __future__ import annotations

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from .checkpointing import (
    begin_checkpoint,
    check_whole,
    last_whole_checkpoint,
    load_model_weights,
    restoring,
    saving,
)


class CheckpointingTrainer(Trainer):
    """
    [`~transformers.Trainer`] with other saving and loading; [`checkpointing`] says what its own lack.

    A checkpoint is whole once its last file is written. Only whole ones are resumed from, through the model's class, so
    that every weight comes back; whatever cannot be read is an error that names the checkpoint and the remedy.
    """

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial=None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if resume_from_checkpoint is True:
            # `None` is left to the parent, which says that there is no checkpoint.
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir) or True
        elif resume_from_checkpoint:
            check_whole(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    # ---- Saving -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        with saving(self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save and output_dir is not None:
            begin_checkpoint(output_dir)
        super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # `trainer_state.json` comes next and says that the checkpoint is whole: not before every process has written.
        self.accelerator.wait_for_everyone()

    # ---- Loading ------------------------------------------------------------------------------------------------

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring("random state", checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring("state of the optimizer and the schedule", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_weights(self.model if model is None else model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_weights(self, model: nn.Module, checkpoint: str) -> bool:
        """Whether the weights are restored; those that are spread over processes are left to the parent."""
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not is_sharded and load_model_weights(model, checkpoint)
