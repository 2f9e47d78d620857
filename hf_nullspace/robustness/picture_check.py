"""Reads every picture of an evaluation once, so that all unreadable ones are named before anything is measured."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..models.preprocessing import Preprocessing
from ..utils.phases import PhaseBar
from .preparation import Evaluation
from .shards import choose_images
from .sources import ImageSource, to_pixels


logger = logging.get_logger(__name__)

# Names in one message; more than a reader looks through.
NUM_NAMED = 200


class _Readable(torch.utils.data.Dataset):
    """The error of reading a picture, given by its source's name and its place there; empty where it can be read."""

    def __init__(self, sources: dict[str, ImageSource], preprocessing: Preprocessing):
        self.sources = sources
        self.preprocessing = preprocessing

    def __getitem__(self, picture: tuple[str, int]) -> str:
        source = self.sources[picture[0]]
        index = picture[1]
        try:
            to_pixels(source.read([index]), self.preprocessing, source.preprocessing)
        except Exception as error:  # Pillow's plugins raise many kinds; each means the same here
            return f"{source.file_of(index)}: {error.__cause__ or error}"
        return ""


def check_pictures(
    evaluation: Evaluation,
    *,
    skip_bad_images: bool = False,
    accelerator: Accelerator | None = None,
    num_workers: int = 0,
    disable_tqdm: bool = False,
) -> dict[str, list[int]]:
    """
    Reads every picture that a column needs, each process its share.

    Args:
        evaluation ([`Evaluation`]): What is to be measured.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Whether unreadable pictures are left out.
        accelerator (`Accelerator`, *optional*): The processes.
        num_workers (`int`, *optional*, defaults to 0): Processes that read, for each of them.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bar.

    Returns:
        `dict[str, list[int]]`: The places of the pictures that are left out, by the name of their source; the same on
        every process.

    Raises:
        `ValueError`: If pictures cannot be read and `skip_bad_images` is `False`, or a column would have none left. All
            of them are named, up to 200.
    """
    accelerator = accelerator or Accelerator()
    sources = {source.name: source for source in evaluation.sources.values()}
    needed: dict[str, set[int]] = {name: set() for name in sources}
    chosen: dict[str, set[int]] = {}
    for column in evaluation.profile.columns:
        if column.name in evaluation.sources:
            source = evaluation.sources[column.name]
            chosen[column.name] = set(choose_images(len(source), column.max_images, evaluation.profile.seed))
            needed[source.name] |= chosen[column.name]
    pictures = [(name, index) for name, places in needed.items() for index in sorted(places)]
    mine = pictures[accelerator.process_index :: accelerator.num_processes]
    readable = _Readable(sources, evaluation.images.preprocessing)
    loader = DataLoader(readable, batch_size=None, sampler=mine, num_workers=num_workers, generator=torch.Generator())
    errors = []
    with PhaseBar("Checking pictures", len(mine), "picture", disable_tqdm or not accelerator.is_main_process) as bar:
        for error in loader:
            errors.append(error)
            bar.update()
    found = [(*picture, error) for picture, error in zip(mine, errors, strict=True) if error]
    bad = sorted(gather_object(found))
    if not bad:
        return {}
    listed = "; ".join(error for _, _, error in bad[:NUM_NAMED])
    listed += f"; and {len(bad) - NUM_NAMED} more" if len(bad) > NUM_NAMED else ""
    if not skip_bad_images:
        raise ValueError(
            f"{len(bad)} of {len(pictures)} pictures cannot be read. Repair or remove them, or leave them out with "
            f"`skip_bad_images`: {listed}"
        )
    skipped: dict[str, list[int]] = {}
    for name, index, _ in bad:
        skipped.setdefault(name, []).append(index)
    for name, places in chosen.items():
        if places and places <= set(skipped.get(evaluation.sources[name].name, ())):
            raise ValueError(f"None of the {len(places)} pictures of column {name!r} can be read: {listed}")
    if accelerator.is_main_process:
        logger.warning(f"Leaving out {len(bad)} of {len(pictures)} pictures that cannot be read: {listed}")
    return skipped
