"""`Trainer` whose pushes hold the model card and whatever stands beside the weights, and survive what the Hub does."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from .publishing import Publisher


class PublishingTrainer(Trainer):
    """
    [`~transformers.Trainer`] with other pushes, under all hub strategies.

    What is published is a list ([`publishable_files`]), not a folder: never `training_args.bin`, which is a pickle and
    holds the token. Intermediate pushes are of the checkpoint, with the card as it is by then, and in one commit. A push
    that fails is logged with the command that repeats it.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        self.push_in_progress = None
        with self._publisher(token=token, private=private).survive():
            # Transformers 5.17 takes no `private` here, and `hub_private_repo` says it there.
            super().init_hf_repo(token, **({} if private is None else {"private": private}))

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
        self.accelerator.wait_for_everyone()  # each process has written its part of the checkpoint
        strategy, pending = self.args.hub_strategy, self.push_in_progress
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
