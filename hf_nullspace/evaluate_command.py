"""`hf-nullspace evaluate` and its example: the robustness of one or several models on one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel

from .command_line import CommandParser, FlagRule, check_at_least, check_output_dir, expand_paths
from .data import draw_images
from .digits import load_digits_splits, train_digits_model
from .image_folders import check_path
from .image_tables import check_dataset_name, read_dataset, read_folder
from .loading import ModelArguments, check_model_name, load_model, model_rules
from .robustness import RobustnessReport, compare_reports, draw_figure, evaluate_robustness, public_name
from .robustness.datasets import RobustnessDataset, load_robustness_dataset
from .robustness.imagenet import imagenet_wnids
from .robustness.packages import check_packages
from .robustness.profiles import resolve_profile


if TYPE_CHECKING:
    from datasets import Dataset

DIGITS_MODEL = "digits-vit"
COMPARISON_NAME, COMPARISON_FIGURE = "comparison.md", "comparison.png"


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
        metadata={"help": "Other datasets of the profile, each as NAME=FOLDER_OR_HUB_ID, such as imagenet-a=data/a."},
    )
    output_dir: str = field(default="outputs/robustness", metadata={"help": "Folder that reports go into."})
    batch_size: int = field(default=64, metadata={"help": "Images of a process at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read and corrupt images meanwhile."})
    digits_max_steps: int = field(default=400, metadata={"help": "Steps that the digits model is trained for first."})
    seed: int = field(default=42, metadata={"help": "Seed of the digits model and of the choice of images."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Hide the progress bar."})

    def __post_init__(self):
        expand_paths(self, "models", "images", "dataset_name", "profile", "output_dir")
        check_at_least(self, max_images=1, batch_size=1, num_workers=0, digits_max_steps=1)
        check_output_dir(self.output_dir)
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
    model_args, args = CommandParser((ModelArguments, EvaluateArguments), prog, ["models"], rules=RULES).parse(argv)
    if model_args.model_name_or_path is not None:
        args.models = [model_args.model_name_or_path, *args.models]
    dataset_locations(args.datasets)
    check_packages(resolve_profile(args.profile))
    if args.images is not None:  # what is wrong with it is known before a model is loaded or trained
        read_folder(args.images, "images")
    elif args.dataset_name is not None:
        check_dataset_name(args.dataset_name)
    return model_args, args


def dataset_locations(values: Sequence[str]) -> dict[str, str]:
    """
    The value of `--datasets`: folder or Hub id by name.

    Raises:
        `ValueError`: If one is not NAME=FOLDER_OR_HUB_ID.
    """
    unnamed = [value for value in values if "=" not in value]
    if unnamed:
        raise ValueError(f"`--datasets` takes NAME=FOLDER_OR_HUB_ID, but got {unnamed}.")
    return dict(value.split("=", 1) for value in values)


def evaluate_models(model_args: ModelArguments, args: EvaluateArguments) -> list[RobustnessReport]:
    """
    Measures every model and saves its report; several models are compared in `comparison.md` and a figure.

    Args:
        model_args ([`ModelArguments`]): How to load the models.
        args ([`EvaluateArguments`]): Everything else.
    """
    names = distinct_names(args.models) or [DIGITS_MODEL]
    reports, folder = [], Path(args.output_dir)
    for name, source in zip(names, args.models or [None], strict=True):
        model, image_processor = _load(source, model_args, args)
        accelerator = Accelerator()
        report = evaluate_robustness(
            model.to(accelerator.device),
            image_processor,
            load_evaluation_dataset(args, model),
            args.profile,
            accelerator=accelerator,
            output_dir=folder if len(names) == 1 else folder / name.replace("/", "--"),
            datasets=dataset_locations(args.datasets),
            image_column_name=args.image_column_name,
            label_column_name=args.label_column_name,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            model_name=name,
            disable_tqdm=args.disable_tqdm,
        )
        reports.append(report)
    if len(reports) > 1 and accelerator.is_main_process:
        (folder / COMPARISON_NAME).write_text(compare_reports(reports) + "\n", encoding="utf-8")
        draw_figure(reports, folder / COMPARISON_FIGURE)
    return reports


def load_evaluation_dataset(args: EvaluateArguments, model: PreTrainedModel) -> Dataset | RobustnessDataset:
    """
    The images that the flags name: a folder, a dataset, or the test split of the digits.

    A folder whose classes are WordNet ids is ImageNet or a part of it, unless the model has classes of these names.
    """
    if args.images is not None:
        check_path(args.images, "images")
        names = sorted(entry.name for entry in Path(args.images).iterdir() if entry.is_dir())
        if names and set(names) <= set(imagenet_wnids()) and not set(names) <= set(model.config.id2label.values()):
            subset = names if len(names) < len(imagenet_wnids()) else None
            chosen = {"class_subset": subset, "max_images": args.max_images, "seed": args.seed}
            chosen["check_images"] = False  # the evaluation names an unreadable picture when it comes to it
            return load_robustness_dataset("imagenet", args.images, id2label=model.config.id2label, **chosen)
        dataset = read_folder(args.images, "images")
    elif args.dataset_name is not None:
        columns = (args.image_column_name, args.label_column_name)
        splits = read_dataset(args.dataset_name, args.dataset_config_name, *columns, split=args.dataset_split)
        dataset = splits[args.dataset_split]
    else:
        dataset = load_digits_splits(args.seed)["test"]
    return draw_images(dataset, args.max_images, args.seed)


def distinct_names(models: Sequence[str]) -> list[str]:
    """A name for each model: its Hub id or the last part of its path, with a number where another has it already."""
    names: list[str] = []
    for model in models:
        name = public_name(model)
        same = [other for other in names if other == name or other.startswith(f"{name}-")]
        names.append(f"{name}-{len(same) + 1}" if name in names else name)
    return names


def _load(
    source: str | None, model_args: ModelArguments, args: EvaluateArguments
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    if source is None:
        return train_digits_model(load_digits_splits(args.seed), args.digits_max_steps, args.seed)
    return load_model(replace(model_args, model_name_or_path=source))
