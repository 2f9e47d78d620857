"""Synthesises the noise of each round: draws training images, searches noise on some and certifies it on others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from ..noise.nullspace_noise import NullspaceNoise
from ..noise.synthesis import synthesize_noise
from ..utils.phases import announce
from ..utils.random import preserved_random_state
from ..utils.wording import worded
from .arguments import in_arguments
from .augmented_images import without_augmentation
from .images import StreamReader, check_labels, draw_images, is_stream
from .noise_schedule import check_same_on_all_processes


class NoiseRounds(Trainer):
    """Synthesises each round's noise on the current weights, from training images drawn for that round."""

    _noise_stream: StreamReader | None

    def _refresh_noise(self, model: nn.Module) -> None:
        """Synthesises this round's noise on the current weights and trains on it from now on."""
        step = self.state.global_step
        round_index = self.noise_schedule.round_of(step)
        config = self.args.nullspace_config()
        announce(
            f"Round {round_index} at step {step}: synthesising noise on {config.num_images} images, measuring it on "
            f"{config.wanted_certificate_images(self._largest_error)} more ..."
        )
        # Not compiled, even under `torch_compile`: compiling its passes takes longer than it saves in a run's rounds
        # (`examples/benchmark.py --torch_compile` times both).
        with preserved_random_state(), worded(in_arguments):
            noise = self._make_noise(self.accelerator.unwrap_model(model, keep_torch_compile=False), round_index)
        check_same_on_all_processes(noise, self.accelerator)
        self.noise_schedule.update(noise, step)
        self.card_extras.pop("evaluation_certificate", None)  # that of an earlier noise
        self.log(self.noise_schedule.logs())

    def _make_noise(self, model: nn.Module, round_index: int) -> NullspaceNoise:
        """The noise of a round. Trainers of control noise override this."""
        return synthesize_noise(
            model,
            self._noise_dataloader(round_index),
            self.args.nullspace_config(),
            accelerator=self.accelerator,
            round_index=round_index,
            patch_projection=self.args.patch_projection,
            disable_tqdm=self.args.disable_tqdm,
        )

    def _noise_dataloader(self, round_index: int) -> DataLoader:
        """Global batches of training images, the same on every process."""
        images = self._noise_images(round_index, self._num_noise_images())
        _, collator = self._as_trained_on(without_augmentation(self.train_dataset), "noise synthesis")

        def collate(examples: list) -> dict[str, Any]:
            batch = collator(examples)
            if self._needs_labels:
                check_labels(batch.get("labels"), self.model)
            return {**batch, "labels": self._labels_of(batch)}  # what the logits mean may depend on them

        return DataLoader(images, batch_size=self._noise_batch_size(), collate_fn=collate)

    def _num_noise_images(self) -> int:
        """Images that a round reads: those of the search and those of the certificate."""
        config = self.args.nullspace_config()
        return config.num_images + config.wanted_certificate_images(self._largest_error)

    def _noise_images(self, round_index: int, num_images: int) -> Subset | list:
        dataset, _ = self._as_trained_on(without_augmentation(self.train_dataset), "noise synthesis")
        if is_stream(dataset):
            if self._noise_stream is None or self._noise_stream.dataset is not dataset:
                self._noise_stream = StreamReader(dataset)
            return self._noise_stream.read(round_index * self._num_noise_images(), num_images)
        return draw_images(dataset, num_images, self.args.seed, round_index)

    def _as_trained_on(self, dataset, description: str) -> tuple[Any, Callable[[list], dict[str, Any]]]:
        """A dataset and its collator as `Trainer` uses them: without the columns that the model does not take."""
        if all(hasattr(dataset, name) for name in ("column_names", "remove_columns", "__len__")):
            return self._remove_unused_columns(dataset, description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description)

    def _noise_batch_size(self) -> int:
        processes = 1 if self.is_fsdp_enabled else self.accelerator.num_processes  # see `FrozenClassifier`
        if self.args.noise_batch_size is None:
            return self._train_batch_size * processes
        # Reduced by the same factor as `auto_find_batch_size` has reduced the training batch.
        return max(1, self.args.noise_batch_size * self._train_batch_size // self.args.train_batch_size)
