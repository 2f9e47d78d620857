"""Splits an evaluation into shards of a few batches, spreads them over processes and saves each when it is finished."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers.utils import logging

from ..models.full_precision import full_precision
from ..models.pixel_model import PixelModel
from ..utils.phases import PhaseBar
from ..utils.processes import on_main_process
from ..utils.random import keyed_generator
from .attacks import ATTACKS
from .attacks.search import is_right
from .examples import PICTURES, PLACES, Examples, choose_examples, thumbnails
from .outcomes import KINDS, NO_ANSWER, Outcomes, ShardStore
from .profiles import Column, Profile
from .sources import ColumnBatch, ColumnImages, ImageSource, column_loader


logger = logging.get_logger(__name__)

# A shard is an eighth of a column, so that several processes share small columns, but not more than this many batches,
# so that little is lost when a long evaluation is stopped.
SHARDS_PER_COLUMN = 8
MAX_BATCHES = 16


@dataclass(frozen=True)
class Shard:
    """
    A few batches of one column, which one process measures.

    Args:
        column ([`Column`]): The column.
        number (`int`): Which of its shards.
        first (`int`): Row of its first image in the table of all images of all columns.
        batches (`tuple[tuple[int, ...], ...]`): Places of the images in their dataset, batch by batch.
    """

    column: Column
    number: int
    first: int
    batches: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """Its name among all shards."""
        return f"{self.column.name}.{self.number:05d}"

    @property
    def indices(self) -> list[int]:
        """Places of its images."""
        return [index for batch in self.batches for index in batch]


def passes_per_image(column: Column) -> int:
    """
    Forward passes that an image of a column takes at most, a backward pass counted as two.

    The remaining time is estimated from them: an attack takes hundreds of times as long as a clean column.
    """
    return 1 if column.attack is None else ATTACKS[column.attack].passes(column.settings)


def choose_images(count: int, max_images: int | None, seed: int) -> list[int]:
    """Places of at most `max_images` of `count` images, ascending; a smaller choice is part of a larger one."""
    if max_images is None or max_images >= count:
        return list(range(count))
    order = torch.randperm(count, generator=keyed_generator("evaluation-images", seed))
    return sorted(order[:max_images].tolist())


def plan_shards(
    profile: Profile,
    sources: dict[str, ImageSource],
    batch_size: int,
    skipped: Mapping[str, Sequence[int]] | None = None,
) -> list[Shard]:
    """
    The shards of all columns that have images. They do not depend on the number of processes.

    Args:
        profile ([`Profile`]): The columns.
        sources (`dict[str, ImageSource]`): Images by column.
        batch_size (`int`): Images of a batch.
        skipped (`Mapping[str, Sequence[int]]`, *optional*): Places of images that are left out, by column; those of the
            others stay as they are.
    """
    shards = []
    first = 0
    for column in profile.columns:
        if column.name not in sources:
            continue
        left_out = set((skipped or {}).get(column.name, ()))
        indices = choose_images(len(sources[column.name]), column.max_images, profile.seed)
        indices = [index for index in indices if index not in left_out]
        batches = [tuple(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
        size = min(MAX_BATCHES, max(1, len(batches) // SHARDS_PER_COLUMN))
        for number, start in enumerate(range(0, len(batches), size)):
            shards.append(Shard(column, number, first, tuple(batches[start : start + size])))
            first += len(shards[-1].indices)
    return shards


class ShardRunner:
    """
    Measures shards, on all processes together.

    Args:
        model ([`PixelModel`]): The classifier.
        images ([`ColumnImages`]): Reads the images of a batch.
        accelerator (`Accelerator`): The processes.
        num_workers (`int`): Processes that read images, for each of them.
        disable_tqdm (`bool`): Whether to hide the progress bar.
    """

    def __init__(
        self,
        model: PixelModel,
        images: ColumnImages,
        accelerator: Accelerator,
        num_workers: int = 0,
        disable_tqdm: bool = False,
    ):
        self.model = model
        self.images = images
        self.accelerator = accelerator
        self.num_workers = num_workers
        self.disable_tqdm = disable_tqdm

    def run(
        self, shards: Sequence[Shard], store: ShardStore | None, manifest: dict[str, Any]
    ) -> tuple[dict[str, Outcomes], torch.Tensor, Examples]:
        """
        Measures the shards that `store` does not hold yet.

        Args:
            shards (`Sequence[Shard]`): From [`plan_shards`].
            store ([`ShardStore`] or `None`): Keeps finished shards.
            manifest (`dict`): Says what is evaluated; one that differs from that of `store` is refused.

        Returns:
            `tuple[dict[str, Outcomes], torch.Tensor, Examples]`: The outcomes of each column, the seconds that each shard
            took, of shape `(num_shards,)`, and some pictures; the same on every process.
        """
        finished = set()
        if store is not None:
            finished = set(on_main_process(self.accelerator, lambda: store.open(manifest)))
        count = shards[-1].first + len(shards[-1].indices)
        table = {name: torch.zeros(count) for shard in shards for name in outcome_names(shard.column)}
        seconds = torch.zeros(len(shards))
        places = {shard.name: place for place, shard in enumerate(shards)}
        measured: dict[str, list[int]] = {}
        for shard in shards:
            measured.setdefault(shard.column.name, []).extend(shard.indices)
        shown = choose_examples({shard.column.name: shard.column for shard in shards}, measured)
        examples = Examples()

        def insert(shard: Shard, named: Mapping[str, torch.Tensor], elapsed: float) -> None:
            examples.add(shard.column.name, named)
            for name in named.keys() - {PICTURES, PLACES}:
                value = named[name]
                table[name][shard.first : shard.first + len(value)] = value.float()
            seconds[places[shard.name]] = elapsed

        if self.accelerator.is_main_process:
            for shard in shards:
                if shard.name in finished:
                    insert(shard, *store.load(shard.name))
            columns = len({shard.column.name for shard in shards})
            kept = f", of which {len(finished)} of {len(shards)} parts are finished" if finished else ""
            if columns > 1 or finished:
                logger.info(f"Measuring {columns} column{'s' * (columns > 1)}, {count} images in all{kept} ...")
        remaining = [shard for shard in shards if shard.name not in finished]
        mine = remaining[self.accelerator.process_index :: self.accelerator.num_processes]
        for shard, named, elapsed in self._measured(mine, shown):
            insert(shard, named, elapsed)
            if store is not None:
                store.save(shard.name, named, elapsed)
        # Each row was filled by one process and is zero on the others, so the sum is exact.
        seconds = self._summed(seconds)
        table = {name: self._summed(value) for name, value in table.items()}
        return outcomes_by_column(shards, table), seconds, self._gathered(examples)

    def _gathered(self, examples: Examples) -> Examples:
        """The pictures of all processes."""
        gathered = Examples()
        for column, places, pictures in gather_object(
            [(column, examples.places[column], pictures) for column, pictures in examples.pictures.items()]
        ):
            gathered.add(column, {PLACES: places, PICTURES: pictures})
        return gathered

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the CPU."""
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum").cpu()

    def _measured(
        self, shards: Sequence[Shard], shown: Mapping[str, Collection[int]]
    ) -> Iterator[tuple[Shard, dict[str, torch.Tensor], float]]:
        """The outcomes of the images of each shard, and the seconds that it took, as they are finished."""
        batches = [ColumnBatch(shard.column, indices) for shard in shards for indices in shard.batches]
        loaded = iter(column_loader(self.images, batches, self.num_workers))
        total = sum(len(batch.indices) * passes_per_image(batch.column) for batch in batches)
        hidden = self.disable_tqdm or not self.accelerator.is_main_process
        with PhaseBar("Measuring", total, "pass", hidden) as progress:
            for shard in shards:
                begun = time.perf_counter()
                named = self._measure_shard(shard, loaded, progress, shown.get(shard.column.name, ()))
                yield shard, named, time.perf_counter() - begun

    def _measure_shard(
        self, shard: Shard, loaded: Iterator, progress: PhaseBar, shown: Collection[int]
    ) -> dict[str, torch.Tensor]:
        progress.begin(shard.column.name)
        parts = []
        passes = passes_per_image(shard.column)
        for indices in shard.batches:
            pixels, labels = next(loaded)
            parts.append(self.measure(shard.column, pixels, labels, indices, shown))
            progress.update(len(indices) * passes)
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}

    def measure(
        self,
        column: Column,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        indices: Sequence[int],
        shown: Collection[int] = (),
    ) -> dict[str, torch.Tensor]:
        """
        The outcomes of the images of one batch by name, each of shape `(batch_size,)`, on the CPU; and of those at `shown`
        the pictures, with their places.

        Args:
            column ([`Column`]): Names the attack.
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures in [0, 1].
            labels (`torch.Tensor` of shape `(batch_size,)`): Their classes.
            indices (`Sequence[int]`): Their places in the dataset.
            shown (`Collection[int]`, *optional*): Places of pictures to keep.
        """
        classes = self.images.sources[column.name].class_indices
        self.model.class_indices = classes
        if classes is not None:
            places = {label: place for place, label in enumerate(classes)}
            labels = torch.tensor([places[label] for label in labels.tolist()])
        pixels = pixels.to(self.model.mean.device)
        labels = labels.to(self.model.mean.device)
        attacked = pixels
        others: dict[str, torch.Tensor] = {}
        # Predictions under attack use float32 like the attack, which stops at a decision boundary that rounding moves.
        with self.accelerator.autocast() if column.attack is None else full_precision(self.model):
            if column.attack is not None:
                settings = {**column.settings, "seed": self.images.seed, "indices": indices}
                attacked, others = ATTACKS[column.attack].measure(self.model, pixels, labels, settings)
            with torch.no_grad():
                logits = self.model(attacked)
        confidence, prediction = logits.softmax(-1).max(-1)
        correct = is_right(logits, labels)
        if classes is not None:
            prediction = torch.tensor(classes, device=prediction.device)[prediction]
        no_answer = ~logits.isfinite().all(-1)
        prediction = prediction.masked_fill(no_answer, NO_ANSWER)
        confidence = confidence.masked_fill(no_answer, 0.0)
        change = (attacked - pixels).flatten(1)
        named = {
            "prediction": prediction,
            "correct": correct,
            "confidence": confidence,
            "l2": change.norm(dim=1),
            "linf": change.abs().amax(1),
            **others,
        }
        if rows := [row for row, index in enumerate(indices) if index in shown]:
            named |= {PICTURES: thumbnails(attacked[rows]), PLACES: torch.tensor([indices[row] for row in rows])}
        return {name: value.detach().cpu() for name, value in named.items()}


def outcome_names(column: Column) -> list[str]:
    """What is known of each image of a column."""
    if column.attack is None:
        return list(KINDS)
    attack = ATTACKS[column.attack]
    return [*KINDS, *attack.flags, *attack.reports]


def outcomes_by_column(shards: Sequence[Shard], table: Mapping[str, torch.Tensor]) -> dict[str, Outcomes]:
    """
    The outcomes of each column.

    Args:
        shards (`Sequence[Shard]`): All shards, those of a column one after the other.
        table (`Mapping[str, torch.Tensor]`): The numbers of the images of all shards, by name.
    """
    parts: dict[str, list[Shard]] = {}
    for shard in shards:
        parts.setdefault(shard.column.name, []).append(shard)
    outcomes = {}
    for name, own in parts.items():
        indices = torch.tensor([index for shard in own for index in shard.indices])
        rows = slice(own[0].first, own[0].first + len(indices))
        column = own[0].column
        flags = () if column.attack is None else ATTACKS[column.attack].flags
        named = {key: table[key][rows].bool() if key in flags else table[key][rows] for key in outcome_names(column)}
        outcomes[name] = Outcomes.of(indices, named)
    return outcomes
