"""Loads and checks model, profile and datasets of an evaluation before its first image is measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from ..data.dataset_spec import PREPROCESSINGS
from ..data.robustness_datasets import RobustnessDataset, load_robustness_dataset
from ..models.frozen import frozen
from ..models.full_precision import is_half
from ..models.patch_projection import channels_of
from ..models.pixel_model import PixelModel
from ..models.preprocessing import Preprocessing
from ..utils.random import preserved_random_state
from .attacks.search import refuse_other_tasks
from .classifier_check import check_classifier, check_labels
from .outcomes import model_fingerprint
from .packages import check_packages, needed_packages
from .profiles import EVALUATION_SET, Column, Profile, resolve_profile
from .rehearsal import rehearse
from .sources import ColumnImages, ImageSource, image_source, to_pixels


if TYPE_CHECKING:
    from datasets import Dataset

PACKAGES = ("hf_nullspace", "torch", "transformers", "accelerate", "datasets", "numpy", "pillow")
# What an image processor does to a picture, where it says so.
PROCESSOR_FIELDS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_normalize", "image_mean", "image_std"),
    *("do_rescale", "rescale_factor", "rescale_offset", "include_top", "crop_pct", "do_pad", "pad_size"),
    *("do_flip_channel_order", "data_config"),
)
# Pictures that a model is tried on.
NUM_PROBES = 2
# They are the first that can be read among this many.
PROBES_AMONG = 64


@dataclass
class Evaluation:
    """
    An evaluation whose model, profile and datasets have been found to fit each other.

    Args:
        profile ([`Profile`]): Its columns.
        sources (`dict[str, ImageSource]`): The images of each column.
        not_measured (`dict[str, str]`): The reason for each column without images.
        run (`dict`): What else can change a number, as JSON values.
        pixel_model ([`PixelModel`]): The classifier.
        images ([`ColumnImages`]): Reads the images of a batch.
    """

    profile: Profile
    sources: dict[str, ImageSource]
    not_measured: dict[str, str]
    run: dict[str, Any]
    pixel_model: PixelModel
    images: ColumnImages

    @property
    def manifest(self) -> dict[str, Any]:
        """The values that must be equal for two runs to be parts of one evaluation."""
        return {"profile": self.profile.hash, **self.run}


def prepare_evaluation(
    model: nn.Module,
    image_processor: Callable,
    dataset: Dataset | RobustnessDataset,
    profile: str | os.PathLike | Profile = "standard",
    *,
    datasets: Mapping[str, str | os.PathLike | RobustnessDataset] | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    batch_size: int = 64,
    mixed_precision: str = "no",
) -> Evaluation:
    """
    Loads the datasets and tries model, attacks and corruptions on two pictures; the arguments are those of
    [`evaluate_robustness`].

    Raises:
        `ValueError`: If the profile, a dataset or the model cannot be used.
        `ImportError`: If a package is missing that a column needs.
    """
    profile = resolve_profile(profile)
    check_packages(profile)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more, but got {batch_size}.")
    refuse_other_tasks(model)
    preprocessing = Preprocessing.of(image_processor, channels_of(model))
    main = image_source(dataset, model, EVALUATION_SET, image_column_name, label_column_name)
    sources, not_measured = find_sources(profile, main, datasets or {}, model)
    distinct = {source.name: source for source in sources.values()}  # columns share them
    with preserved_random_state(), frozen(model):
        pixel_model = PixelModel(model, preprocessing)
        pixels = probe_pixels(main, preprocessing)
        pixels = None if pixels is None else pixels.to(pixel_model.mean.device)
        num_logits = check_classifier(pixel_model, pixels).shape[1]
        for source in distinct.values():
            check_labels(model, source, num_logits)
        if pixels is not None:
            rehearse(pixel_model, profile, sources, pixels)
    run = {
        "model": model_fingerprint(model),
        "datasets": {name: source.fingerprint() for name, source in distinct.items()},
        "num_images": {name: len(source) for name, source in distinct.items()},
        "batch_size": batch_size,
        "logits": {name: competing_logits(source, num_logits) for name, source in distinct.items()},
        "precision": describe_precision(model, profile, mixed_precision),
        "preprocessing": describe_preprocessing(image_processor, sources),
        "versions": package_versions(profile),
    }
    images = ColumnImages(sources, preprocessing, profile.seed)
    return Evaluation(profile, sources, not_measured, run, pixel_model, images)


def probe_pixels(source: ImageSource, preprocessing: Preprocessing) -> torch.Tensor | None:
    """The first pictures that can be read, as pixels; `None` where they are hard to find, which is reported elsewhere."""
    found = []
    for index in range(min(PROBES_AMONG, len(source))):
        try:
            found.append(source.read([index])[0])
        except ValueError:
            continue
        if len(found) == NUM_PROBES:
            break
    return to_pixels(found, preprocessing, source.preprocessing) if found else None


def competing_logits(source: ImageSource, num_logits: int) -> dict[str, int]:
    """Among how many of the model's logits a prediction is made."""
    kept = source.class_indices
    return {"competing": num_logits if kept is None else len(kept), "all": num_logits}


def describe_precision(model: nn.Module, profile: Profile, mixed_precision: str) -> dict[str, str]:
    """The types of the numbers that the model computes with; attacks leave half precision."""
    names = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    precision = {"weights": ", ".join(names), "autocast": mixed_precision}
    computes_in_half = mixed_precision in ("fp16", "bf16") or is_half(model)
    if computes_in_half and any(column.attack is not None for column in profile.columns):
        precision["columns with an attack"] = "float32"
    return precision


def find_sources(
    profile: Profile,
    main: ImageSource,
    locations: Mapping[str, str | os.PathLike | RobustnessDataset],
    model: nn.Module,
) -> tuple[dict[str, ImageSource], dict[str, str]]:
    """
    The images of each column, and for each column without images the reason.

    Raises:
        `ValueError`: If `locations` names a dataset that the profile does not use, or there is no column to measure.
    """
    used = {column.dataset for column in profile.columns} - {EVALUATION_SET}
    unknown = sorted(set(locations) - used)
    if unknown:
        raise ValueError(
            f"`datasets` names {unknown}, which the profile {profile.name!r} does not use; it uses {sorted(used)}."
        )
    sources, not_measured = {}, {}
    for column in profile.columns:
        if column.dataset == EVALUATION_SET:
            sources[column.name] = main
        elif column.dataset not in locations:
            not_measured[column.name] = f"no location of the dataset {column.dataset!r} was given"
        else:
            sources[column.name] = _load_source(column, locations[column.dataset], model, sources)
    if not sources:
        raise ValueError(f"None of the columns of {profile.name!r} has images: {not_measured}. Name their `datasets`.")
    return sources, not_measured


def _load_source(
    column: Column, location: str | os.PathLike | RobustnessDataset, model: nn.Module, loaded: dict[str, ImageSource]
) -> ImageSource:
    spec = column.published
    name = column.source_name
    for source in loaded.values():
        if source.name == name:
            return source
    if isinstance(location, RobustnessDataset):
        if spec is not None:
            raise ValueError(
                f"{spec.name!r} has {len(spec.corruptions) * len(spec.severities)} parts: name its folder or Hub id, not "
                f"one loaded part ({location})."
            )
    else:
        part: dict[str, Any] = {} if spec is None else {"corruption": column.corruption, "severity": column.severity}
        id2label = getattr(getattr(model, "config", None), "id2label", None)
        location = load_robustness_dataset(column.dataset, location, id2label=id2label, check_images=False, **part)
    return image_source(location, model, name)


def describe_preprocessing(image_processor: Callable, sources: dict[str, ImageSource]) -> dict[str, Any]:
    """What is done to the pictures of each dataset, and the image processor's settings, as JSON values."""
    protocols: dict[str, list[str]] = {PREPROCESSINGS[source.preprocessing]: [] for source in sources.values()}
    for source in sources.values():
        names = protocols[PREPROCESSINGS[source.preprocessing]]
        if (family := source.name.partition("/")[0]) not in names:
            names.append(family)
    fields = {"resizing": protocols, "image_processor": type(image_processor).__name__}
    for name in PROCESSOR_FIELDS:
        value = getattr(image_processor, name, None)
        if name == "resample" and isinstance(value, int):
            value = Image.Resampling(value).name.lower()
        if value is not None:
            fields[name] = json.loads(json.dumps(value, default=dict))
    return fields


def package_versions(profile: Profile) -> dict[str, str]:
    """Versions of Python and of all packages that can change a number of the profile, where they are installed."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    installed = [package for package, _ in needed_packages(profile) if find_spec(package)]
    distributions = packages_distributions() if installed else {}  # looks through everything that is installed
    for package in installed:
        versions[package] = version(distributions.get(package, [package])[0])
    return versions
