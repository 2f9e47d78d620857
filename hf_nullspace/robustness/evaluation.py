"""Measures a classifier under a profile: on any number of processes, in shards that are kept as they are finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from ..data.robustness_datasets import RobustnessDataset
from ..models.class_names import class_names
from ..models.frozen import frozen
from ..utils.current_command import current_command
from ..utils.processes import on_main_process
from ..utils.random import preserved_random_state
from .outcomes import ShardStore, check_manifest
from .picture_check import check_pictures
from .preparation import Evaluation, prepare_evaluation
from .profiles import Profile
from .report import REPORT_NAME, RobustnessReport
from .report_markdown import competition
from .shards import Shard, ShardRunner, plan_shards


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

PARTIAL_FOLDER = ".partial"


def evaluate_robustness(
    model: nn.Module,
    image_processor: Callable,
    dataset: Dataset | RobustnessDataset,
    profile: str | os.PathLike | Profile = "standard",
    *,
    accelerator: Accelerator | None = None,
    output_dir: str | os.PathLike | None = None,
    figures: bool = True,
    datasets: Mapping[str, str | os.PathLike | RobustnessDataset] | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    batch_size: int = 64,
    num_workers: int = 0,
    model_name: str | None = None,
    skip_bad_images: bool = False,
    disable_tqdm: bool = False,
) -> RobustnessReport:
    """
    Measures a classifier's accuracy under every column of a profile.

    A prediction is the largest of all logits of the model, even if the images show only some of its classes. The
    exception are datasets published with the rule that only their own classes compete. Predictions from logits that are
    not finite count as wrong. Attacks, and the columns under them, are computed in float32.

    Corruptions apply at the model's own resolution, and the radii of attacks are in units of pixels in [0, 1]. Every
    random choice depends on an image's index in its dataset. The numbers are therefore independent of the number of
    processes, and a run that was stopped gives the same numbers when it is called again with the same `output_dir`.

    Args:
        model (`nn.Module`):
            The classifier; in eval mode during the call, with a warning if it was not, and restored afterwards.
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
        figures (`bool`, *optional*, defaults to `True`):
            Whether the saved report has its figure and its page.
        datasets (`Mapping[str, str or RobustnessDataset]`, *optional*):
            Folder or Hub id of each other dataset that the profile names, or the dataset as
            [`load_robustness_dataset`] gives it. Columns of a dataset that is not named are listed as not measured.
        image_column_name, label_column_name (`str`, *optional*):
            The columns of `dataset`.
        batch_size (`int`, *optional*, defaults to 64):
            Images of a process at a time.
        num_workers (`int`, *optional*, defaults to 0):
            Worker processes that read and corrupt pictures, for each process of the evaluation.
        model_name (`str`, *optional*):
            The model's name in the report; by default the id that it was loaded with, never more of a local path than
            its last part.
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Leave out pictures that cannot be read, with a warning; the report names them. By default they are an error,
            which names them all.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        [`RobustnessReport`]: On every process.

    Raises:
        `ValueError`: If the profile, the dataset or the model cannot be used, some pictures cannot be read, or
            `output_dir` holds another evaluation; all of that before the first image is measured.
        `ImportError`: If a package is missing that a column needs.
        `OSError`: If the disk is full; what is finished stays in `output_dir`, and another call goes on from there.

    Example:

    ```python
    >>> report = evaluate_robustness(model, image_processor, dataset, profile="preview")
    >>> list(report.columns)
    ['clean', 'gaussian_noise_3', 'contrast_3', 'jpeg_compression_3', 'fgsm']
    >>> report.save("outputs/robustness")
    ```
    """
    accelerator = accelerator or Accelerator()
    model = accelerator.unwrap_model(model)
    was_training = any(module.training for module in model.modules())
    evaluation = prepare_evaluation(
        model,
        image_processor,
        dataset,
        profile,
        datasets=datasets,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
        batch_size=batch_size,
        mixed_precision=accelerator.mixed_precision,
    )
    store = None
    if output_dir is not None:
        store = ShardStore(Path(output_dir, PARTIAL_FOLDER))
        report = _finished_report(Path(output_dir), evaluation.manifest, accelerator, store)
        if report is not None:
            return report
    if accelerator.is_main_process:
        _announce(evaluation, model, was_training)
    skipped = check_pictures(
        evaluation,
        skip_bad_images=skip_bad_images,
        accelerator=accelerator,
        num_workers=num_workers,
        disable_tqdm=disable_tqdm,
    )
    run = {**evaluation.run, "skipped_images": skipped} if skipped else evaluation.run
    left_out = {name: skipped.get(source.name, []) for name, source in evaluation.sources.items()}
    shards = plan_shards(evaluation.profile, evaluation.sources, batch_size, left_out)
    with preserved_random_state(), frozen(model):
        runner = ShardRunner(evaluation.pixel_model, evaluation.images, accelerator, num_workers, disable_tqdm)
        outcomes, seconds, examples = runner.run(shards, store, {"profile": evaluation.profile.hash, **run})
    for name, images in outcomes.items():
        images.label = torch.tensor(evaluation.sources[name].labels)[images.indices]
    examples.classes = class_names(model)
    examples.command = current_command()
    report = RobustnessReport.of(
        model_name or _own_name(model),
        evaluation.profile,
        outcomes,
        evaluation.not_measured,
        run,
        seconds_by_column(shards, seconds),
        examples,
    )
    if accelerator.is_main_process:
        for warning in report.warnings:
            logger.warning(warning)
    if output_dir is not None:

        def save() -> None:
            report.save(output_dir, figures)
            store.remove()

        on_main_process(accelerator, save)
    return report


def _announce(evaluation: Evaluation, model: nn.Module, was_training: bool) -> None:
    """Logs which classes compete, and warns if the model was in training mode."""
    for text, names in competition(evaluation.run).items():
        logger.info(f"{', '.join(names)}: a prediction is the largest of {text}.")
    if was_training:
        logger.warning(
            f"{type(model).__name__} was in training mode, where dropout is on; it is measured in evaluation mode."
        )


def _finished_report(
    output_dir: Path, manifest: dict[str, Any], accelerator: Accelerator, store: ShardStore
) -> RobustnessReport | None:
    """The report that is in the folder already; the outcomes of images are with that of the main process only."""

    loaded: list[RobustnessReport] = []

    def read() -> dict[str, Any] | None:
        if not Path(output_dir, REPORT_NAME).is_file():
            return None
        report = RobustnessReport.load(output_dir)
        check_manifest({"profile": report.profile.hash, **report.run}, manifest, output_dir)
        logger.info(f"{str(output_dir)!r} holds this evaluation, finished; it is not repeated.")
        store.remove()  # a run that was killed after its report leaves its parts
        loaded.append(report)
        return report.to_dict()

    values = on_main_process(accelerator, read)
    if values is None:
        return None
    return loaded[0] if accelerator.is_main_process else RobustnessReport.from_dict(values)


def seconds_by_column(shards: list[Shard], seconds: torch.Tensor) -> dict[str, float]:
    """Time of each column, summed over its shards."""
    totals: dict[str, float] = {}
    for shard, elapsed in zip(shards, seconds.tolist(), strict=True):
        totals[shard.column.name] = totals.get(shard.column.name, 0.0) + elapsed
    return totals


def public_name(name: str) -> str:
    """A model's id; of a local path only the last part."""
    return Path(name).resolve().name if Path(name).exists() or Path(name).is_absolute() else name


def _own_name(model: nn.Module) -> str:
    return public_name(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
