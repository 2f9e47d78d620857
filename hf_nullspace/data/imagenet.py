"""The 1000 classes of ImageNet, and the lookup of classes by name."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)

NUM_CLASSES = 1000
# The corruptions that ImageNet-C was published with, and their severities.
IMAGENET_C_CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
IMAGENET_C_SEVERITIES = (1, 2, 3, 4, 5)


@lru_cache(maxsize=1)
def imagenet_classes() -> dict:
    """The table of ImageNet's classes, as the package keeps it: `"classes"` has the synonyms of each WordNet id."""
    return json.loads(Path(__file__).with_name("imagenet_classes.json").read_text(encoding="utf-8"))


def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's classes, sorted: a class's index is its place in this list."""
    return tuple(imagenet_classes()["classes"])


def imagenet_a_indices() -> tuple[int, ...]:
    """The indices of the 200 classes of ImageNet-A (Hendrycks et al., 2021, arXiv 1907.07174)."""
    return tuple(imagenet_classes()["imagenet_a"])


def imagenet_r_indices() -> tuple[int, ...]:
    """The indices of the 200 classes of ImageNet-R (Hendrycks et al., 2021, arXiv 2006.16241)."""
    return tuple(imagenet_classes()["imagenet_r"])


@lru_cache(maxsize=1)
def _candidates() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The classes by WordNet id or all synonyms, and by first synonym."""
    full = defaultdict(list)
    first = defaultdict(list)
    for index, (wnid, synonyms) in enumerate(imagenet_classes()["classes"].items()):
        full[wnid].append(index)
        full[synonyms.lower()].append(index)
        first[synonyms.split(",")[0].lower()].append(index)
    return dict(full), dict(first)


def imagenet_candidates(names: Sequence[str]) -> list[list[int]]:
    """
    The ImageNet classes that each name may stand for: one, or several where the name is ambiguous.

    Args:
        names (`Sequence[str]`): WordNet ids (`"n01440764"`), WordNet's synonyms (`"tench, Tinca tinca"`, as in
            `config.id2label` of Transformers' classifiers) or the first of them (`"tench"`). Where 1000 names stand in
            ImageNet's order, each stands for one class: `"crane"` for either of its two, and up to ten names may be spelt
            in another way.

    Raises:
        `ValueError`: If a name is unknown.
    """
    full, first = _candidates()
    keys = [str(name).strip().lower() for name in names]
    matches = [full.get(key) or first.get(key, []) for key in keys]
    unknown = [name for name, found in zip(names, matches, strict=True) if not found]
    in_order = len(keys) == NUM_CLASSES and all(
        index in [*matches[index], *first.get(key, [])] for index, key in enumerate(keys) if matches[index]
    )
    if in_order and len(unknown) <= 10:
        if unknown:
            logger.warning(f"Taking {unknown} for ImageNet's classes at their places; the other names are in order.")
        return [[index] for index in range(NUM_CLASSES)]
    if unknown:
        hint = ""
        if len(matches) == NUM_CLASSES + 1:
            hint = " 1001 names usually begin with a background class, which has no pictures here."
        raise ValueError(
            f"{len(unknown)} of {len(names)} class names are not ImageNet's: {unknown[:5]}. Expected WordNet ids such "
            f"as 'n01440764' or synonyms such as 'tench, Tinca tinca'.{hint}"
        )
    return matches


def imagenet_class_indices(names: Sequence[str]) -> list[int]:
    """
    Which of ImageNet's classes each name stands for.

    Args:
        names (`Sequence[str]`): As [`imagenet_candidates`] takes them.

    Returns:
        `list[int]`: Indices from 0 to 999.

    Raises:
        `ValueError`: If a name is unknown or ambiguous, or two names stand for one class.
    """
    matches = imagenet_candidates(names)
    ambiguous = sorted({str(name) for name, found in zip(names, matches, strict=True) if len(found) > 1})
    if ambiguous:
        raise ValueError(f"{ambiguous} may be one of several ImageNet classes; give their WordNet ids instead.")
    indices = [found[0] for found in matches]
    if len(set(indices)) < len(indices):
        twice = sorted({imagenet_wnids()[index] for index in indices if indices.count(index) > 1})
        raise ValueError(f"Several names stand for the ImageNet classes {twice[:5]}; give each class once.")
    return indices
