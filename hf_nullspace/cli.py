"""`hf-nullspace COMMAND`: the public functions from a shell."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from accelerate import PartialState
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel, set_seed

from .command_line import CommandParser, FlagRule, check_at_least, check_output_dir, expand_paths, run_command
from .configuration import NullspaceConfig
from .data import image_transform
from .data_collator import NullspaceDataCollator
from .digits import load_digits_splits, train_digits_model
from .encoder_probing import EncoderProbeConfig
from .evaluate_command import evaluate_models, parse_evaluate_arguments
from .finetune_command import main as run_finetune
from .hub import publish
from .hub import verify as verify_checkpoint
from .image_folders import check_path
from .loading import (
    DATA_RULES,
    SOURCES,
    DataArguments,
    ModelArguments,
    load_data,
    load_model,
    method_rules,
    model_rules,
)
from .patch_embedding import channels_of
from .pictures import read_pictures, sample_photographs
from .probe_report import probe as probe_model
from .robustness import compare_reports
from .synthesis import synthesize_noise


@dataclass
class OutputArguments:
    """Where results go, and how images are read."""

    output_dir: str = field(default="outputs/noise", metadata={"help": "Folder that the noise is written into."})
    batch_size: int = field(default=32, metadata={"help": "Images of a synthesis step."})
    digits_max_steps: int = field(default=400, metadata={"help": "Steps that the digits model is trained for first."})

    def __post_init__(self):
        expand_paths(self, "output_dir")
        check_at_least(self, batch_size=1, digits_max_steps=1)
        check_output_dir(self.output_dir)


@dataclass
class HubArguments:
    """What a repository is accessed with."""

    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit."})
    token: str | None = field(default=None, metadata={"help": "Access token; by default the one logged in with."})


@dataclass
class PushArguments:
    """What is published, and where."""

    folder: str = field(metadata={"help": "Folder that finetuning wrote."})
    repo_id: str = field(metadata={"help": "user/repo, or a name of your own."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    commit_message: str = field(default="Upload folder with hf_nullspace", metadata={"help": "Message of the commit."})

    def __post_init__(self):
        expand_paths(self, "folder")


@dataclass
class VerifyArguments:
    """What is verified, and on which pictures."""

    repo_or_folder: str = field(metadata={"help": "user/repo, or a folder."})
    images: list[str] | None = field(default=None, metadata={"help": "Folders of pictures. Default: the digits."})
    max_images: int | None = field(default=None, metadata={"help": "Measure on so many pictures at most."})
    max_seconds: float = field(
        default=1800.0, metadata={"help": "Measure for so long at most; the rest is listed as not checked."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures at a time."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})

    def __post_init__(self):
        expand_paths(self, "repo_or_folder", "images", "cache_dir")
        check_at_least(self, max_images=1, batch_size=1)


@dataclass
class ProbeArguments:
    """What is probed, on which pictures, and where results go."""

    images: str | None = field(
        default=None,
        metadata={"help": "Folder of pictures. Default: the digits; for a named model two photographs, input only."},
    )
    output_dir: str = field(default="outputs/probe", metadata={"help": "Folder that tables and figures go into."})
    max_images: int = field(default=64, metadata={"help": "Pictures read, chosen at random."})
    batch_size: int = field(default=4, metadata={"help": "Pictures of a search step."})
    lambdas: list[float] = field(
        default_factory=lambda: list(EncoderProbeConfig.lambdas),
        metadata={"help": "Weights of the log-norm term, ascending."},
    )
    max_steps: int = field(
        default=EncoderProbeConfig.max_steps, metadata={"help": "Search steps at each lambda; more find larger noise."}
    )
    digits_max_steps: int = field(default=400, metadata={"help": "Steps that the digits model is trained for first."})
    seed: int = field(default=42, metadata={"help": "Seed of every random choice."})

    def __post_init__(self):
        expand_paths(self, "images", "output_dir")
        check_at_least(self, max_images=1, batch_size=1, max_steps=1, digits_max_steps=1)
        check_output_dir(self.output_dir)
        self.config()

    def config(self) -> EncoderProbeConfig:
        """The settings of the encoder's part."""
        return EncoderProbeConfig(
            lambdas=tuple(self.lambdas), max_steps=self.max_steps, max_images=self.max_images, seed=self.seed
        )


def finetune(argv: list[str]) -> None:
    """Finetune a classifier on its own nullspace noise, and save it with the noise: `finetune [MODEL] [--train_dir DIR]`."""
    run_finetune(argv, "hf-nullspace finetune")
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends


def synthesize(argv: list[str]) -> None:
    """Synthesise and certify noise for a classifier, and save it: `synthesize [MODEL] [--train_dir DIR]`."""
    model_args, data_args, config, output = parse_synthesize_arguments(argv, "hf-nullspace synthesize")
    set_seed(config.seed)
    splits, _ = load_data(data_args, config.seed, cache_dir=model_args.cache_dir, token=model_args.token)
    if model_args.model_name_or_path is None:
        model, processor = train_digits_model(splits, output.digits_max_steps, config.seed)
    else:
        model, processor = load_model(model_args)  # with its own head, whatever the classes of the images
    columns = (data_args.image_column_name, data_args.label_column_name)
    transform = image_transform(processor, *columns, channels_of(model))
    # Searched on training images; the certificate is of images that the model was not trained on.
    searched, measured = (
        DataLoader(
            splits[name].with_transform(transform).shuffle(seed=config.seed),
            batch_size=output.batch_size,
            collate_fn=NullspaceDataCollator(),
        )
        for name in ("train", "validation")
    )
    noise = synthesize_noise(model, searched, config, certificate_dataloader=measured)
    noise.save_pretrained(output.output_dir)
    print(noise)


def probe(argv: list[str]) -> None:
    """Measure the exact and the approximate nullspace of a classifier: `probe [MODEL] [--images DIR]`."""
    model_args, probe_args = parse_probe_arguments(argv, "hf-nullspace probe")
    model, processor, pictures = load_probe_inputs(model_args, probe_args)
    report = probe_model(model, processor, pictures, probe_args.config(), batch_size=probe_args.batch_size)
    report.save(probe_args.output_dir)
    print(f"{report.to_markdown()}\n\nTables and figures are in {probe_args.output_dir}")


def push(argv: list[str]) -> None:
    """Publish a folder that finetuning wrote: `push FOLDER REPO`."""
    parser = CommandParser((PushArguments, HubArguments), "hf-nullspace push", words=["folder", "repo_id"])
    push_args, hub_args = parser.parse(argv)
    push_args.private = push_args.private or None  # otherwise as the owner's settings on the Hub say
    info = publish(**vars(push_args), **vars(hub_args))
    print(f"Published: {info.commit_url}")


def verify(argv: list[str]) -> None:
    """Download a checkpoint and check all it claims: `verify REPO_OR_FOLDER [--images DIR ...]`."""
    parser = CommandParser((VerifyArguments, HubArguments), "hf-nullspace verify", words=["repo_or_folder"])
    verify_args, hub_args = parser.parse(argv)
    verification = verify_checkpoint(**vars(verify_args), **vars(hub_args))  # an error exits with 2: none was checked
    print(verification.to_markdown())
    if verification.exit_code == 2:
        print(f"hf-nullspace verify: error: {verification.why_nothing_was_measured()}", file=sys.stderr)
    if verification.exit_code:  # 1 says that a claim is wrong, 2 that nothing was measured
        raise SystemExit(verification.exit_code)


def evaluate(argv: list[str]) -> None:
    """Measure the robustness of classifiers: `evaluate [MODEL ...] [--images DIR] [--profile quick]`."""
    model_args, args = parse_evaluate_arguments(argv, "hf-nullspace evaluate")
    reports = evaluate_models(model_args, args)
    if PartialState().is_main_process:
        print("\n\n".join(report.to_markdown() for report in reports))
        if len(reports) > 1:
            print(f"\n{compare_reports(reports)}")
        print(f"\nReports and figures are in {args.output_dir}")


def parse_probe_arguments(argv: list[str], prog: str) -> tuple[ModelArguments, ProbeArguments]:
    """The flags of `probe`; the model may come first, without its flag."""

    def defaults(given: set[str]) -> dict[str, Any]:
        return {} if "model_name_or_path" in given else DIGITS_PROBE

    rules = [*model_rules("model_name_or_path", also=["image_size"]), DIGITS_STEPS]
    types = (ModelArguments, ProbeArguments)
    return CommandParser(types, prog, ["model_name_or_path"], defaults, rules).parse(argv)


def parse_synthesize_arguments(
    argv: list[str], prog: str
) -> tuple[ModelArguments, DataArguments, NullspaceConfig, OutputArguments]:
    """The flags of `synthesize`; the model may come first, without its flag."""
    types = (ModelArguments, DataArguments, NullspaceConfig, OutputArguments)
    model = ("model_name_or_path",)
    rules = [*DATA_RULES, *model_rules(*model, also=["image_size"]), *method_rules(), DIGITS_STEPS]
    rules += [FlagRule(name, "the digits model is for digits", needs=model) for name in SOURCES]
    return CommandParser(types, prog, model, rules=rules).parse(argv)


def load_probe_inputs(
    model_args: ModelArguments, args: ProbeArguments
) -> tuple[PreTrainedModel, BaseImageProcessor, list[Image.Image]]:
    """
    The model, its image processor and the pictures. Without a model, a ViT trained on digits first; without pictures,
    the digits for that one, and two photographs for any other.
    """
    if args.images is not None:
        check_path(args.images, "images")
    pictures = None if args.images is None else read_pictures(args.images, args.max_images, args.seed)
    if model_args.model_name_or_path is not None:
        return *load_model(model_args), sample_photographs() if pictures is None else pictures
    digits = load_digits_splits(args.seed)
    pictures = digits["validation"][: args.max_images]["image"] if pictures is None else pictures
    return *train_digits_model(digits, args.digits_max_steps, args.seed), pictures


DIGITS_STEPS = FlagRule("digits_max_steps", "the named model is not trained here", excludes=("model_name_or_path",))

# The digits model is so small that a thorough search takes half a minute.
DIGITS_PROBE = {"max_images": 359, "batch_size": 32, "max_steps": 150, "lambdas": [0.02, 0.05, 0.1, 0.2, 0.4]}

COMMANDS = {command.__name__: command for command in (evaluate, finetune, probe, push, synthesize, verify)}
LISTED_COMMANDS = "\n".join(f"  {name:12}{command.__doc__}" for name, command in COMMANDS.items())
USAGE = f"""usage: hf-nullspace COMMAND [options]

{LISTED_COMMANDS}

hf-nullspace COMMAND --help lists its options. --version prints the version, and --debug the traceback of an error."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names; an error is one line and exit code 2, see [`run_command`]."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = ["--debug"] if argv[:1] == ["--debug"] else []
    argv = argv[len(debug) :]
    if argv[:1] == ["--version"]:
        print(f"hf-nullspace {version('hf_nullspace')}")
    elif argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
    elif not argv:
        print(f"hf-nullspace: error: no command; one of {', '.join(COMMANDS)} (`--help` lists them)", file=sys.stderr)
        raise SystemExit(2)
    elif argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; the commands are {', '.join(COMMANDS)}"
        print(f"hf-nullspace: error: unknown command {argv[0]!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    else:
        run_command(f"hf-nullspace {argv[0]}", COMMANDS[argv[0]], [*argv[1:], *debug])
