"""
The position of training in its data, with the random states that an exact resume has to restore.

`Trainer` counts optimizer steps, which do not determine the position in a stream. Its data loader also reads one batch
ahead. A resumed run therefore reads a batch before the random states of the checkpoint are restored, and random
transforms would draw other numbers for it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard, SeedableRandomSampler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, SequentialSampler
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..utils.random import preserved_random_state


logger = logging.get_logger(__name__)


class RandomState:
    """The states of the global generators of Python, NumPy and torch on the CPU, which transforms draw from."""

    def __init__(self, values: dict[str, Any] | None = None):
        self.values = values or {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
        }

    def restore(self) -> None:
        random.setstate(self.values["python"])
        np.random.set_state(self.values["numpy"])
        torch.set_rng_state(self.values["torch"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        version, words, gauss = self.values["python"]
        name, keys, *rest = self.values["numpy"]
        return {
            "python": [version, np.asarray(words, dtype=np.uint32).tobytes().hex(), gauss],
            "numpy": [name, keys.tobytes().hex(), *rest],
            "torch": self.values["torch"].numpy().tobytes().hex(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RandomState:
        version, words, gauss = values["python"]
        name, keys, *rest = values["numpy"]
        words, keys = (np.frombuffer(bytes.fromhex(text), dtype=np.uint32).copy() for text in (words, keys))
        tensor = torch.frombuffer(bytearray.fromhex(values["torch"]), dtype=torch.uint8)
        return cls({"python": (version, tuple(words.tolist()), gauss), "numpy": (name, keys, *rest), "torch": tensor})


class DataPosition(TrainerCallback):
    """
    Counts the passes over the training set and the batches taken from the current pass, and keeps the random states
    before the next batch is read.

    Random states are kept only where images are read without workers, since workers have their own.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.has_leftover = False  # micro-batches at the end of a pass that completed no optimizer step
        self.is_restored = False  # the random states of the checkpoint are back, between two batches
        self._active: _Watched | None = None
        self._is_first = False
        self._lent: DataLoader | None = None  # has a generator for the one pass that is replayed
        self._resumed: tuple[int, dict[str, Any] | None, Callable[[], None]] | None = None
        self._after_read: RandomState | None = None
        self._end_pass()

    def _end_pass(self) -> None:
        self._step = -1
        self._taken = 0
        self._taken_before = 0
        self._steps_in_epoch: int | None = None
        self._pass_start: RandomState | None = None
        self._before_fetch: RandomState | None = None

    # ---- Following a pass ---------------------------------------------------------------------------------------

    def watch(self, loader: DataLoader, process_index: int) -> None:
        """Follows the batches that a training data loader reads in this process, if it reads any here."""
        self._active = None
        reads_here = isinstance(loader, DataLoaderShard) or (
            isinstance(loader, DataLoaderDispatcher) and process_index == 0
        )
        if reads_here and loader.num_workers == 0:
            splits = isinstance(loader, DataLoaderShard) or loader.split_batches
            self._active = _Watched(self, loader.collate_fn, 1 if splits else loader.state.num_processes)
            loader.base_dataloader.collate_fn = self._active

    def begin(
        self,
        epoch: int = 0,
        batches: int = 0,
        saved: dict[str, Any] | None = None,
        load: Callable[[], None] | None = None,
    ) -> None:
        """
        Sets where a run begins.

        Args:
            epoch (`int`, *optional*, defaults to 0): Number of completed passes.
            batches (`int`, *optional*, defaults to 0): Number of batches taken from the current pass.
            saved (`dict`, *optional*): What `to_dict` gave, if the run goes on from a checkpoint that holds it.
            load (`Callable`, *optional*): Restores the random states of the checkpoint, if it goes on from one.
        """
        self.epoch = epoch
        self._resumed = None if load is None else (batches, saved, load)

    def on_epoch_begin(self, args, state, control, train_dataloader: DataLoader, **kwargs) -> None:
        if self._lent is not None:
            self._lent.generator = None
            self._lent = None
        self._end_pass()
        known = has_length(train_dataloader)
        self._steps_in_epoch = len(train_dataloader) if known else args.max_steps * args.gradient_accumulation_steps
        self.has_leftover = self.is_restored = False
        dataset = train_dataloader.dataset
        if hasattr(dataset, "set_epoch") and not isinstance(dataset, IterableDataset):
            # Accelerate tells a map-style dataset of the epoch on one process, but not on several, nor after a resume.
            dataset.set_epoch(self.epoch)
        self._pass_start = RandomState()
        self._is_first = True
        if self._active is not None:
            self._active.begin()
        if self._resumed is None:
            return
        batches, saved, load = self._resumed
        self._resumed = None
        if not batches:
            load()  # a pass starts with the random states at the end of the one before
            self._pass_start = RandomState()
        elif saved is not None:
            self.replay(saved, train_dataloader, load)

    def batches_are_read(self) -> None:
        """Called when the batches of an optimizer step are taken; `Trainer` may load the random states after that."""
        if self.is_restored:
            self._after_read = RandomState()
            self.is_restored = False

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self._after_read is not None:
            self._after_read.restore()
            self._after_read = None

    def taking(self, batches: Iterator[Any], step: int) -> Iterator[Any]:
        """The batches of an optimizer step, as they are taken."""
        before = self._taken
        while True:
            if self._active is not None and not self._is_first:
                self._before_fetch = RandomState()
            self._is_first = False  # the first one reads two
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._taken == before:
                self._step = step
                self._taken_before = before
            self._taken += 1
            yield batch

    def fetched(self, watched: _Watched) -> None:
        """Called when a batch was read, which is before the one ahead of it is taken."""
        if watched.count == watched.per_fetch:
            self._before_fetch = RandomState()

    def on_epoch_end(self, args, state, control: TrainerControl, **kwargs) -> None:
        is_over = self._steps_in_epoch is not None and self._taken >= self._steps_in_epoch
        if control.should_training_stop and not is_over:
            return
        self.has_leftover = self._taken > 0 and state.global_step == self._step
        self._end_pass()
        self.epoch += 1

    # ---- In checkpoints -----------------------------------------------------------------------------------------

    def to_dict(self, step: int) -> dict[str, Any]:
        """What a checkpoint after optimizer step `step` holds, as JSON values."""
        is_complete = step > self._step
        batches = self._taken if is_complete else self._taken_before
        watched = self._active if is_complete and batches else None
        return {
            "epoch": self.epoch,
            "batches": batches,
            "has_leftover": self.has_leftover,
            "pass_start": self._pass_start.to_dict() if batches else None,
            "before_fetch": self._before_fetch.to_dict() if watched and self._before_fetch is not None else None,
            "labels": watched.labels_of(batches) if watched else None,
        }

    def replay(self, saved: dict[str, Any], loader: DataLoader, load: Callable[[], None]) -> None:
        """
        Prepares a pass that is resumed in the middle, before its iterator is created.

        Args:
            saved (`dict`): What `to_dict` gave.
            loader (`DataLoader`): The loader of the pass, without what is skipped.
            load (`Callable`): Restores the random states of the checkpoint.
        """
        self._taken = self._taken_before = saved["batches"]
        self._pass_start = RandomState.from_dict(saved["pass_start"])
        is_stream = isinstance(loader.dataset, IterableDataset)
        if not is_stream and self._taken >= self._steps_in_epoch:
            load()  # nothing is left to be read
            return
        draws_order = is_stream or not isinstance(_sampler_of(loader), (SeedableRandomSampler, SequentialSampler))
        if draws_order or self._active is None:
            self._pass_start.restore()
        if self._active is None or saved["before_fetch"] is None:
            return
        if draws_order and not is_stream:
            if randomness_of(loader) is not None:
                logger.warning(
                    "Both the order of the training images and their augmentation are drawn from the global random "
                    "generators: the run goes on with the images it would have had without the interruption, but with "
                    "other augmentations of the first of them. `train_sampling_strategy='random'` with "
                    "`use_seedable_sampler` goes on exactly."
                )
            return
        before_fetch = RandomState.from_dict(saved["before_fetch"])
        if not draws_order:
            # Creating the iterator draws a seed for workers, which would advance the global random state.
            if loader.base_dataloader.generator is None:
                self._lent = loader.base_dataloader
                self._lent.generator = torch.Generator()
            before_fetch.restore()
        self._active.replay(saved, 0 if is_stream else self._taken, before_fetch, load)

    def restored(self) -> None:
        """Called between the batch that had been read ahead and the next."""
        self.is_restored = True
        self._before_fetch = RandomState()


class _Watched:
    """A `collate_fn` that counts the batches it is called for, and restores random states between them."""

    def __init__(self, position: DataPosition, collate: Callable, per_fetch: int):
        self.position = position
        self.collate = collate
        self.per_fetch = per_fetch
        self.begin()

    def begin(self) -> None:
        self.count = 0
        self._moved = False
        self._replayed: tuple[dict[str, Any], RandomState, Callable[[], None]] | None = None
        self._state_before: dict[str, Any] | None = None
        self._labels = hashlib.sha256()
        self._digests: dict[int, str] = {}

    def replay(self, saved: dict[str, Any], already: int, before_fetch: RandomState, load: Callable[[], None]) -> None:
        self.count = already * self.per_fetch
        self._replayed = (saved, before_fetch, load)
        self._labels = hashlib.sha256() if already == 0 else None  # nothing is read again

    def labels_of(self, batches: int) -> str | None:
        """A hash of the labels of so many batches; `None` if they are not known."""
        return self._digests.get(batches * self.per_fetch)

    def __call__(self, samples: list[Any]) -> Any:
        batch = self.collate(samples)
        self.count += 1
        self._add_labels(batch)
        if self._replayed is None:
            self.position.fetched(self)
            return batch
        saved, before_fetch, load = self._replayed
        taken = saved["batches"] * self.per_fetch
        if self.count <= min(taken, 2 * self.per_fetch):
            # The original run read these two batches in a row too, so the random states must match up to here.
            self._moved = self.count > self.per_fetch and RandomState().to_dict() != self._state_before
            self._state_before = RandomState().to_dict()
        if self.count == taken:
            if self._moved and saved["batches"] > 2:
                logger.warning(
                    "The stream draws from the global random generators while it is read. Its images come back exactly "
                    "if they are augmented with that, but not if they are ordered with it."
                )
            if saved["labels"] not in (None, self.labels_of(saved["batches"])):
                raise ValueError(
                    f"The training set gave other images in pass {saved['epoch'] + 1} than before the interruption, so "
                    "the run cannot go on exactly. The order of a stream must follow from its seed and from what "
                    "`set_epoch(epoch)` is given alone. `ignore_data_skip=True` goes on with the images as they come."
                )
            before_fetch.restore()
        elif self.count == taken + self.per_fetch:
            load()
            self.position.restored()
            self._replayed = None
        return batch

    def _add_labels(self, batch: Any) -> None:
        labels = batch.get("labels") if hasattr(batch, "get") else None
        if self._labels is None or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
            self._labels = None
            return
        self._labels.update(labels.numpy().tobytes())
        self._digests[self.count] = self._labels.hexdigest()
        self._digests.pop(self.count - 2 * self.per_fetch - 1, None)


def _sampler_of(loader: DataLoader) -> Sampler:
    """The sampler that orders the images, without the wrappers for batches and processes."""
    sampler = loader.batch_sampler
    while isinstance(sampler, BatchSampler):
        sampler = getattr(sampler, "batch_sampler", None) or sampler.sampler
    return sampler


def randomness_of(loader: DataLoader) -> str | None:
    """
    Whether reading the same images twice draws random numbers, and from which generators.

    Returns:
        `str` or `None`: `"global"`, `"own"` if the images differ though the global generators are as before, or `None`.
    """
    count = min(2, len(loader.dataset))
    if not count:
        return None

    def read() -> Any:
        return loader.collate_fn([loader.dataset[index] for index in range(count)])

    with preserved_random_state():
        before = RandomState()
        first = read()
        moved = RandomState().to_dict() != before.to_dict()
        before.restore()
        second = read()
    if not _are_equal(first, second):
        return "own"
    return "global" if moved else None


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if hasattr(first, "items"):
        return all(_are_equal(value, second[name]) for name, value in first.items())
    return True
