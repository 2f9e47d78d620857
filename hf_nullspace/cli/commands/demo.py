"""Open a local page that shows what a classifier does not see: `demo [MODEL [OTHER]] [--images DIR]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from ...data.digits import load_digits_splits
from ...data.image_folders import check_path
from ...data.pictures import read_pictures, sample_photographs
from ...models.loading import ModelArguments, check_model_name, load_model
from ...models.patch_projection import channels_of
from ...models.preprocessing import Preprocessing
from ...noise.config import NullspaceConfig
from ...noise.methods import BoundaryMethod
from ...noise.nullspace_noise import NOISE_CONFIG_NAME, NullspaceNoise
from ...noise.synthesis import synthesize_noise
from ...probing.explorer import NoiseExplorer
from ...utils.flags import FlagRule, check_at_least, expand_paths
from ...utils.phases import progress_shown
from ..arguments import model_rules
from ..demo_page import DemoPage, check_port, gradio, launch_options, own_folder
from ..digits import train_digits_model
from ..parser import CommandParser
from .evaluate import DIGITS_MODEL, distinct_names


# Models beside each other.
MAX_MODELS = 2
MAX_EXAMPLES = 8


@dataclass
class DemoArguments:
    """Which models the page shows, with which pictures, and where it is opened."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "One or two, Hub ids or folders. Default: a small ViT, trained on digits first."},
    )
    images: str | None = field(
        default=None,
        metadata={
            "help": "Folder of pictures: the examples, and what a model's encoder noise is searched on unless its folder "
            "holds one. Default: the digits; for a named model two photographs."
        },
    )
    max_images: int = field(default=64, metadata={"help": "Pictures read, chosen at random."})
    batch_size: int = field(default=4, metadata={"help": "Pictures of a search step."})
    server_name: str = field(
        default="127.0.0.1", metadata={"help": "Address that the page is opened at; 0.0.0.0 shows it to the network."}
    )
    server_port: int | None = field(
        default=None, metadata={"help": "Port. Default: the first free one from 7860 on, or GRADIO_SERVER_PORT."}
    )
    digits_max_steps: int = field(default=400, metadata={"help": "Steps that the digits model is trained for first."})
    seed: int = field(default=42, metadata={"help": "Seed of every random choice."})

    def __post_init__(self):
        expand_paths(self, "models", "images")
        check_at_least(self, max_images=1, batch_size=1, digits_max_steps=1, server_port=1)
        if len(self.models) > MAX_MODELS:
            raise ValueError(f"At most {MAX_MODELS} models fit beside each other, but got {len(self.models)}.")
        for name in self.models:
            check_model_name(name, "models")
        if self.images is not None:
            check_path(self.images, "images")


RULES = [
    *model_rules("models", "model_name_or_path", also=["image_size"]),
    FlagRule("digits_max_steps", "the named models are not trained here", excludes=("models", "model_name_or_path")),
]


def run(argv: list[str]) -> None:
    model_args, args = parse_demo_arguments(argv, "hf-nullspace demo")
    check_port(args.server_name, args.server_port)
    with own_folder(), progress_shown():
        gradio()  # missing, it is said before a model is loaded
        page = make_page(model_args, args).build()
        page.launch(**launch_options(args.server_name, args.server_port))


def parse_demo_arguments(argv: Sequence[str], prog: str) -> tuple[ModelArguments, DemoArguments]:
    """The flags of `demo`; models may come first, without their flag."""
    model_args, args = CommandParser((ModelArguments, DemoArguments), prog, ["models"], rules=RULES).parse(argv)
    if model_args.model_name_or_path is not None:
        args = replace(args, models=[model_args.model_name_or_path, *args.models])
    return model_args, args


def make_page(model_args: ModelArguments, args: DemoArguments) -> DemoPage:
    """Loads or trains the models, and reads the pictures."""
    pictures = None if args.images is None else read_pictures(args.images, args.max_images, args.seed)
    if args.models:
        pictures = sample_photographs() if pictures is None else pictures
        loaded = [load_model(replace(model_args, model_name_or_path=name)) for name in args.models]
        explorers = {
            name: _explorer(model, processor, source, pictures, args)
            for name, source, (model, processor) in zip(distinct_names(args.models), args.models, loaded, strict=True)
        }
        return DemoPage(explorers, pictures[:MAX_EXAMPLES])
    splits = load_digits_splits(args.seed)
    model, processor = train_digits_model(splits, args.digits_max_steps, args.seed)
    searched, measured = (splits[name]["image"][:] for name in ("train", "validation"))
    find = _noise_finder(model, processor, searched, args.seed, 32, measured)
    examples = splits["test"][:MAX_EXAMPLES]["image"] if pictures is None else pictures[:MAX_EXAMPLES]
    return DemoPage({DIGITS_MODEL: NoiseExplorer(model, processor, find, seed=args.seed)}, examples)


def _explorer(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    source: str,
    pictures: Sequence[Image.Image],
    args: DemoArguments,
) -> NoiseExplorer:
    """A named model, with the noise of its own folder or one that is searched on the pictures."""
    find = _noise_finder(model, processor, pictures, args.seed, min(args.batch_size, len(pictures)))
    if Path(source, NOISE_CONFIG_NAME).is_file():
        find = partial(NullspaceNoise.from_pretrained, source)
    return NoiseExplorer(model, processor, find, seed=args.seed)


def _noise_finder(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    searched: Sequence[Image.Image],
    seed: int,
    batch_size: int,
    measured: Sequence[Image.Image] | None = None,
) -> Callable[[], NullspaceNoise]:
    """Searches encoder noise on pictures, and certifies it on others: those given, or a part of the same."""

    def batches(pictures: Sequence[Image.Image]) -> list[dict]:
        preprocessing = Preprocessing.of(processor, channels_of(model))
        starts = range(0, len(pictures), batch_size)
        return [preprocessing.to_model_inputs(pictures[start : start + batch_size]) for start in starts]

    def find() -> NullspaceNoise:
        config = NullspaceConfig(method=BoundaryMethod.name, seed=seed)
        others = None if measured is None else batches(measured)
        return synthesize_noise(model, batches(searched), config, certificate_dataloader=others, disable_tqdm=True)

    return find
