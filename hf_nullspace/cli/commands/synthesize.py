"""Synthesise and certify noise for a classifier, and save it: `synthesize [MODEL] [--train_dir DIR]`."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.utils.data import DataLoader
from transformers import set_seed

from ...data.loading import DATA_RULES, SOURCES, DataArguments, load_data
from ...models.loading import ModelArguments, load_model
from ...models.patch_projection import channels_of
from ...models.preprocessing import image_transform
from ...noise.config import NullspaceConfig
from ...noise.nullspace_noise import NullspaceNoise
from ...noise.synthesis import synthesize_noise
from ...training.data_collator import NullspaceDataCollator
from ...utils.flags import FlagRule, check_at_least, check_output_dir, expand_paths
from ...utils.phases import progress_shown
from ..arguments import DIGITS_STEPS, method_rules, model_rules
from ..digits import train_digits_model
from ..parser import CommandParser


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


def run(argv: list[str]) -> None:
    model_args, data_args, config, output = parse_synthesize_arguments(argv, "hf-nullspace synthesize")
    with progress_shown():
        noise = make_noise(model_args, data_args, config, output)
    noise.save_pretrained(output.output_dir)
    print(noise)


def make_noise(
    model_args: ModelArguments, data_args: DataArguments, config: NullspaceConfig, output: OutputArguments
) -> NullspaceNoise:
    """The noise of the model that the flags name, searched on training images and certified on validation images."""
    set_seed(config.seed)
    splits, _ = load_data(data_args, config.seed, cache_dir=model_args.cache_dir, token=model_args.token)
    if model_args.model_name_or_path is None:
        model, processor = train_digits_model(splits, output.digits_max_steps, config.seed)
    else:
        model, processor = load_model(model_args)  # with its own head, independent of the classes of the images
    transform = image_transform(processor, **data_args.columns, num_channels=channels_of(model))
    # The search uses training images; the certificate uses images that the model was not trained on.
    searched, measured = (
        DataLoader(
            splits[name].with_transform(transform).shuffle(seed=config.seed),
            batch_size=min(output.batch_size, len(splits[name])),  # a search takes whole batches
            collate_fn=NullspaceDataCollator(),
        )
        for name in ("train", "validation")
    )
    return synthesize_noise(model, searched, config, certificate_dataloader=measured)


def parse_synthesize_arguments(
    argv: list[str], prog: str
) -> tuple[ModelArguments, DataArguments, NullspaceConfig, OutputArguments]:
    """The flags of `synthesize`; the model may come first, without its flag."""
    types = (ModelArguments, DataArguments, NullspaceConfig, OutputArguments)
    model = ("model_name_or_path",)
    rules = [*DATA_RULES, *model_rules(*model, also=["image_size"]), *method_rules(), DIGITS_STEPS]
    rules += [FlagRule(name, "the digits model is for digits", needs=model) for name in SOURCES]
    parsed = CommandParser(types, prog, model, rules=rules).parse(argv)
    check_output_dir(parsed[3].output_dir, **parsed[1].folders)
    return parsed
