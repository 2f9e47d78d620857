#!/usr/bin/env python
"""
Measures how hard per-image noise is for a model on images that its synthesis did not see, by how it was moved.

    python examples/noise_hardness.py
    python examples/noise_hardness.py --model_name_or_path facebook/deit-tiny-patch16-224 --train_file photos.parquet

Draws are left as they are, moved along their own gradient (exact, for a further pass forward and back), or along the
gradient of the clean images, which training has computed anyway: at fixed distances, and at the distance that the trainer
measures in a round (on training images), marked "measured". All moves keep the norm and the axes. The rise is that of the
loss over the draws, as a share of the rise along the draws' own gradient.
"""

import json
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hf_nullspace import NullspaceConfig, NullspaceDataCollator, synthesize_noise
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.digits import train_digits_model
from hf_nullspace.cli.parser import CommandParser
from hf_nullspace.data.loading import DataArguments, load_data
from hf_nullspace.models.frozen import frozen_classifier
from hf_nullspace.models.loading import ModelArguments, load_model
from hf_nullspace.models.preprocessing import image_transform
from hf_nullspace.training.noise_ascent import loss_gradient, losses_of_ascents, matching_ascent
from hf_nullspace.training.noise_rounds import ASCENT_IMAGES
from hf_nullspace.utils.random import keyed_generator


@dataclass
class HardnessArguments:
    """What is measured."""

    output_dir: str = field(default="outputs/noise_hardness", metadata={"help": "Folder for the JSON."})
    epsilon: float = field(default=0.03, metadata={"help": "Bound of the draws."})
    noise_ascent: float = field(default=3.0, metadata={"help": "Standard deviations along the draws' own gradient."})
    num_images: int = field(
        default=200,
        metadata={"help": "Images of the training split, kept from the synthesis, that hardness is measured on."},
    )
    batch_size: int = field(default=32, metadata={"help": "Images of a pass."})
    num_seeds: int = field(default=3, metadata={"help": "Syntheses and draws."})
    digits_max_steps: int = field(default=600, metadata={"help": "Steps that the digits model is trained for first."})
    seed: int = field(default=42, metadata={"help": "First seed."})


def loss_under(classifier, batch):
    """The loss of a batch as a function of its noise."""

    def loss_of(noise):
        return cross_entropy(classifier.logits({"pixel_values": batch["pixel_values"]}, noise), batch["labels"])

    return loss_of


def moved_draws(loss_of, noise, draws, ascent, measured):
    """The draws of a batch in every way that they are moved, by its name in the table."""
    own = loss_gradient(loss_of, draws)[1]
    clean = loss_gradient(loss_of, torch.zeros_like(draws))[1]
    yield "draws", draws
    yield f"own gradient, {ascent:g} sd", noise.ascend(draws, own, ascent)
    for multiple in (1, 2, 3):
        yield f"clean gradient, {multiple * ascent:g} sd", noise.ascend(draws, clean, multiple * ascent)
    yield "clean gradient, measured", noise.ascend(draws, clean, measured)


def measure(model, train, validation, args: HardnessArguments, seed: int) -> dict:
    """One synthesis: loss and accuracy of the images kept from it under its draws, and the distance that was measured."""

    def batches(dataset):
        return DataLoader(dataset, args.batch_size, collate_fn=NullspaceDataCollator())

    shuffled = train.shuffle(seed=seed)
    config = NullspaceConfig(epsilon=args.epsilon, method="sample", num_images=128, seed=seed)
    found = synthesize_noise(model, batches(shuffled), config, disable_tqdm=True)
    generator = keyed_generator("hardness", seed)
    totals, count = defaultdict(lambda: torch.zeros(2, dtype=torch.float64)), 0
    with frozen_classifier(model) as classifier:
        noise = found.noise.to(classifier.device)
        losses = 0
        for batch in batches(shuffled.select(range(min(ASCENT_IMAGES, len(train))))):
            draws = noise.draw(len(batch["labels"]), generator)
            means = losses_of_ascents(loss_under(classifier, batch), noise, draws, args.noise_ascent)
            losses = losses + len(draws) * means  # as the trainer does: the last batch may be smaller
        measured, rise = matching_ascent(losses.tolist(), args.noise_ascent)
        for batch in batches(validation):
            draws = noise.draw(len(batch["labels"]), generator)
            rows = [
                ("clean", None),
                *moved_draws(loss_under(classifier, batch), noise, draws, args.noise_ascent, measured),
            ]
            for name, own in rows:
                with torch.no_grad():
                    logits = classifier.logits({"pixel_values": batch["pixel_values"]}, own)
                loss = cross_entropy(logits, batch["labels"], reduction="sum").double()
                totals[name] += torch.stack([loss, (logits.argmax(-1) == batch["labels"]).sum().double()])
            count += len(batch["labels"])
    rows = {
        name: {"loss": total[0].item() / count, "accuracy": total[1].item() / count} for name, total in totals.items()
    }
    return {"norm": found.certificate.norm, "measured": measured, "rise_when_measured": rise, "rows": rows}


def summary(runs: list[dict], ascent: float) -> dict[str, dict[str, float]]:
    """Mean over the seeds; the rise over the draws as a share of that along the draws' own gradient."""
    names = runs[0]["rows"]
    rows = {
        name: {key: statistics.mean(run["rows"][name][key] for run in runs) for key in ("loss", "accuracy")}
        for name in names
    }
    drawn, own = rows["draws"]["loss"], rows[f"own gradient, {ascent:g} sd"]["loss"]
    return {name: {**row, "rise": (row["loss"] - drawn) / (own - drawn)} for name, row in rows.items()}


def main(argv: list[str]) -> dict:
    types = [ModelArguments, DataArguments, HardnessArguments]
    model_args, data_args, args = CommandParser(types, "noise_hardness.py").parse(argv)
    splits, _ = load_data(data_args, args.seed, cache_dir=model_args.cache_dir, token=model_args.token)
    if model_args.model_name_or_path is None:
        model, processor = train_digits_model(splits, args.digits_max_steps, args.seed)
    else:
        model, processor = load_model(model_args)  # with its own head, whose classes are the labels
    transform = image_transform(processor, **data_args.columns)
    # Both are of the training split: a label is measured where no image of its class was searched on, too.
    images = splits["train"].shuffle(seed=args.seed).with_transform(transform)
    count = min(args.num_images, len(images) // 2)
    validation, train = images.select(range(count)), images.select(range(count, len(images)))
    runs = [measure(model.eval(), train, validation, args, args.seed + index) for index in range(args.num_seeds)]
    rows = summary(runs, args.noise_ascent)
    results = {
        "settings": asdict(args),
        "model": model_args.model_name_or_path or "digits",
        "runs": runs,
        "rows": rows,
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "noise_hardness.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(
        f"{len(validation)} images, {len(runs)} syntheses; measured distance: {[run['measured'] for run in runs]} sd\n"
    )
    print("| noise | loss | accuracy (%) | rise |\n|---|---:|---:|---:|")
    for name, row in rows.items():
        share = f"{row['rise']:.2f}" if name != "clean" else ""
        print(f"| {name} | {row['loss']:.3f} | {100 * row['accuracy']:.1f} | {share} |")
    return results


if __name__ == "__main__":
    run_command("noise_hardness.py", main, sys.argv[1:])
