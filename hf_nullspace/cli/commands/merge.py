"""Average a model's weights before and after finetuning: `merge START FINETUNED [--weight 0.5] [--choose_on DIR]`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from accelerate import Accelerator
from huggingface_hub import ModelCard, ModelCardData
from transformers import BaseImageProcessor, PreTrainedModel

from ...comparison.statistics import CLEAN, CORRUPTIONS, MEAN, column_groups
from ...data.image_folders import check_path
from ...data.image_tables import read_folder
from ...data.splits import draw_images
from ...models.interpolation import interpolate
from ...models.loading import ModelArguments, check_model_name, load_model
from ...robustness.evaluation import evaluate_robustness, public_name
from ...robustness.packages import check_packages
from ...robustness.profiles import Profile, resolve_profile
from ...robustness.report_markdown import table
from ...utils.escaping import markdown_text
from ...utils.files import write_text
from ...utils.flags import FlagRule, check_at_least, check_output_dir, expand_paths
from ...utils.phases import progress_shown
from ..parser import CommandParser


FACTS_NAME = "merge.json"


@dataclass
class MergeArguments:
    """Which weights are averaged, how the weight is chosen, and where the model goes."""

    start: str = field(metadata={"help": "Hub id or folder of the model before finetuning, with the same head."})
    finetuned: str = field(metadata={"help": "Hub id or folder of the finetuned model."})
    output_dir: str = field(default="outputs/merged", metadata={"help": "Folder that the model is written into."})
    weight: float = field(default=0.5, metadata={"help": "Share of the finetuned weights, from 0 to 1."})
    choose_on: str | None = field(
        default=None,
        metadata={
            "help": "Folder with one sub-folder of validation pictures for each class, to choose the weight on."
        },
    )
    choose_by: str = field(
        default=MEAN,
        metadata={
            "help": "Accuracy that the weight is chosen by: on clean pictures, on corrupted ones, or the mean of both.",
            "choices": [CLEAN, CORRUPTIONS, MEAN],
        },
    )
    weights: list[float] = field(
        default_factory=lambda: [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], metadata={"help": "Weights to choose from."}
    )
    profile: str = field(
        default="quick",
        metadata={"help": "Name of a profile, or a JSON file with one, whose corruptions are measured."},
    )
    max_images: int | None = field(default=None, metadata={"help": "Choose on this many pictures at most."})
    seed: int = field(default=42, metadata={"help": "Seed of the choice of pictures."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the models."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Hide the progress bar."})

    def __post_init__(self):
        expand_paths(self, "start", "finetuned", "output_dir", "choose_on", "profile")
        check_at_least(self, max_images=1)
        check_output_dir(self.output_dir, choose_on=self.choose_on)
        for flag in ("start", "finetuned"):
            check_model_name(getattr(self, flag), flag)
        if self.choose_on is not None:
            check_path(self.choose_on, "choose_on")
            check_packages(choice_profile(self.profile))
        outside = [weight for weight in (self.weight, *self.weights) if not 0 <= weight <= 1]
        if outside or not self.weights:
            raise ValueError(f"`--weight` and `--weights` must lie between 0 and 1, but got {outside or 'none'}.")
        if Path(self.output_dir).is_dir() and any(Path(self.output_dir).iterdir()):
            raise ValueError(f"`--output_dir {self.output_dir}` holds files already. Name a new folder.")


RULES = [
    FlagRule("weight", "there the weight is chosen", excludes=("choose_on",)),
    *(
        FlagRule(name, "the weight is given", needs=("choose_on",))
        for name in ("choose_by", "weights", "profile", "max_images", "seed", "disable_tqdm")
    ),
]


def merge(args: MergeArguments) -> float:
    """
    Writes the interpolated model, its image processor and its card.

    Args:
        args ([`MergeArguments`]): The flags.

    Returns:
        `float`: The weight.

    Raises:
        `ValueError`: If the two models have no weights in between, see [`interpolate`].
    """
    (start, _), (finetuned, processor) = (
        load_model(ModelArguments(name, trust_remote_code=args.trust_remote_code))
        for name in (args.start, args.finetuned)
    )
    weight = args.weight
    rows: list[dict[str, float]] = []
    if args.choose_on is not None:
        rows = measure_weights(start, finetuned, processor, args)
        weight = best_weight(rows, args.choose_by)
        print(f"\n{choice_table(rows, weight)}\n")
    interpolate(start, finetuned, weight).save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    facts = {"start": public_name(args.start), "finetuned": public_name(args.finetuned), "weight": weight}
    facts |= {"chosen_by": args.choose_by if rows else None, "measured": rows}
    write_text(Path(args.output_dir, FACTS_NAME), json.dumps(facts, indent=2) + "\n")
    write_merged_card(args, weight, rows)
    return weight


def choice_profile(name: str) -> Profile:
    """
    The columns of a profile that a weight is chosen by: those without an attack.

    Args:
        name (`str`): Name of the profile, or its JSON file.

    Raises:
        `ValueError`: If it has no clean column, or none under a corruption.
    """
    profile = resolve_profile(name)
    columns = tuple(column for column in profile.columns if column.attack is None)
    if not {CLEAN, CORRUPTIONS} <= set(column_groups(columns)):
        raise ValueError(
            f"The profile {profile.name!r} needs a clean column, and one under a corruption, to choose by."
        )
    return Profile(f"{profile.name}-without-attacks", columns, profile.seed)


def measure_weights(
    start: PreTrainedModel, finetuned: PreTrainedModel, processor: BaseImageProcessor, args: MergeArguments
) -> list[dict[str, float]]:
    """Accuracies of each weight in per cent: a row with `weight`, `clean`, `corruptions` and their `mean`."""
    profile = choice_profile(args.profile)
    groups = column_groups(profile.columns)
    images = draw_images(read_folder(args.choose_on, "choose_on"), args.max_images, args.seed)
    accelerator = Accelerator()
    rows = []
    for weight in dict.fromkeys(args.weights):
        model = interpolate(start, finetuned, weight).to(accelerator.device).eval()
        report = evaluate_robustness(
            model, processor, images, profile, accelerator=accelerator, disable_tqdm=args.disable_tqdm
        )
        row = {group: fmean(report.accuracies[name] for name in groups[group]) for group in (CLEAN, CORRUPTIONS)}
        rows.append({"weight": weight, **row, MEAN: fmean(row.values())})
    return rows


def best_weight(rows: Sequence[dict[str, float]], choose_by: str) -> float:
    """The weight of the highest accuracy; of several, the one nearest to a half."""
    best = max(row[choose_by] for row in rows)
    return min((row["weight"] for row in rows if row[choose_by] == best), key=lambda weight: abs(weight - 0.5))


def choice_table(rows: Sequence[dict[str, float]], chosen: float) -> str:
    """The accuracies of each weight, as Markdown; the chosen one in bold."""
    lines = []
    for row in rows:
        mark = "**" if row["weight"] == chosen else ""
        cells = {group: f"{mark}{row[group]:.2f}{mark}" for group in (CLEAN, CORRUPTIONS, MEAN)}
        lines.append({"weight of the finetuned model": f"{mark}{row['weight']:g}{mark}", **cells})
    return table(lines)


def write_merged_card(args: MergeArguments, weight: float, rows: Sequence[dict[str, float]]) -> None:
    """The card of the merged model: what it was made of, and what its weight was chosen by."""
    start, finetuned = (markdown_text(public_name(name)) for name in (args.start, args.finetuned))
    parts = [
        f"# {markdown_text(Path(args.output_dir).resolve().name)}",
        f"The weights of this model are `{1 - weight:g} * start + {weight:g} * finetuned` (WiSE-FT, arXiv 2109.01903), where "
        f"start is {start} and finetuned is {finetuned}. It was not trained itself.",
        'It loads in plain transformers: `pipeline("image-classification", model="path/to/this/folder")`.',
    ]
    if rows:
        count = "" if args.max_images is None else f", at most {args.max_images} of them"
        parts += [
            f"The weight was chosen by `{args.choose_by}` on validation pictures{count}: accuracy in per cent on clean and on "
            "corrupted ones. The best of several is too good a number; measure the model on other pictures.",
            choice_table(rows, weight),
        ]
    # A Hub id is a base model; the name of a folder is none.
    bases = [name for name in (args.start, args.finetuned) if not Path(name).exists()]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["merge", "arxiv:2109.01903"],
        base_model=bases or None,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").save(Path(args.output_dir, "README.md"))


def run(argv: list[str]) -> None:
    parser = CommandParser((MergeArguments,), "hf-nullspace merge", words=["start", "finetuned"], rules=RULES)
    (args,) = parser.parse(argv)
    with progress_shown():
        weight = merge(args)
    print(f"The model with weight {weight:g} is in {args.output_dir}")
