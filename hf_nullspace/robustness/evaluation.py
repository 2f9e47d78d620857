"""Measures a classifier under a profile: on any number of processes, in shards that are kept as they are finished."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from transformers.utils import logging

from ..frozen import frozen
from ..patch_embedding import channels_of
from ..preprocessing import Preprocessing
from ..randomness import preserved_random_state
from .classifier_check import check_classifier
from .column_images import ColumnImages, to_pixels
from .datasets import PREPROCESSINGS, RobustnessDataset, load_robustness_dataset
from .outcomes import Outcomes, ShardStore, check_manifest, model_fingerprint
from .packages import check_packages
from .pixel_model import PixelModel
from .processes import on_main_process
from .profiles import EVALUATION_SET, IMAGENET_C, Column, Profile, resolve_profile
from .report import REPORT_NAME, RobustnessReport
from .scoring import aggregate_columns, score_columns, summarize_columns
from .shards import Shard, ShardRunner, plan_shards
from .sources import ImageSource, image_source


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

PARTIAL_FOLDER = ".partial"
PACKAGES = ("hf_nullspace", "torch", "transformers", "accelerate", "datasets", "numpy", "pillow")
# What an image processor does to a picture, where it says so.
PROCESSOR_FIELDS = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_normalize", "image_mean")
PROCESSOR_FIELDS += ("image_std", "do_rescale", "rescale_factor", "rescale_offset", "include_top", "crop_pct")
PROCESSOR_FIELDS += ("do_pad", "pad_size", "do_flip_channel_order", "data_config")


def evaluate_robustness(
    model: nn.Module,
    image_processor: Callable,
    dataset: Dataset | RobustnessDataset,
    profile: str | os.PathLike | Profile = "standard",
    *,
    accelerator: Accelerator | None = None,
    output_dir: str | os.PathLike | None = None,
    datasets: Mapping[str, str | os.PathLike | RobustnessDataset] | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    batch_size: int = 64,
    num_workers: int = 0,
    model_name: str | None = None,
    disable_tqdm: bool = False,
) -> RobustnessReport:
    """
    Measures a classifier's accuracy under every column of a profile.

    Corruptions apply at the model's own resolution, and the radii of attacks are in units of pixels in [0, 1]. Every
    random choice belongs to an image's place in its dataset, so N processes give the numbers of one, and a run that was
    stopped gives, when it is called again with the same `output_dir`, those of a run that was not.

    Args:
        model (`nn.Module`):
            The classifier; in evaluation mode meanwhile, with a warning where it was not, and put back as it was.
        image_processor (`Callable`):
            Its image processor.
        dataset (`datasets.Dataset` or [`RobustnessDataset`]):
            Pictures and labels. A `datasets.Dataset` needs a class list (`ClassLabel`), whose names are matched with the
            model's; the image processor resizes its pictures, and any transform set on it is left out.
        profile (`str`, `os.PathLike` or [`Profile`], *optional*, defaults to `"standard"`):
            A name (`"quick"`, `"standard"`, `"paper"`, `"released"`, `"preview"`), a JSON file or a profile.
        accelerator (`Accelerator`, *optional*):
            For several processes and autocast.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where the report is saved, and finished parts are kept until it is. By default nothing is written.
        datasets (`Mapping[str, str or RobustnessDataset]`, *optional*):
            Folder or Hub id of each other dataset that the profile names (`"imagenet-a"`, ...), or the dataset as
            [`load_robustness_dataset`] gives it. Columns of a dataset that is not named are listed as not measured.
        image_column_name, label_column_name (`str`, *optional*):
            The columns of `dataset`.
        batch_size (`int`, *optional*, defaults to 64):
            Images of a process at a time.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read and corrupt pictures meanwhile, for each process of the evaluation.
        model_name (`str`, *optional*):
            The model's name in the report; by default the id that it was loaded with, never more of a local path than
            its last part.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        [`RobustnessReport`]: On every process.

    Raises:
        `ImportError`: If the profile needs a package that is not installed.
        `ValueError`: If the profile, the dataset or the model cannot be used, or `output_dir` holds another evaluation.

    Example:

    ```python
    >>> report = evaluate_robustness(model, image_processor, dataset, profile="quick")  # doctest: +SKIP
    >>> print(report.to_markdown())  # doctest: +SKIP
    >>> report.save("outputs/robustness")  # doctest: +SKIP
    ```
    """
    profile = resolve_profile(profile)
    check_packages(profile)
    accelerator = accelerator or Accelerator()
    model = accelerator.unwrap_model(model)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more, but got {batch_size}.")
    preprocessing = Preprocessing.of(image_processor, channels_of(model))
    main = image_source(dataset, model, EVALUATION_SET, image_column_name, label_column_name)
    sources, not_measured = find_sources(profile, main, datasets or {}, model)
    distinct = {source.name: source for source in sources.values()}  # columns share them
    run = {
        "model": model_fingerprint(model),
        "datasets": {name: source.fingerprint() for name, source in distinct.items()},
        "num_images": {name: len(source) for name, source in distinct.items()},
        "batch_size": batch_size,
        "preprocessing": describe_preprocessing(image_processor, sources),
        "versions": package_versions(profile),
    }
    manifest = {"profile": profile.hash, **run}
    if output_dir is not None:
        report = _finished_report(Path(output_dir), manifest, accelerator)
        if report is not None:
            return report
    if accelerator.is_main_process and any(module.training for module in model.modules()):
        logger.warning(
            f"{type(model).__name__} was in training mode, where dropout is on; it is measured in evaluation mode."
        )
    shards = plan_shards(profile, sources, batch_size)
    store = None if output_dir is None else ShardStore(Path(output_dir, PARTIAL_FOLDER))
    with preserved_random_state(), frozen(model):
        pixel_model = PixelModel(model, preprocessing)
        images = ColumnImages(sources, preprocessing, profile.seed)
        pixels = to_pixels(main.read(range(min(2, len(main)))), preprocessing, main.preprocessing)
        check_classifier(pixel_model, pixels.to(pixel_model.mean.device))
        runner = ShardRunner(pixel_model, images, accelerator, num_workers, disable_tqdm)
        values, seconds = runner.run(shards, store, manifest)
    outcomes = outcomes_by_column(shards, values)
    rows = score_columns(profile.columns, outcomes)
    bars = summarize_columns(profile.columns, rows, outcomes)
    report = RobustnessReport(
        model_name or _own_name(model),
        profile,
        rows,
        bars,
        not_measured,
        aggregate_columns(profile.columns, rows, bars),
        run,
        seconds_by_column(shards, seconds),
        outcomes,
    )
    if output_dir is not None:
        if accelerator.is_main_process:
            report.save(output_dir)
            store.remove()
        accelerator.wait_for_everyone()
    return report


def _finished_report(output_dir: Path, manifest: dict[str, Any], accelerator: Accelerator) -> RobustnessReport | None:
    """The report that is in the folder already; the outcomes of images are with that of the main process only."""

    loaded: list[RobustnessReport] = []

    def read() -> dict[str, Any] | None:
        if not Path(output_dir, REPORT_NAME).is_file():
            return None
        report = RobustnessReport.load(output_dir)
        check_manifest({"profile": report.profile.hash, **report.run}, manifest, output_dir)
        logger.info(f"{str(output_dir)!r} holds this evaluation, finished; it is not repeated.")
        loaded.append(report)
        return report.to_dict()

    values = on_main_process(accelerator, read)
    if values is None:
        return None
    return loaded[0] if accelerator.is_main_process else RobustnessReport.from_dict(values)


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
    is_part = column.dataset == IMAGENET_C
    name = f"{IMAGENET_C}/{column.corruption}/{column.severity}" if is_part else column.dataset
    for source in loaded.values():
        if source.name == name:
            return source
    if is_part and isinstance(location, RobustnessDataset):
        raise ValueError(f"{IMAGENET_C!r} has 75 parts: name its folder or Hub id, not one loaded part ({location}).")
    if not isinstance(location, RobustnessDataset):
        part = {"corruption": column.corruption, "severity": column.severity} if is_part else {}
        id2label = getattr(getattr(model, "config", None), "id2label", None)
        location = load_robustness_dataset(column.dataset, location, id2label=id2label, check_images=False, **part)
    return image_source(location, model, name)


def outcomes_by_column(shards: list[Shard], values: torch.Tensor) -> dict[str, Outcomes]:
    """The rows of the table of all images, column by column."""
    indices: dict[str, list[int]] = {}
    for shard in shards:
        indices.setdefault(shard.column.name, []).extend(shard.indices)
    parts = values.split([len(places) for places in indices.values()])
    return {
        name: Outcomes(part, torch.tensor(places)) for (name, places), part in zip(indices.items(), parts, strict=True)
    }


def seconds_by_column(shards: list[Shard], seconds: torch.Tensor) -> dict[str, float]:
    """Time of each column, summed over its shards."""
    totals: dict[str, float] = {}
    for shard, elapsed in zip(shards, seconds.tolist(), strict=True):
        totals[shard.column.name] = totals.get(shard.column.name, 0.0) + elapsed
    return totals


def describe_preprocessing(image_processor: Callable, sources: dict[str, ImageSource]) -> dict[str, Any]:
    """What is done to the pictures of each dataset, and the image processor's settings, as JSON values."""
    protocols = {PREPROCESSINGS[source.preprocessing]: [] for source in sources.values()}
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
    optional = {
        "scipy": any(column.corruption is not None and column.dataset != IMAGENET_C for column in profile.columns),
        "pyautoattack": any(column.attack == "autoattack" for column in profile.columns),
    }
    names = [*PACKAGES, *(name for name, is_used in optional.items() if is_used and find_spec(name))]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def public_name(name: str) -> str:
    """A model's id as it is, but no more than the last part of a local path."""
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


def _own_name(model: nn.Module) -> str:
    return public_name(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
