"""Measure the exact and the approximate nullspace of a classifier: `probe [MODEL] [--images DIR]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ...data.digits import load_digits_splits
from ...data.image_folders import check_path
from ...data.pictures import read_pictures, sample_photographs
from ...models.loading import ModelArguments, load_model
from ...probing.encoder import EncoderProbeConfig
from ...probing.report import probe
from ...utils.flags import check_at_least, check_output_dir, expand_paths
from ...utils.phases import progress_shown
from ..arguments import DIGITS_STEPS, model_rules
from ..digits import train_digits_model
from ..parser import CommandParser


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
        check_output_dir(self.output_dir, images=self.images)
        self.config()

    def config(self) -> EncoderProbeConfig:
        """The settings of the encoder's part."""
        return EncoderProbeConfig(
            lambdas=tuple(self.lambdas), max_steps=self.max_steps, max_images=self.max_images, seed=self.seed
        )


def run(argv: list[str]) -> None:
    model_args, probe_args = parse_probe_arguments(argv, "hf-nullspace probe")
    with progress_shown():
        model, processor, pictures = load_probe_inputs(model_args, probe_args)
        report = probe(model, processor, pictures, probe_args.config(), batch_size=probe_args.batch_size)
    report.save(probe_args.output_dir)
    print(f"{report.to_markdown()}\n\nTables and figures are in {probe_args.output_dir}")


def parse_probe_arguments(argv: list[str], prog: str) -> tuple[ModelArguments, ProbeArguments]:
    """The flags of `probe`; the model may come first, without its flag."""

    def defaults(given: set[str]) -> dict[str, Any]:
        return {} if "model_name_or_path" in given else DIGITS_PROBE

    rules = [*model_rules("model_name_or_path", also=["image_size"]), DIGITS_STEPS]
    types = (ModelArguments, ProbeArguments)
    return CommandParser(types, prog, ["model_name_or_path"], defaults, rules).parse(argv)


def load_probe_inputs(
    model_args: ModelArguments, args: ProbeArguments
) -> tuple[PreTrainedModel, BaseImageProcessor, list[Image.Image]]:
    """
    Loads the model, its image processor and the pictures. The default model is a ViT that is first trained on digits.
    The default pictures are the digits for that model, and two photographs for any other.
    """
    if args.images is not None:
        check_path(args.images, "images")
    pictures = None if args.images is None else read_pictures(args.images, args.max_images, args.seed)
    if model_args.model_name_or_path is not None:
        return *load_model(model_args), sample_photographs() if pictures is None else pictures
    digits = load_digits_splits(args.seed)
    pictures = digits["validation"][: args.max_images]["image"] if pictures is None else pictures
    return *train_digits_model(digits, args.digits_max_steps, args.seed), pictures


# The digits model is so small that a thorough search takes half a minute.
DIGITS_PROBE = {"max_images": 359, "batch_size": 32, "max_steps": 150, "lambdas": [0.02, 0.05, 0.1, 0.2, 0.4]}
