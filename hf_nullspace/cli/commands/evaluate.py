"""Measure the robustness of classifiers: `evaluate [MODEL ...] [--images DIR] [--profile quick]`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator, PartialState
from transformers import BaseImageProcessor, PreTrainedModel

from ...data.digits import load_digits_splits
from ...data.image_tables import check_dataset_name, read_dataset, read_folder
from ...data.robustness_datasets import RobustnessDataset, load_if_imagenet
from ...data.splits import draw_images
from ...models.digits_vit import build_digits_model
from ...models.loading import ModelArguments, check_model_name, load_model
from ...robustness.comparison import compare_reports
from ...robustness.evaluation import evaluate_robustness, public_name
from ...robustness.packages import check_packages
from ...robustness.picture_check import check_pictures
from ...robustness.preparation import prepare_evaluation
from ...robustness.profiles import describe_columns, resolve_profile
from ...robustness.report import REPORT_NAME, RobustnessReport, draw_figure
from ...utils.files import write_text
from ...utils.flags import FlagRule, check_at_least, check_output_dir, dataset_locations, expand_paths
from ...utils.phases import announced, progress_shown
from ..arguments import model_rules
from ..digits import train_digits_model
from ..parser import CommandParser


if TYPE_CHECKING:
    from datasets import Dataset

DIGITS_MODEL = "digits-vit"
DIGITS = [str(digit) for digit in range(10)]
COMPARISON_NAME = "comparison.md"
COMPARISON_FIGURE = "comparison.png"


@dataclass
class EvaluateArguments:
    """Which models are measured, on which images, and where results go."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "Hub ids or folders. Default: a small ViT, trained on digits first."}
    )
    images: str | None = field(
        default=None, metadata={"help": "Folder with one sub-folder of pictures for each class. Default: the digits."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id or folder of a dataset, instead."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_split: str = field(default="validation", metadata={"help": "Its split."})
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})
    max_images: int | None = field(default=None, metadata={"help": "Measure on this many images at most."})
    profile: str = field(default="quick", metadata={"help": "Name of a profile, or a JSON file with one."})
    datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Other datasets of the profile, each as NAME=FOLDER_OR_HUB_ID; the names are listed below."},
    )
    skip_bad_images: bool = field(default=False, metadata={"help": "Leave out pictures that cannot be read."})
    output_dir: str = field(default="outputs/robustness", metadata={"help": "Folder that reports go into."})
    batch_size: int = field(default=64, metadata={"help": "Images of a process at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read and corrupt images meanwhile."})
    digits_max_steps: int = field(default=400, metadata={"help": "Steps that the digits model is trained for first."})
    seed: int = field(default=42, metadata={"help": "Seed of the digits model and of the choice of images."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Hide the progress bar."})

    def __post_init__(self):
        expand_paths(self, "models", "images", "dataset_name", "profile", "output_dir")
        check_at_least(self, max_images=1, batch_size=1, num_workers=0, digits_max_steps=1)
        check_output_dir(self.output_dir, images=self.images, dataset_name=self.dataset_name)
        for name in self.models:
            check_model_name(name, "models")


RULES = [
    *model_rules("models", "model_name_or_path", also=["image_size"]),
    FlagRule("images", "the images come from one of them", excludes=("dataset_name",)),
    *(
        FlagRule(name, "it belongs to a dataset", needs=("dataset_name",))
        for name in ("dataset_config_name", "dataset_split")
    ),
    *(
        FlagRule(name, "the digits have columns of their own", needs=("images", "dataset_name"))
        for name in ("image_column_name", "label_column_name")
    ),
    FlagRule("digits_max_steps", "the named models are not trained here", excludes=("models", "model_name_or_path")),
]


def parse_evaluate_arguments(argv: Sequence[str], prog: str) -> tuple[ModelArguments, EvaluateArguments]:
    """The flags of `evaluate`; models may come first, without their flag."""
    parser = CommandParser((ModelArguments, EvaluateArguments), prog, ["models"], rules=RULES)
    parser.epilog = f"{parser.epilog}\n\n{describe_columns()}"
    model_args, args = parser.parse(argv)
    if model_args.model_name_or_path is not None:
        args.models = [model_args.model_name_or_path, *args.models]
    dataset_locations(args.datasets)
    check_packages(resolve_profile(args.profile))
    if args.images is not None:  # errors are raised before a model is loaded or trained
        read_folder(args.images, "images")
    elif args.dataset_name is not None:
        check_dataset_name(args.dataset_name)
    return model_args, args


def evaluate_models(model_args: ModelArguments, args: EvaluateArguments) -> list[RobustnessReport]:
    """
    Measures every model and saves its report; several models are compared in `comparison.md` and a figure.

    All models and all pictures are checked first.

    Args:
        model_args ([`ModelArguments`]): How to load the models.
        args ([`EvaluateArguments`]): Everything else.
    """
    names = distinct_names(args.models) or [DIGITS_MODEL]
    models = args.models or [None]
    folder = Path(args.output_dir)
    accelerator = Accelerator()
    options: dict[str, Any] = {
        "profile": resolve_profile(args.profile),
        "datasets": dataset_locations(args.datasets),
        "image_column_name": args.image_column_name,
        "label_column_name": args.label_column_name,
        "batch_size": args.batch_size,
    }
    folders = [folder if len(names) == 1 else folder / name.replace("/", "--") for name in names]
    with progress_shown():
        images = read_images(args)
        with announced(f"Checking {len(names)} model{'s' * (len(names) > 1)} and {len(images)} pictures"):
            check_models(names, models, folders, images, model_args, args, accelerator, options)
        reports: list[RobustnessReport] = []
        for place, (name, source) in enumerate(zip(names, models, strict=True)):
            model, image_processor = _load(source, model_args, args)
            seconds = [sum(report.seconds.values()) / accelerator.num_processes for report in reports]
            of_all = f" (model {place + 1} of {len(names)})" if len(names) > 1 else ""
            with announced(f"Measuring the robustness of {name!r}{of_all}", max(seconds, default=None)):
                report = evaluate_robustness(
                    model.to(accelerator.device),
                    image_processor,
                    dataset_for(images, args, model),
                    accelerator=accelerator,
                    output_dir=folders[place],
                    num_workers=args.num_workers,
                    model_name=name,
                    skip_bad_images=args.skip_bad_images,
                    disable_tqdm=args.disable_tqdm,
                    **options,
                )
            reports.append(report)
    if len(reports) > 1 and accelerator.is_main_process:
        write_text(folder / COMPARISON_NAME, compare_reports(reports) + "\n")
        draw_figure(reports, folder / COMPARISON_FIGURE)
    return reports


def check_models(
    names: Sequence[str],
    models: Sequence[str | None],
    folders: Sequence[Path],
    images: Dataset,
    model_args: ModelArguments,
    args: EvaluateArguments,
    accelerator: Accelerator,
    options: dict[str, Any],
) -> None:
    """
    Tries each model on the images, one model in memory at a time, and reads all pictures once per preprocessing.

    Raises:
        `ValueError`, `OSError`: If a model cannot be measured; the message names it.
    """
    read: list[Any] = []
    for name, source, folder in zip(names, models, folders, strict=True):
        try:
            model, image_processor = build_digits_model(DIGITS) if source is None else _load(source, model_args, args)
            model = model.to(accelerator.device).eval()
            dataset = dataset_for(images, args, model)
            evaluation = prepare_evaluation(
                model, image_processor, dataset, mixed_precision=accelerator.mixed_precision, **options
            )
            reader = evaluation.run["preprocessing"]
            if reader not in read and not (folder / REPORT_NAME).is_file():
                read.append(reader)
                check_pictures(
                    evaluation,
                    skip_bad_images=args.skip_bad_images,
                    accelerator=accelerator,
                    num_workers=args.num_workers,
                    disable_tqdm=args.disable_tqdm,
                )
        except (ValueError, OSError) as error:
            if len(names) == 1:
                raise
            raise type(error)(f"{name}: {error}") from error


def read_images(args: EvaluateArguments) -> Dataset:
    """
    The images that the flags name: a folder, a dataset, or the test split of the digits.

    Raises:
        `FileNotFoundError`: If there is no such folder.
        `ValueError`: If it holds no pictures, or the dataset has no such split.
    """
    columns = {"image_column_name": args.image_column_name, "label_column_name": args.label_column_name}
    if args.images is not None:
        return read_folder(args.images, "images", **columns)
    if args.dataset_name is None:
        return load_digits_splits(args.seed)["test"]
    splits = read_dataset(args.dataset_name, args.dataset_config_name, **columns, split=args.dataset_split)
    return splits[args.dataset_split]


def dataset_for(images: Dataset, args: EvaluateArguments, model: PreTrainedModel) -> Dataset | RobustnessDataset:
    """
    The images on which a model is measured, at most `max_images`.

    A folder whose classes are WordNet ids is ImageNet or a part of it, resized as ImageNet's pictures are, unless the
    model has classes of these names.
    """
    if args.images is not None:
        dataset = load_if_imagenet(args.images, model.config.id2label, args.max_images, args.seed)
        if dataset is not None:
            return dataset
    return draw_images(images, args.max_images, args.seed)


def distinct_names(models: Sequence[str]) -> list[str]:
    """A name for each model: its Hub id or the last part of its path, with a number if it is already taken."""
    names: list[str] = []
    for model in models:
        name = public_name(model)
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(name if name not in names else next(other for other in numbered if other not in names))
    return names


def _load(
    source: str | None, model_args: ModelArguments, args: EvaluateArguments
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    if source is None:
        return train_digits_model(load_digits_splits(args.seed), args.digits_max_steps, args.seed)
    return load_model(replace(model_args, model_name_or_path=source))


def run(argv: list[str]) -> None:
    model_args, args = parse_evaluate_arguments(argv, "hf-nullspace evaluate")
    reports = evaluate_models(model_args, args)
    if PartialState().is_main_process:
        print("\n\n".join(report.to_markdown() for report in reports))
        if len(reports) > 1:
            print("\n" + Path(args.output_dir, COMPARISON_NAME).read_text(encoding="utf-8").rstrip("\n"))
        print(f"\nReports and figures are in {args.output_dir}")
