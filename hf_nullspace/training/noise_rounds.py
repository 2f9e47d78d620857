"""Synthesises the noise of each round: draws training images, searches noise on some and certifies it on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer
from transformers.utils import logging

from ..models.frozen import frozen
from ..models.injection import NoiseInjector
from ..noise.nullspace_noise import NullspaceNoise
from ..noise.synthesis import synthesize_noise
from ..utils.phases import announce
from ..utils.random import keyed_generator, preserved_random_state
from ..utils.wording import worded
from .arguments import in_arguments
from .augmented_images import without_augmentation
from .images import StreamReader, check_labels, draw_images, is_stream
from .noise_ascent import MULTIPLES, LossUnderNoise, losses_of_ascents, matching_ascent
from .noise_schedule import check_same_on_all_processes


logger = logging.get_logger(__name__)

# Training images on which the ascent of a round is measured.
ASCENT_IMAGES = 32
# Share of the rise along its own gradient below which the clean gradient is no fair replacement.
FAIR_RISE = 0.5


class NoiseRounds(Trainer):
    """Synthesises each round's noise on the current weights, from training images drawn for that round."""

    injector: NoiseInjector
    known_noise: NullspaceNoise | None = None  # of every round, instead of one that is searched for
    _noise_stream: StreamReader | None

    def _refresh_noise(self, model: nn.Module) -> None:
        """Synthesises this round's noise on the current weights and trains on it from now on."""
        step = self.state.global_step
        round_index = self.noise_schedule.round_of(step)
        noise = self._search_noise(model, round_index) if self.known_noise is None else self.known_noise
        check_same_on_all_processes(noise, self.accelerator)
        self.noise_schedule.update(noise, step, **self._facts_of_round())
        if self.args.noise_ascent and self.args.noise_ascent_gradient == "clean" and self.noise_schedule.is_in_use:
            self._measure_ascent(model)
        self.card_extras.pop("evaluation_certificate", None)  # that of an earlier noise
        self.log(self.noise_schedule.logs())

    def _search_noise(self, model: nn.Module, round_index: int) -> NullspaceNoise:
        """Searches for the noise of a round, and says so."""
        config = self.args.nullspace_config()
        announce(
            f"Round {round_index} at step {self.state.global_step}: synthesising noise on {config.num_images} images, "
            f"measuring it on {config.wanted_certificate_images(self._largest_error)} more ..."
        )
        # Not compiled, even under `torch_compile`: compiling its passes takes longer than it saves in a run's rounds
        # (`examples/benchmark.py --torch_compile` times both).
        with preserved_random_state(), worded(in_arguments):
            return self._make_noise(self.accelerator.unwrap_model(model, keep_torch_compile=False), round_index)

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

    def _measure_ascent(self, model: nn.Module) -> None:
        """Measures how far the draws of this round are to move along the gradient of the clean images."""
        round_index = self.noise_schedule.noise.round_index
        deviations = self.args.noise_ascent
        noise = self.noise_schedule.noise_on(self.args.device)
        generator = keyed_generator("ascent", self.args.seed, round_index, device=self.args.device)
        total = torch.zeros(2 + len(MULTIPLES), dtype=torch.float64)
        with preserved_random_state(), frozen(self.accelerator.unwrap_model(model, keep_torch_compile=False)):
            for batch in self._batches_for_ascent(round_index):
                count = len(batch["pixel_values"])
                num_items = self._get_num_items_in_batch([batch], self.args.device)
                loss_of = self._loss_under_noise(model, batch, num_items)
                draws = noise.draw(count, generator)
                total += count * losses_of_ascents(loss_of, noise, draws, deviations, self._scale_of_loss).cpu()
        ascent, rise = broadcast_object_list(list(matching_ascent(total.tolist(), deviations)))
        self.noise_schedule.history[-1].update(ascent=ascent, ascent_rise=rise)
        if rise < FAIR_RISE:
            logger.warning_once(
                f"Along the gradient of the clean images the noise of each image becomes {rise:.0%} as hard as along its "
                'own. `noise_ascent_gradient="noisy"` moves it along its own, for a further pass forward and back.'
            )

    def _batches_for_ascent(self, round_index: int) -> Iterator[dict[str, Any]]:
        """Training batches of this round's images, `ASCENT_IMAGES` in all, the same on every process."""
        _, collator = self._noise_source()
        images = self._noise_images(round_index, ASCENT_IMAGES)
        for batch in DataLoader(images, batch_size=self._train_batch_size, collate_fn=collator):
            yield self._prepare_inputs(batch)

    def _loss_under_noise(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> LossUnderNoise:
        """The training loss of some images under noise, on the unwrapped model: no process waits for another."""
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)

        def loss_of(noise: torch.Tensor | None) -> torch.Tensor:
            with self.injector.inject(noise), self.accelerator.autocast(), self.compute_loss_context_manager():
                return self.compute_loss(unwrapped, copy(inputs), num_items_in_batch=num_items_in_batch)

        return loss_of

    @property
    def _scale_of_loss(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What a loss is scaled by before the pass back, in fp16."""
        return None if self.accelerator.scaler is None else self.accelerator.scaler.scale

    def _facts_of_round(self) -> dict[str, Any]:
        """What the history says of a round beside its certificate. Trainers of control noise override this."""
        return {}

    def _noise_dataloader(self, round_index: int) -> DataLoader:
        """Global batches of training images, the same on every process."""
        images = self._noise_images(round_index, self._num_noise_images())
        _, collator = self._noise_source()

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
        dataset, _ = self._noise_source()
        if is_stream(dataset):
            if self._noise_stream is None or self._noise_stream.dataset is not dataset:
                self._noise_stream = StreamReader(dataset)
            return self._noise_stream.read(round_index * self._num_noise_images(), num_images)
        return draw_images(dataset, num_images, self.args.seed, round_index)

    def _noise_source(self) -> tuple[Any, Callable[[list], dict[str, Any]]]:
        """What a round's images come from, without augmentation, and what makes batches of them."""
        return self._as_trained_on(without_augmentation(self.train_dataset), "noise synthesis")

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
