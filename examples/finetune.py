#!/usr/bin/env python
"""
Finetunes an image classifier on its own nullspace noise.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn,
finetuned with nullspace noise and, for as many steps, plainly, and the three are compared.

    accelerate launch examples/finetune.py
    accelerate launch examples/finetune.py --train_dir photos/train --output_dir outputs/photos
"""

import copy
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from transformers import Trainer, set_seed
from transformers.utils import logging

from hf_nullspace import (
    NullspaceDataCollator,
    NullspaceTrainer,
    NullspaceTrainingArguments,
    evaluate_robustness,
)
from hf_nullspace.checkpointing import last_whole_checkpoint
from hf_nullspace.command_line import run_command
from hf_nullspace.data import image_transform
from hf_nullspace.hub import card_results, markdown_table
from hf_nullspace.loading import (
    DIGITS_BASE,
    DIGITS_TRAINING,
    DataArguments,
    ModelArguments,
    load_data,
    load_model,
    parse_arguments,
)
from hf_nullspace.plotting import plot_noise_history


logger = logging.get_logger("hf_nullspace.examples.finetune")

FIGURE_NAME = "noise_norm.png"

# What differs from the arguments' own defaults when neither a model nor a dataset is named.
DIGITS_DEFAULTS = {**DIGITS_TRAINING, "output_dir": "outputs/digits", "plain_control": True}


@dataclass
class FinetuneArguments:
    """What this script does beside finetuning."""

    plain_control: bool = field(
        default=False, metadata={"help": "Also finetune without noise for as many steps, and compare."}
    )
    base_max_steps: int = field(
        default=DIGITS_BASE["max_steps"], metadata={"help": "Steps that the digits model is trained for first."}
    )
    max_robustness_samples: int = field(
        default=500, metadata={"help": "Images of the validation split that robustness is measured on."}
    )


def parse(argv: list[str]):
    """Flags, or a single JSON file."""
    types = (ModelArguments, DataArguments, FinetuneArguments, NullspaceTrainingArguments)
    parsed = parse_arguments(types, argv, DIGITS_DEFAULTS, "finetune.py")
    args = parsed[-1]
    if not (args.do_train or args.do_eval):
        args.do_train = args.do_eval = True
    return parsed


def train_base(model, max_steps: int, args: NullspaceTrainingArguments, shared: dict, resume: bool):
    """The digits model, trained from scratch; a resumed run takes the one it began with."""
    folder = Path(args.output_dir, "base")
    if resume and folder.is_dir():
        return type(model).from_pretrained(folder)
    changes = {**DIGITS_BASE, "max_steps": max_steps, "output_dir": str(folder), "push_to_hub": False}
    base_args = replace(args, **changes)
    trainer = Trainer(model, base_args, **shared)
    trainer.train()
    trainer.save_model()
    return trainer.accelerator.unwrap_model(trainer.model)


def main(argv: list[str]) -> dict[str, dict[str, float]]:
    model_args, data_args, finetune_args, args = parse(argv)
    args.remove_unused_columns = False  # the transform reads the image column
    set_seed(args.seed)
    resume = args.resume_from_checkpoint
    if str(resume).lower() in ("true", "last"):
        resume = last_whole_checkpoint(args.output_dir)

    # ---- Data and model ----
    splits, labels = load_data(data_args, args.seed, cache_dir=model_args.cache_dir, token=model_args.token)
    model, processor = load_model(model_args, labels)
    columns = {"image_column_name": data_args.image_column_name, "label_column_name": data_args.label_column_name}
    prepared = splits.with_transform(image_transform(processor, **columns))
    shared = {
        "data_collator": NullspaceDataCollator(num_labels=len(labels)),
        "train_dataset": prepared["train"],
        "eval_dataset": prepared["validation"],
        "processing_class": processor,
        "compute_metrics": lambda output: {
            "accuracy": float(np.mean(output.predictions.argmax(-1) == output.label_ids))
        },
    }
    is_digits = data_args.source is None and model_args.model_name_or_path is None
    if is_digits and args.do_train:
        model = train_base(model, finetune_args.base_max_steps, args, shared, resume is not None)
    base = copy.deepcopy(model) if finetune_args.plain_control else None

    # ---- Nullspace finetuning ----
    trainer = NullspaceTrainer(model, args, **shared)
    if args.do_train:
        metrics = trainer.train(resume_from_checkpoint=resume).metrics
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        trainer.evaluate_noise()

    # ---- The control and the comparison ----
    models = {"nullspace": trainer.accelerator.unwrap_model(trainer.model)}
    if finetune_args.plain_control:
        control_args = replace(args, output_dir=str(Path(args.output_dir, "plain")), push_to_hub=False)
        control = Trainer(copy.deepcopy(base), control_args, **shared)
        control.train()
        models = {"base": base.to(args.device), "plain": control.accelerator.unwrap_model(control.model), **models}
    test = splits["test" if is_digits else "validation"]
    test = test.select(range(min(len(test), finetune_args.max_robustness_samples)))
    measure = {"profile": "preview", "accelerator": trainer.accelerator, "disable_tqdm": args.disable_tqdm, **columns}
    reports = {
        name: evaluate_robustness(model.eval(), processor, test, model_name=name, **measure)
        for name, model in models.items()
    }
    results = {name: measured.accuracies for name, measured in reports.items()}
    if trainer.is_world_process_zero():
        trainer.card_extras.update(card_results(reports))
        reports["nullspace"].save(args.output_dir)
        report(trainer, results)
    kwargs = {"tasks": "image-classification", **data_args.card_arguments()}
    if args.push_to_hub:
        trainer.push_to_hub(**kwargs)
    else:
        trainer.create_model_card(**kwargs)
    return results


def report(trainer: NullspaceTrainer, results: dict[str, dict[str, float]]) -> None:
    """Prints the table; writes it, the history of the noise and its figure."""
    trainer.save_metrics(
        "robustness", {f"{name}_{key}": value for name, row in results.items() for key, value in row.items()}
    )
    folder = Path(trainer.args.output_dir)
    if trainer.noise_history:
        plot_noise_history(trainer.noise_history, folder / FIGURE_NAME)
    table = markdown_table(*(trainer.card_extras[name] for name in ("results", "intervals", "differences")))
    print(f"\nAccuracy (%)\n\n{table}\n\n{trainer.noise}")
    print(f"Everything is in {folder} ({trainer.args.world_size} process(es))")


if __name__ == "__main__":
    run_command("finetune.py", main, sys.argv[1:])
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
