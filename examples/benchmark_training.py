#!/usr/bin/env python
"""
Measures a nullspace training step against plain `Trainer`'s on the same model, and a whole run with its syntheses.

    python examples/benchmark_training.py
    python examples/benchmark_training.py --model vit_small

Every repeat times each kind of training once, one after the other, so that a busy machine slows all of them; the ratios
are medians over the repeats. A plain step sees the clean images; a nullspace step sees them clean and again with noise,
and with ascent, the default, an additional pass first moves the per-image noise up its loss.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, ViTConfig, ViTForImageClassification, set_seed

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.parser import CommandParser
from hf_nullspace.models.digits_vit import build_digits_model


# Kinds of training step, with the settings that differ from the defaults.
KINDS = {
    "plain": {"noise_weight": 0.0},
    "sequential": {"noise_forward": "sequential", "noise_ascent": 0.0},
    "concatenated": {"noise_ascent": 0.0},
    "concatenated, ascent": {},
}


@dataclass
class BenchmarkArguments:
    """What is measured, and how often."""

    output_dir: str = field(default="outputs/benchmark_training", metadata={"help": "Folder for the JSON."})
    model: str = field(
        default="digits",
        metadata={
            "help": "Which architecture; its weights are random.",
            "choices": ["digits", "vit_small", "vit_base"],
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Clean images of a step."})
    num_steps: int = field(default=20, metadata={"help": "Steps of a repeat, after three that warm up."})
    num_repeats: int = field(default=5, metadata={"help": "Interleaved repeats."})
    num_run_steps: int = field(
        default=80, metadata={"help": "Steps of the whole runs, syntheses included; 0 leaves them out."}
    )
    bf16: bool = field(default=False, metadata={"help": "Train under bfloat16 autocast."})
    torch_compile: bool = field(default=False, metadata={"help": "Compile the model."})


class RandomImages(Dataset):
    """Random images, generated in advance: reading data is not measured."""

    def __init__(self, count: int, size: int, num_labels: int):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, size, size, generator=generator)
        self.num_labels = num_labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.images[index], "label": index % self.num_labels}


class StepTimes(TrainerCallback):
    """Seconds between the ends of the steps."""

    def __init__(self):
        self.stamps = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        steps = [after - before for before, after in zip(self.stamps[2:], self.stamps[3:], strict=False)]
        return statistics.median(steps)


def build_model(name: str) -> ViTForImageClassification:
    set_seed(0)
    if name == "digits":
        return build_digits_model([str(digit) for digit in range(10)])[0]
    width = {"vit_small": 384, "vit_base": 768}[name]
    return ViTForImageClassification(
        ViTConfig(hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width, num_labels=100)
    )


def train(kind: str, args: BenchmarkArguments, dataset: Dataset, num_steps: int, **changes) -> tuple[StepTimes, float]:
    """Trains from the start; returns the times of the steps and the total seconds."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        training_args = NullspaceTrainingArguments(
            folder,
            max_steps=num_steps,
            per_device_train_batch_size=args.batch_size,
            dataloader_drop_last=True,
            bf16=args.bf16,
            torch_compile=args.torch_compile,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **{**KINDS[kind], **changes},
        )
        trainer_class = Trainer if kind == "plain" else NullspaceTrainer
        trainer = trainer_class(
            build_model(args.model), training_args, NullspaceDataCollator(), dataset, callbacks=[times]
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return times, time.perf_counter() - start


def measure(args: BenchmarkArguments) -> dict:
    config = build_model(args.model).config
    dataset = RandomImages(max(512, 4 * args.batch_size), config.image_size, config.num_labels)
    # One cheap synthesis, before the steps that are timed.
    short = {"noise_refresh_steps": 10**6, "noise_max_steps": 1, "noise_num_images": 2 * args.batch_size}
    short["noise_num_certificate_images"] = args.batch_size
    steps = {kind: [] for kind in KINDS}
    runs = {"plain": [], "concatenated, ascent": []}
    for _ in range(args.num_repeats):
        for kind, seconds in steps.items():
            seconds.append(train(kind, args, dataset, 3 + args.num_steps, **short)[0].seconds_per_step())
    for _ in range(min(args.num_repeats, 3) if args.num_run_steps else 0):
        for kind, seconds in runs.items():
            seconds.append(train(kind, args, dataset, args.num_run_steps)[1])
    results = {"settings": asdict(args), "torch": torch.__version__, "seconds_per_step": steps}
    results["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results["step_ratio"] = {kind: ratio(steps[kind], steps["plain"]) for kind in KINDS if kind != "plain"}
    images = {kind: args.batch_size / statistics.median(seconds) for kind, seconds in steps.items()}
    results["images_per_second"] = images
    if args.num_run_steps:
        results |= {"seconds_of_run": runs, "run_ratio": ratio(runs["concatenated, ascent"], runs["plain"])}
    return results


def ratio(seconds: list[float], plain: list[float]) -> float:
    """Median over the repeats of the ratio within a repeat."""
    return statistics.median(ours / theirs for ours, theirs in zip(seconds, plain, strict=True))


def table(results: dict) -> str:
    lines = ["| training step | seconds | clean images per second | / plain |", "|---|---:|---:|---:|"]
    for kind, seconds in results["seconds_per_step"].items():
        relative = results["step_ratio"].get(kind, 1.0)
        rate = results["images_per_second"][kind]
        lines.append(f"| {kind} | {statistics.median(seconds):.4g} | {rate:.4g} | {relative:.2f} |")
    if "run_ratio" in results:
        settings = results["settings"]
        lines += ["", f"A default run of {settings['num_run_steps']} steps, syntheses included, takes"]
        lines[-1] += f" {results['run_ratio']:.2f} times as long as plain finetuning for as many steps."
    return "\n".join(lines)


def main(argv: list[str]) -> dict:
    (args,) = CommandParser([BenchmarkArguments], "benchmark_training.py").parse(argv)
    results = measure(args)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark_training.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return results


if __name__ == "__main__":
    run_command("benchmark_training.py", main, sys.argv[1:])
