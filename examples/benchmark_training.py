#!/usr/bin/env python
"""
Measures training steps against plain `Trainer`'s on the same model: seconds, passes, memory, and the share of synthesis.

    python examples/benchmark_training.py --model vit_small_112
    python examples/benchmark_training.py --model vit_tiny_224 --bf16

Every repeat times each kind of training once, one after the other, so that a busy machine slows all of them; the ratios
are medians over the repeats. Passes are counted by image: forward 1, back to the weights 2, back to the noise or the pixels
alone 1; a plain step is 3 for each image. Memory is the most that is allocated at once in a step, with weights, gradients
and optimizer. On a GPU the images a second and the share of the time in which kernels run are printed, too.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from hf_nullspace import NullspaceDataCollator
from hf_nullspace.baselines import WAYS
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.parser import CommandParser
from hf_nullspace.comparison.costs import StepTimer
from hf_nullspace.models.digits_vit import build_digits_model
from hf_nullspace.utils.flags import check_at_least
from hf_nullspace.utils.random import keyed_generator


# Kinds of training step: the way of finetuning, and what differs from its defaults.
KINDS = {
    "plain": ("plain", {}),
    "share 1": ("nullspace", {"noise_share": 1.0}),
    "share 1/4": ("nullspace", {"noise_share": 0.25}),
    "share 1, own gradient": ("nullspace", {"noise_share": 1.0, "noise_ascent_gradient": "noisy"}),
    "N-FGSM": ("nfgsm", {}),
}
# Hidden size, side of the images and of the patches in pixels.
MODELS = {
    "vit_tiny_224": (192, 224, 16),
    "vit_small_112": (384, 112, 16),
    "vit_small_224": (384, 224, 16),
    "vit_base_224": (768, 224, 16),
}
# Steps of the run whose share of synthesis is printed.
RUN_STEPS = 1000


@dataclass
class BenchmarkArguments:
    """What is measured, and how often."""

    output_dir: str = field(default="outputs/benchmark_training", metadata={"help": "Folder for the JSON."})
    model: str = field(
        default="digits",
        metadata={"help": "Which architecture; its weights are random.", "choices": ["digits", *MODELS]},
    )
    batch_size: int = field(default=32, metadata={"help": "Clean images of a step."})
    num_steps: int = field(default=10, metadata={"help": "Steps of a repeat, after two that warm up."})
    num_repeats: int = field(default=5, metadata={"help": "Interleaved repeats."})
    num_synthesis_images: int = field(
        default=1024, metadata={"help": "Images of the training set, from which a synthesis reads."}
    )
    bf16: bool = field(default=False, metadata={"help": "Train under bfloat16 autocast."})
    torch_compile: bool = field(default=False, metadata={"help": "Compile the model."})

    def __post_init__(self):
        check_at_least(self, batch_size=1, num_steps=1, num_repeats=1)
        check_at_least(self, num_synthesis_images=2 * self.batch_size)  # those of a search and of its certificate


class RandomImages(Dataset):
    """Random pictures, generated in advance: reading data is not measured."""

    def __init__(self, count: int, size: int, num_labels: int):
        generator = keyed_generator("random images", 0)
        self.images = 2 * torch.rand(count, 3, size, size, generator=generator) - 1
        self.num_labels = num_labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.images[index], "label": index % self.num_labels}


class Measurements(StepTimer):
    """Seconds between the ends of the steps, and what the last step allocates."""

    def __init__(self, num_steps: int, memory: bool):
        self.num_steps = num_steps
        self.memory = memory
        self.peak_bytes = 0
        self.kernel_share = None
        self._profiler = None

    def on_step_begin(self, args, state, control, **kwargs):
        super().on_step_begin(args, state, control, **kwargs)
        if not self.memory or state.global_step + 1 != self.num_steps:
            return
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._profiler = profile(activities=list(_activities()), profile_memory=True)
        self._profiler.start()
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if self._profiler is None:
            return
        self._profiler.stop()
        if torch.cuda.is_available():
            self.peak_bytes = torch.cuda.max_memory_allocated()
            busy = sum(event.self_device_time_total for event in self._profiler.key_averages()) / 1e6
            self.kernel_share = busy / (self.ends[-1] - self._start)
        else:
            self.peak_bytes = _bytes_before(model, optimizer) + _most_allocated(self._profiler)

    def seconds_per_step(self) -> float:
        """The median, without the first two steps."""
        return statistics.median(after - before for before, after in itertools.pairwise(self.ends[2:]))

    def seconds_of_first_step(self) -> float:
        return self.ends[1] - self.ends[0]


def _activities():
    yield ProfilerActivity.CPU
    if torch.cuda.is_available():
        yield ProfilerActivity.CUDA


def _bytes_before(model, optimizer) -> int:
    """Bytes of weights and optimizer at the start of a step, when there are no gradients."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*model.parameters(), *(value for value in states if isinstance(value, torch.Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _most_allocated(profiler) -> int:
    """The largest sum of what was allocated and not freed again, in bytes."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(allocated.cumsum(0).max())


class PassCounter(TrainerCallback):
    """Counts the passes of a model by image, up to the end of each step."""

    def __init__(self, model: torch.nn.Module):
        self.units = 0
        self.units_at_ends = [0]
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        trains = module.training
        self.units += len(kwargs["pixel_values"]) * (3 if trains else 2 if torch.is_grad_enabled() else 1)

    def on_step_end(self, args, state, control, **kwargs):
        self.units_at_ends.append(self.units)

    def units_of_last_step(self) -> int:
        return self.units_at_ends[-1] - self.units_at_ends[-2]


def build_model(name: str) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    set_seed(0)
    if name == "digits":
        model = build_digits_model([str(digit) for digit in range(10)])[0]
    else:
        width, image_size, patch_size = MODELS[name]
        size = {"num_attention_heads": width // 64, "intermediate_size": 4 * width, "num_labels": 100}
        model = ViTForImageClassification(
            ViTConfig(hidden_size=width, image_size=image_size, patch_size=patch_size, **size)
        )
    side = model.config.image_size
    half = [0.5] * 3
    return model, ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=half, image_std=half)


def train(kind: str, args: BenchmarkArguments, dataset: Dataset, num_steps: int, memory: bool = False, **changes):
    """Trains from the start; returns what was measured, and the passes of the last step by image of a batch."""
    way, settings = WAYS[KINDS[kind][0]], KINDS[kind][1]
    measured = Measurements(num_steps, memory)
    model, processor = build_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        training_args = way.arguments(
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
            **{**settings, **(changes if way.name == "nullspace" else {})},
        )
        trainer_class = Trainer if kind == "plain" else way.trainer_class
        trainer = trainer_class(
            model,
            training_args,
            NullspaceDataCollator(),
            dataset,
            processing_class=processor,
            callbacks=[measured],
        )
        trainer.remove_callback(PrinterCallback)
        counter = PassCounter(model) if not args.torch_compile else None
        if counter is not None:
            trainer.add_callback(counter)
        trainer.train()
    return measured, None if counter is None else counter.units_of_last_step() / args.batch_size


def measure(args: BenchmarkArguments) -> dict:
    config = build_model(args.model)[0].config
    dataset = RandomImages(args.num_synthesis_images, config.image_size, config.num_labels)
    # One cheap synthesis, before the steps that are timed.
    short = {"noise_max_steps": 1, "noise_num_images": 2 * args.batch_size}
    short["noise_num_certificate_images"] = args.batch_size
    rows = {kind: {"seconds": [], "passes": None, "peak_bytes": None, "kernel_share": None} for kind in KINDS}
    syntheses = []
    for _ in range(args.num_repeats):
        for kind, row in rows.items():
            row["seconds"].append(train(kind, args, dataset, 2 + args.num_steps, **short)[0].seconds_per_step())
        first = train("share 1", args, dataset, 1)[0].seconds_of_first_step()  # with a synthesis by the defaults
        syntheses.append(first - rows["share 1"]["seconds"][-1])
    for kind, row in rows.items():
        measured, row["passes"] = train(kind, args, dataset, 3, memory=True, **short)
        row["peak_bytes"], row["kernel_share"] = measured.peak_bytes, measured.kernel_share
    results = {"settings": asdict(args), "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    results["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    results["seconds_per_synthesis"] = syntheses
    for row in rows.values():
        row["step_ratio"] = ratio(row["seconds"], rows["plain"]["seconds"])
        row["images_per_second"] = args.batch_size / statistics.median(row["seconds"])
        row["memory_ratio"] = row["peak_bytes"] / rows["plain"]["peak_bytes"]
        row["passes_ratio"] = row["passes"] / rows["plain"]["passes"] if row["passes"] is not None else None
    for kind in ("share 1", "share 1/4"):
        shares = [
            once / (once + RUN_STEPS * step) for once, step in zip(syntheses, rows[kind]["seconds"], strict=True)
        ]
        rows[kind]["synthesis_share"] = statistics.median(shares)
    return results


def ratio(seconds: list[float], plain: list[float]) -> float:
    """Median over the repeats of the ratio within a repeat."""
    return statistics.median(ours / theirs for ours, theirs in zip(seconds, plain, strict=True))


def table(results: dict) -> str:
    lines = [
        "| training step | seconds | / plain | passes / plain | peak memory (MB) | / plain | clean images a second | kernels run |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, row in results["rows"].items():
        passes = f"{row['passes_ratio']:.2f}" if row["passes_ratio"] is not None else ""
        kernels = f"{row['kernel_share']:.0%}" if row["kernel_share"] is not None else ""
        lines.append(
            f"| {kind} | {statistics.median(row['seconds']):.4g} | {row['step_ratio']:.2f} | {passes} | "
            f"{row['peak_bytes'] / 1e6:.0f} | {row['memory_ratio']:.2f} | {row['images_per_second']:.4g} | {kernels} |"
        )
    shares = [
        f"{row['synthesis_share']:.1%} ({kind})" for kind, row in results["rows"].items() if "synthesis_share" in row
    ]
    lines += ["", f"Synthesis takes {' and '.join(shares)} of a run of {RUN_STEPS} steps with the defaults."]
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
