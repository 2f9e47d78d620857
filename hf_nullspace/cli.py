"""`hf-nullspace COMMAND`: the public functions from a shell."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from torch.utils.data import DataLoader
from transformers import HfArgumentParser, set_seed

from .configuration import NullspaceConfig
from .data import image_transform
from .data_collator import NullspaceDataCollator
from .loading import DataArguments, ModelArguments, load_data, load_model
from .synthesis import synthesize_noise
from .trainer import NullspaceTrainer
from .training_args import NullspaceTrainingArguments


@dataclass
class OutputArguments:
    """Where results go, and how images are read."""

    output_dir: str = field(default="outputs/noise", metadata={"help": "Folder that the noise is written into."})
    batch_size: int = field(default=32, metadata={"help": "Images of a synthesis step."})


def finetune(argv: list[str]) -> None:
    """Finetune a classifier on its own nullspace noise, and save it with the noise."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, NullspaceTrainingArguments), prog="hf-nullspace finetune"
    )
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    args.remove_unused_columns = False  # the transform reads the image column
    model, processor, splits, labels = _load(model_args, data_args, args.seed)
    trainer = NullspaceTrainer(
        model,
        args,
        NullspaceDataCollator(num_labels=len(labels)),
        splits["train"],
        splits["validation"],
        processor,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.create_model_card(tasks="image-classification")
    print(trainer.noise)


def synthesize(argv: list[str]) -> None:
    """Synthesise and certify noise for a classifier, and save it."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, NullspaceConfig, OutputArguments), prog="hf-nullspace synthesize"
    )
    model_args, data_args, config, output = parser.parse_args_into_dataclasses(argv)
    model, _, splits, _ = _load(model_args, data_args, config.seed)
    images = splits["train"].shuffle(seed=config.seed)
    dataloader = DataLoader(images, batch_size=output.batch_size, collate_fn=NullspaceDataCollator())
    noise = synthesize_noise(model, dataloader, config)
    noise.save_pretrained(output.output_dir)
    print(noise)


COMMANDS = {"finetune": finetune, "synthesize": synthesize}


def _load(model_args: ModelArguments, data_args: DataArguments, seed: int):
    """Model, image processor, prepared splits and class names."""
    set_seed(seed)
    splits, labels = load_data(data_args, seed, cache_dir=model_args.cache_dir, token=model_args.token)
    model, processor = load_model(model_args, labels)
    transform = image_transform(processor, data_args.image_column_name, data_args.label_column_name)
    return model, processor, splits.with_transform(transform), labels


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        listed = "\n".join(f"  {name:12}{command.__doc__}" for name, command in COMMANDS.items())
        print(f"usage: hf-nullspace COMMAND [options]\n\n{listed}\n\nhf-nullspace COMMAND --help lists its options.")
        raise SystemExit(0 if argv and argv[0] in ("-h", "--help") else 2)
    COMMANDS[argv[0]](argv[1:])
