"""`Trainer` whose pushes include the model card, noise and reports, and survive errors of the Hub."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, is_offline_mode
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..hub.publishing import CARD_NAME, Publisher
from ..hub.training_facts import FIGURES
from ..noise.nullspace_noise import NOISE_CONFIG_NAME, NOISE_TENSOR_NAME
from ..robustness.report import EXAMPLES_NAME, MARKDOWN_NAME, OUTCOMES_NAME, PAGE_NAME, REPORT_NAME
from ..utils.hub_upload import answered


logger = logging.get_logger(__name__)

# Placeholder for an unknown license. Without one `Trainer` would ask the Hub for it, without a timeout.
UNKNOWN_LICENSE = "unknown"
# Files that a run publishes beside its weights. They are stale when a new run starts in the same folder.
RESULTS = (
    *(NOISE_TENSOR_NAME, NOISE_CONFIG_NAME, REPORT_NAME, MARKDOWN_NAME, PAGE_NAME, OUTCOMES_NAME, EXAMPLES_NAME),
    *FIGURES,
)


class PublishingTrainer(Trainer):
    """
    [`~transformers.Trainer`] with other pushes to the Hub, under all hub strategies.

    Pushes contain a list of files ([`publishable_files`]) and not the whole folder. `training_args.bin`, a pickle that
    holds the token, is never among them. An intermediate push is one commit with the checkpoint and the current card. A
    failed push is logged with the command that repeats it, and one that the Hub does not answer ends within seconds. A
    new training deletes the noise, reports and figures of an earlier one in its folder, with a warning, so that card and
    manifest describe one run.
    """

    _base_license: tuple[str, str] | None = None  # of which base model, and what it is

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial=None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if not resume_from_checkpoint and self.is_world_process_zero():
            stale = [path for name in RESULTS if (path := Path(self.args.output_dir, name)).is_file()]
            if stale:
                names = ", ".join(path.name for path in stale)
                logger.warning(f"Deleting the results of an earlier training in {self.args.output_dir!r}: {names}.")
            for path in stale:
                path.unlink()
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        *args,
        **kwargs,
    ) -> None:
        if not self.is_world_process_zero():
            return
        license = license or self._license_of(finetuned_from)
        super().create_model_card(language, license, tags, model_name, finetuned_from, *args, **kwargs)
        if license == UNKNOWN_LICENSE:
            card = ModelCard.load(Path(self.args.output_dir, CARD_NAME))
            card.data.license = None
            card.save(Path(self.args.output_dir, CARD_NAME))

    def _license_of(self, finetuned_from: str | None) -> str | None:
        """The license of the base model, as `Trainer` looks it up, but only once and with a timeout."""
        base = finetuned_from or getattr(self.model.config, "_name_or_path", "")
        if not base or os.path.isdir(base) or is_offline_mode():
            return None  # nothing is looked up
        if self._base_license is None or self._base_license[0] != base:
            try:
                tags = answered(HfApi(token=self.args.hub_token).model_info, base).tags or []
            except Exception as error:  # as for a push: whatever the Hub does, the card is written
                logger.warning(f"The license of {base!r} is not in the card: {type(error).__name__}: {error}")
                tags = []
            licenses = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
            self._base_license = base, (licenses or [UNKNOWN_LICENSE])[-1]
        return self._base_license[1]

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        self.push_in_progress = None
        publisher = self._publisher(token, private)
        if self.is_world_process_zero():
            with publisher.survive():
                self.hub_model_id = publisher.open()

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        publisher = self._publisher(token, private, revision)
        return (publisher.publish if blocking else publisher.publish_in_background)(commit_message)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """
        Pushes the publishable files of a checkpoint, with the current card.

        Goes when `Trainer` pushes a list of files instead of a folder, without `training_args.bin`.
        """
        self.accelerator.wait_for_everyone()  # each process has written its part of the checkpoint
        strategy = self.args.hub_strategy
        pending = self.push_in_progress
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if pending is not None and not pending.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch)}"
        folders = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }
        publisher = self._publisher()
        with publisher.survive():
            self.create_model_card()
            job = publisher.publish_checkpoint_in_background(
                checkpoint_folder, f"Training in progress, {progress}", folders.get(strategy)
            )
            self.push_in_progress = PushInProgress([*(pending.jobs if pending is not None else []), job])

    def _publisher(
        self, token: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> Publisher:
        args = self.args
        return Publisher(
            folder=args.output_dir,
            repo_id=self.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name,
            private=args.hub_private_repo if private is None else private,
            token=args.hub_token if token is None else token,
            revision=args.hub_revision if revision is None else revision,
        )
