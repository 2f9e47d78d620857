"""A few of the pictures that were measured, as they were: corrupted and attacked, for the page of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..utils.escaping import plain_text
from ..utils.strict_json import DamagedFileError
from .outcomes import save_tensors
from .profiles import Column


EXAMPLES_NAME = "examples.safetensors"
# Pictures of a column, the longer side of each in pixels, and columns with pictures: a page of them stays under 2 MB.
EXAMPLES_PER_COLUMN = 3
MAX_SIDE = 96
MAX_COLUMNS = 40
# Their names among the tensors of a shard and of a column.
PICTURES = "pictures"
PLACES = "places"


@dataclass
class Examples:
    """
    What a page shows beside numbers. It is not published: the pictures are those of the evaluation set.

    Args:
        pictures (`dict[str, torch.Tensor]`): Pictures of each column, of shape `(num_pictures, channels, height, width)`,
            dtype `uint8`, at most 96 pixels wide and high.
        places (`dict[str, torch.Tensor]`): Their places in the dataset.
        classes (`list[str]`): Names of the model's classes; empty where it does not name them.
        command (`str`, *optional*): The command that measured.
    """

    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    places: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    command: str | None = None

    def add(self, column: str, named: Mapping[str, torch.Tensor]) -> None:
        """Adds the pictures among the tensors of a shard of a column, in the order of their places."""
        if PICTURES not in named:
            return
        places = torch.cat([*([self.places[column]] if column in self.places else []), named[PLACES]])
        pictures = torch.cat([*([self.pictures[column]] if column in self.places else []), named[PICTURES]])
        order = places.argsort()
        self.places[column] = places[order]
        self.pictures[column] = pictures[order]

    def save(self, path: Path) -> None:
        """Writes one safetensors file, which appears whole or not at all."""
        tensors = {
            f"{column}.{name}": values[column].contiguous()
            for name, values in ((PICTURES, self.pictures), (PLACES, self.places))
            for column in values
        }
        said = json.dumps({"classes": self.classes, "command": self.command})
        save_tensors(tensors, path, {"said": said})

    @classmethod
    def load(cls, path: Path) -> Examples:
        """
        Reads what [`Examples.save`] wrote.

        Raises:
            [`DamagedFileError`]: If the file is no such file.
        """
        examples = cls()
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads((file.metadata() or {})["said"])
                for key in file.keys():
                    column, _, name = key.rpartition(".")
                    {PICTURES: examples.pictures, PLACES: examples.places}[name][column] = file.get_tensor(key)
            examples.classes = [str(name) for name in said["classes"]]
            examples.command = None if said["command"] is None else str(said["command"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"{path.name} is damaged: {plain_text(error, 200)}.") from None
        return examples


def choose_examples(columns: Mapping[str, Column], measured: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """
    Places of the pictures to keep, by column: the same ones in all columns of a dataset that have them, evenly spaced.
    Of the severities of a corruption the strongest is shown.

    Args:
        columns (`Mapping[str, Column]`): The columns that are measured.
        measured (`Mapping[str, Sequence[int]]`): Places of the pictures that are measured in each.
    """
    strongest: dict[tuple, int] = {}
    for column in columns.values():
        key = (column.dataset, column.corruption, column.attack)
        strongest[key] = max(strongest.get(key, 0), column.severity or 0)
    shown = [
        column
        for column in columns.values()
        if column.corruption is None or column.severity == strongest[column.dataset, column.corruption, column.attack]
    ][:MAX_COLUMNS]
    shared: dict[str, set[int]] = {}
    for column in shown:
        places = set(measured[column.name])
        shared[column.source_name] = shared.get(column.source_name, places) & places or places
    return {column.name: _spaced(sorted(shared[column.source_name] & {*measured[column.name]})) for column in shown}


def _spaced(places: Sequence[int]) -> list[int]:
    count = min(EXAMPLES_PER_COLUMN, len(places))
    return [places[(2 * number + 1) * len(places) // (2 * count)] for number in range(count)]


def thumbnails(pixels: torch.Tensor, max_side: int = MAX_SIDE) -> torch.Tensor:
    """
    Pictures of shape `(num_pictures, channels, height, width)` in [0, 1] as `uint8`, made smaller if need be.
    """
    factor = max_side / max(pixels.shape[-2:])
    pixels = pixels.detach().float().cpu()
    if factor < 1:
        size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
