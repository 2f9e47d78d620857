"""The outcomes of each image of each column, kept shard by shard, so that an evaluation can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from transformers.utils import logging

from ..utils.escaping import plain_text
from ..utils.files import replaced, write_text
from ..utils.strict_json import DamagedFileError


logger = logging.get_logger(__name__)

# What is known of each image of every column, and the kind of number that it is.
KINDS = {
    "prediction": torch.int64,
    "correct": torch.bool,
    "confidence": torch.float32,
    "l2": torch.float32,
    "linf": torch.float32,
}
# The right class of each image, which files of earlier versions do not hold.
LABEL = "label"
# The prediction where a logit was not finite.
NO_ANSWER = -1
# Version 0.1.0 wrote them as one table of this name: `KINDS` as its columns, and a sixth with a bit for each flag.
TABLE = "values"
FLAGS_OF_0_1_0 = (
    "looks_randomized",
    "looks_like_probabilities",
    "looks_dynamic",
    "has_zero_gradients",
    "square_helps",
)
# Name of the time that a shard took, among its outcomes.
SECONDS = "seconds"


@dataclass
class Outcomes:
    """
    The results for the images of one column, each a tensor of shape `(num_images,)`.

    Args:
        indices (`torch.Tensor`): Places of the images in their dataset.
        prediction (`torch.Tensor`): The class that each is taken for; `NO_ANSWER` where a logit is not finite.
        correct (`torch.Tensor`): Whether it is the right one.
        confidence (`torch.Tensor`): Its probability.
        l2, linf (`torch.Tensor`): Distance of the attacked picture from the clean one, in pixel units.
        others (`dict[str, torch.Tensor]`, *optional*): What the attack reports, by name; see [`Attack.measure`].
        label (`torch.Tensor`, *optional*): The right class of each.
    """

    indices: torch.Tensor
    prediction: torch.Tensor
    correct: torch.Tensor
    confidence: torch.Tensor
    l2: torch.Tensor
    linf: torch.Tensor
    others: dict[str, torch.Tensor] = field(default_factory=dict)
    label: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def named(self) -> dict[str, torch.Tensor]:
        """The outcomes by name, without the places."""
        known = {} if self.label is None else {LABEL: self.label}
        return {name: getattr(self, name) for name in KINDS} | known | self.others

    @classmethod
    def of(cls, indices: torch.Tensor, named: Mapping[str, torch.Tensor]) -> Outcomes:
        """What [`Outcomes.named`] gave, and the places; numbers are brought to their kinds."""
        others = {name: value for name, value in named.items() if name not in (*KINDS, LABEL)}
        label = named[LABEL].long() if LABEL in named else None
        kinds = {name: named[name].to(kind) for name, kind in KINDS.items()}
        return cls(indices, **kinds, others=others, label=label)


def save_outcomes(outcomes: dict[str, Outcomes], path: str | os.PathLike) -> None:
    """Writes the outcomes of all columns as one safetensors file, which appears whole or not at all."""
    tensors = {
        f"{column}.{name}": value.clone()  # parts of one table share its memory
        for column, images in outcomes.items()
        for name, value in {**images.named, "indices": images.indices}.items()
    }
    save_tensors(tensors, Path(path))


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """
    Writes safetensors whole or not at all.

    Its own `save_file` leaves a file of a random name behind when it is killed, and raises another error on a full disk.
    """
    with replaced(path) as unfinished:
        unfinished.write_bytes(save(tensors, metadata))


def load_outcomes(path: str | os.PathLike) -> dict[str, Outcomes]:
    """
    Reads what [`save_outcomes`] wrote, in no particular order of columns.

    Files of version 0.1.0 are read too.

    Raises:
        [`DamagedFileError`]: If the file is no such file, or outcomes and places do not belong together.
    """
    path = Path(path)
    columns: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                column, _, name = key.rpartition(".")
                columns.setdefault(column, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path.name} is damaged: {plain_text(error, 200)}.") from None
    outcomes = {}
    for column, tensors in columns.items():
        where = f"{path.name} is damaged: column {plain_text(column, 60)}"
        indices = tensors.pop("indices", torch.empty(0))
        count = indices.numel()
        if indices.shape != (count,) or indices.dtype != torch.int64 or not count:
            raise DamagedFileError(f"{where} has no list of images.")
        if TABLE in tensors:
            tensors = _named_columns(tensors[TABLE], where)
        for name in {**KINDS, **tensors}:
            kind = KINDS.get(name)
            value = tensors.get(name)
            if value is None or value.shape != (count,) or kind not in (None, value.dtype):
                raise DamagedFileError(f"{where} holds no {plain_text(name, 60)} of {count} images.")
        outcomes[column] = Outcomes.of(indices, tensors)
    return outcomes


def _named_columns(table: torch.Tensor, where: str) -> dict[str, torch.Tensor]:
    """The outcomes in a table that version 0.1.0 wrote; flags that no image has are left out."""
    if table.dim() != 2 or table.shape[1] != len(KINDS) + 1 or not table.is_floating_point():
        raise DamagedFileError(f"{where} has a table of shape {tuple(table.shape)} and dtype {table.dtype}.")
    named = {name: table[:, place].contiguous() for place, name in enumerate(KINDS)}
    whole = named["prediction"]
    bits = table[:, -1]
    is_right = named["correct"]
    if not (bits.isfinite().all() and (whole == whole.round()).all() and (is_right == is_right.bool()).all()):
        raise DamagedFileError(f"{where} has numbers that are no outcomes.")
    flags = {name: (bits.long() >> bit & 1).bool() for bit, name in enumerate(FLAGS_OF_0_1_0)}
    named = {name: value.to(KINDS[name]) for name, value in named.items()}
    return named | {name: value for name, value in flags.items() if value.any()}


class ShardStore:
    """
    A folder with one file for each finished shard of each column.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Files are written under another name and then renamed, so an existing file is complete. Each holds a hash of its
    contents, so later damage is detected.
    """

    MANIFEST = "manifest.json"

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def open(self, manifest: dict[str, Any]) -> list[str]:
        """
        Begins a new evaluation or continues an existing one, and returns the names of its finished shards. Damaged
        shards are removed with a warning and measured again.

        Raises:
            `ValueError`: If the folder holds another evaluation, or its manifest is damaged.
        """
        path = self.folder / self.MANIFEST
        if not path.is_file():
            self.remove()  # shards of which nothing says what they are of
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(manifest, indent=2) + "\n")
            return []
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} is damaged ({error}), so nothing says which evaluation the parts in its folder are of. "
                "Delete that folder to start again."
            ) from error
        check_manifest(found if isinstance(found, dict) else {}, manifest, self.folder)
        for leftover in self.folder.iterdir():
            if leftover != path and leftover.suffix != ".safetensors":
                leftover.unlink()
        return [path.stem for path in sorted(self.folder.glob("*.safetensors")) if self._is_whole(path)]

    def _is_whole(self, path: Path) -> bool:
        try:
            self.load(path.stem)
        except ValueError as error:
            logger.warning(f"{error} It is removed, and its images are measured again.")
            path.unlink()
            return False
        return True

    def save(self, name: str, named: Mapping[str, torch.Tensor], seconds: float) -> None:
        """
        Keeps the outcomes of the images of one shard, by name, and the time that it took.

        Raises:
            `OSError`: If the disk is full; what was kept before stays.
        """
        path = self.folder / f"{name}.safetensors"
        tensors = {name: value.contiguous() for name, value in named.items()}
        tensors[SECONDS] = torch.tensor(seconds, dtype=torch.float64)
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)  # a node that does not share the main process's disk
            save_tensors(tensors, path, metadata={"sha256": _shard_hash(name, tensors)})

    def load(self, name: str) -> tuple[dict[str, torch.Tensor], float]:
        """
        What [`ShardStore.save`] kept.

        Raises:
            `ValueError`: If the file is damaged, or of another version of the package.
        """
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                expected = (file.metadata() or {}).get("sha256")
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}).") from error
        if expected != _shard_hash(name, tensors):
            raise ValueError(f"{str(path)!r} is damaged: its contents are not those that were written.")
        if not {*KINDS, SECONDS} <= set(tensors):
            raise ValueError(f"{str(path)!r} has only {sorted(tensors)}: another version of the package wrote it.")
        return tensors, tensors.pop(SECONDS).item()

    def remove(self) -> None:
        """Deletes the files of the evaluation and the folder, the manifest last; what cannot be deleted stays."""
        if not self.folder.is_dir():
            return
        manifest = self.folder / self.MANIFEST
        try:
            for path in [path for path in self.folder.iterdir() if path != manifest]:
                path.unlink()
            manifest.unlink(missing_ok=True)
            self.folder.rmdir()
        except OSError as error:
            logger.warning(f"{str(self.folder)!r}, which holds parts of a finished evaluation, stays: {error}")


def _shard_hash(name: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(name.encode())
    for key in sorted(tensors):
        digest.update(f"{key}:{tuple(tensors[key].shape)}:{tensors[key].dtype}".encode())
        digest.update(tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Adds to the error of a failed write how full the disk is, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free // 2**20
        raise OSError(
            f"Results could not be saved in {str(folder)!r}, whose disk has {free} MiB free: {error}. What was finished "
            "before is kept; make room and call again with the same arguments to go on from there."
        ) from error


def check_manifest(found: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    """
    Refuses to mix two evaluations.

    Raises:
        `ValueError`: If the manifests differ.
    """
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        listed = ", ".join(f"{name} {found.get(name)!r} instead of {expected[name]!r}" for name in differing)
        raise ValueError(
            f"{str(folder)!r} holds another evaluation: it has {listed}. Choose another `output_dir`, delete that "
            "folder to start again, or call with the same model, images, profile and batch size to go on."
        )


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, shapes, types and values of all weights and buffers, the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            raw = value.detach().cpu().contiguous().reshape(-1)
            digest.update(raw.view(torch.uint8).numpy() if raw.numel() else b"")
    return digest.hexdigest()


def images_fingerprint(pictures: Sequence[Image.Image], labels: Sequence[int]) -> str:
    """
    SHA-256 of a dataset: all its labels, and a sample of its pictures.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): Some of the pictures.
        labels (`Sequence[int]`): The labels of all.
    """
    digest = hashlib.sha256(json.dumps(list(map(int, labels))).encode())
    for picture in pictures:
        digest.update(f"{picture.mode}:{picture.size}".encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()
