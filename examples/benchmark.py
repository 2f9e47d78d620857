#!/usr/bin/env python
"""
Measures noise synthesis against the released algorithm, side by side: same model, images and seeds, interleaved.

    python examples/benchmark.py
    python examples/benchmark.py --model_name_or_path outputs/photos --train_dir photos/train
    python examples/benchmark.py --torch_compile  # our steps on the compiled model as well

The released algorithm is written out here after the paper: weights keep their gradients, every step runs the clean
images again, AdamW decays the noise, and the first batch below epsilon ends it.
"""

import ctypes
import gc
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import set_seed

from hf_nullspace import NullspaceConfig, NullspaceDataCollator, measure_noise, synthesize_noise
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.digits import train_digits_model
from hf_nullspace.cli.parser import CommandParser
from hf_nullspace.data.loading import DATA_RULES, SOURCES, DataArguments, load_data
from hf_nullspace.models.frozen import FrozenClassifier, frozen
from hf_nullspace.models.loading import ModelArguments, load_model
from hf_nullspace.models.objectives import logit_distance, probability_mse
from hf_nullspace.models.patch_projection import channels_of
from hf_nullspace.models.preprocessing import image_transform
from hf_nullspace.noise.certificate import remove_hidden_mean, token_norms
from hf_nullspace.noise.certify import measure_probability_mse
from hf_nullspace.noise.images import read_images
from hf_nullspace.noise.kinds import SharedNoise
from hf_nullspace.noise.methods import BoundaryMethod
from hf_nullspace.noise.methods.base import SearchInputs
from hf_nullspace.noise.methods.scaling import boundary_scale
from hf_nullspace.utils.flags import FlagRule


@dataclass
class BenchmarkArguments:
    """What is measured, and how often."""

    output_dir: str = field(default="outputs/benchmark", metadata={"help": "Folder for the table and the JSON."})
    batch_size: int = field(default=32, metadata={"help": "Images of a step."})
    num_steps: int = field(default=100, metadata={"help": "Steps of a synthesis, for both."})
    num_images: int = field(default=256, metadata={"help": "Images that noise is optimised on."})
    num_fresh_images: int = field(default=256, metadata={"help": "Images that neither saw, for the boundary."})
    num_seeds: int = field(default=3, metadata={"help": "Seeds of the norms."})
    num_certificates: int = field(default=20, metadata={"help": "Seeds of the certificates; 0 leaves them out."})
    num_repeats: int = field(default=5, metadata={"help": "Interleaved repeats of the timings."})
    digits_max_steps: int = field(default=600, metadata={"help": "Steps that the digits model is trained for first."})
    epsilon: float = field(default=0.03, metadata={"help": "The bound."})
    bf16: bool = field(default=False, metadata={"help": "Run the model under bfloat16 autocast."})
    torch_compile: bool = field(default=False, metadata={"help": "Time our steps on the compiled model too."})
    seed: int = field(default=42, metadata={"help": "First seed."})


def released_search(classifier, shape, batches, limit, num_steps, epsilon, seed, on_step=lambda: None):
    """The released algorithm's noise, and whether a batch met epsilon."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(1, *shape).uniform_(-limit, limit, generator=generator).to(classifier.device).requires_grad_()
    optimizer = torch.optim.AdamW([noise], lr=0.1)
    for step in range(num_steps):
        batch = batches[step % len(batches)]
        with torch.no_grad():
            clean = classifier.logits(batch)
        noisy = classifier.logits(batch, noise)
        if probability_mse(clean, noisy.detach()).mean().item() <= epsilon:
            return noise.detach(), True
        optimizer.zero_grad()
        logit_distance(clean, noisy).mean().backward()
        optimizer.step()
        on_step()
    return noise.detach(), False


class Bench:
    """One model and its images, shared by both algorithms."""

    def __init__(self, model, train, fresh, args: BenchmarkArguments):
        self.args = args
        self.model = model.eval()
        accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no")
        self.model.to(accelerator.device)
        self.classifier = FrozenClassifier(model, accelerator=accelerator)
        self.train = train
        self.fresh = fresh
        with frozen(model):
            self.images = read_images(self.classifier, self.loader(train), args.num_images)
            self.held_out = read_images(self.classifier, self.loader(fresh), args.num_fresh_images)
        self.batches = [
            {"pixel_values": batch["pixel_values"].to(accelerator.device)}
            for batch, _ in zip(self.loader(train), range(args.num_images // args.batch_size), strict=False)
        ]

    def loader(self, dataset):
        return DataLoader(dataset, batch_size=self.args.batch_size, collate_fn=NullspaceDataCollator(), drop_last=True)

    def released(self, seed, limit=3.0, steps=None, on_step=lambda: None, never_stops=False):
        self.model.requires_grad_(True)
        steps = steps or self.args.num_steps
        shape = self.images.tokens_shape
        epsilon = -1.0 if never_stops else self.args.epsilon
        return released_search(self.classifier, shape, self.batches, limit, steps, epsilon, seed, on_step)

    def ours(self, seed, ratio=NullspaceConfig.max_token_ratio, steps=None, on_step=lambda: None, classifier=None):
        config = NullspaceConfig(
            epsilon=self.args.epsilon, max_token_ratio=ratio, max_steps=steps or self.args.num_steps
        )
        with frozen(self.model):
            generator = torch.Generator().manual_seed(seed)
            inputs = SearchInputs(classifier or self.classifier, self.images, config, generator, on_step)
            return BoundaryMethod().search(inputs).noise.tensor

    def random(self, seed):
        noise = torch.randn(1, *self.images.tokens_shape, generator=torch.Generator().manual_seed(seed))
        return noise.to(self.classifier.device)

    def at_boundary(self, noise):
        """The noise scaled until its mean `probability_mse` on the fresh images is epsilon."""
        noise = remove_hidden_mean(noise)
        with frozen(self.model):
            scale = boundary_scale(
                lambda scale: measure_probability_mse(
                    self.classifier, self.held_out, SharedNoise(scale * noise), 0.95
                )[0],
                self.args.epsilon,
                max_scale=1e6,
            )
        return scale * noise

    def seconds_per_step(self, search):
        """Median time between the steps of one search, without its set-up."""
        stamps = []

        def stamp():
            if self.classifier.device.type == "cuda":
                torch.cuda.synchronize()
            stamps.append(time.perf_counter())

        search(stamp)
        return statistics.median(after - before for before, after in zip(stamps, stamps[1:], strict=False))

    def peak_mib(self, search):
        """Largest memory in MiB that a search takes beyond what was there; `None` where it cannot be measured."""
        gc.collect()
        self.model.zero_grad(set_to_none=True)
        if self.classifier.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            search(lambda: None)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return None
        before = _status("VmRSS")
        search(lambda: None)
        return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A line of this process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure_cost(bench: Bench) -> dict:
    """Seconds and memory of a step, and the share of the device's matrix rate that ours reaches."""
    steps = NullspaceConfig().max_steps  # as many as a round of training takes by default
    released = lambda on_step: bench.released(0, steps=steps, on_step=on_step, never_stops=True)  # noqa: E731
    ours = lambda on_step: bench.ours(0, steps=steps, on_step=on_step)  # noqa: E731
    searches = {"released": released, "ours": ours}
    result = {}
    if bench.args.torch_compile:
        classifier = FrozenClassifier(torch.compile(bench.model), accelerator=bench.classifier.accelerator)
        compiled = lambda on_step: bench.ours(0, steps=steps, on_step=on_step, classifier=classifier)  # noqa: E731
        start = time.perf_counter()
        compiled(lambda: None)
        result["seconds_to_compile"] = time.perf_counter() - start
        searches["ours_compiled"] = compiled
    times = {name: [] for name in searches}
    memory = {name: [] for name in searches}
    for _ in range(bench.args.num_repeats):
        for name, search in searches.items():
            times[name].append(bench.seconds_per_step(search))
            memory[name].append(bench.peak_mib(search))
    with FlopCounterMode(display=False) as one:
        bench.ours(0, steps=1)
    with FlopCounterMode(display=False) as two:
        bench.ours(0, steps=2)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    flops = (two.get_total_flops() - one.get_total_flops()) / seconds["ours"]
    rate = matrix_rate(bench.classifier.device, torch.bfloat16 if bench.args.bf16 else torch.float32)
    result |= {f"seconds_per_step_{name}": value for name, value in seconds.items()}
    result["seconds_per_step_ratio"] = seconds["ours"] / seconds["released"]
    if None not in memory["ours"]:
        peaks = {name: statistics.median(values) for name, values in memory.items()}
        result |= {f"peak_mib_{name}": value for name, value in peaks.items()}
        result["peak_mib_ratio"] = peaks["ours"] / peaks["released"]
    return {**result, "tflops_ours": flops / 1e12, "tflops_matrix": rate / 1e12, "matrix_share": flops / rate}


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):  # the first one warms up
        start = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    assert product.shape == (size, size)
    return 2 * size**3 / best


def measure_norms(bench: Bench) -> dict:
    """Norm at the boundary after equal steps, by method, with the spread over tokens."""
    methods = {
        "random direction": bench.random,
        "released, limit 3": lambda seed: bench.released(seed, 3.0)[0],
        "released, limit 1": lambda seed: bench.released(seed, 1.0)[0],
        "ours": lambda seed: bench.ours(seed),
        "ours, tokens unlimited": lambda seed: bench.ours(seed, ratio=None),
    }
    rows = {}
    for name, search in methods.items():
        noises = [bench.at_boundary(search(bench.args.seed + index)) for index in range(bench.args.num_seeds)]
        spread = torch.stack([token_norms(noise)[0].cpu() for noise in noises])
        rows[name] = {
            "norm": statistics.mean(noise.norm().item() for noise in noises),
            "norm_min": min(noise.norm().item() for noise in noises),
            "norm_max": max(noise.norm().item() for noise in noises),
            "token_norm_min": spread.min(-1).values.mean().item(),
            "token_norm_median": spread.median(-1).values.mean().item(),
            "token_norm_max": spread.max(-1).values.mean().item(),
        }
    best = max(rows["released, limit 3"]["norm"], rows["released, limit 1"]["norm"])
    for row in rows.values():
        row["ratio"] = row["norm"] / best
    return rows


def measure_time_to_norm(bench: Bench, target: float) -> dict:
    """Seconds until a certified noise has the released algorithm's boundary norm, against all of the latter's steps."""

    def seconds_of(search):
        start = time.perf_counter()
        norm = bench.at_boundary(search()).norm().item()
        return time.perf_counter() - start, norm

    released, _ = seconds_of(lambda: bench.released(bench.args.seed)[0])
    for steps in (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, bench.args.num_steps):
        seconds, norm = seconds_of(lambda steps=steps: bench.ours(bench.args.seed, steps=steps))
        if norm >= target:
            break
    return {"released": released, "ours": seconds, "steps": steps, "norm": norm, "ratio": seconds / released}


def measure_certificates(bench: Bench) -> dict:
    """Share of seeds whose certificate holds on fresh images."""
    args = bench.args
    held = 0
    claimed = 0
    released_held = 0
    for index in range(args.num_certificates):
        config = NullspaceConfig(
            epsilon=args.epsilon, max_steps=args.num_steps // 3, num_images=args.num_images, seed=args.seed + index
        )
        noise = synthesize_noise(bench.model, bench.loader(bench.train), config, disable_tqdm=True)
        fresh = measure_noise(bench.model, noise, bench.loader(bench.fresh))
        held += noise.converged and fresh.probability_mse <= args.epsilon
        candidate, stopped = bench.released(args.seed + index, limit=1.0)
        claimed += stopped
        if stopped:
            with frozen(bench.model):
                mse = measure_probability_mse(bench.classifier, bench.held_out, SharedNoise(candidate), 0.95)[0]
            released_held += mse <= args.epsilon
    share = released_held / claimed if claimed else None
    return {"ours": held / args.num_certificates, "released": share, "released_claims": claimed}


def load_bench(model_args, data_args, args: BenchmarkArguments) -> Bench:
    """Loads the given model and images, or briefly trains the digits model."""
    set_seed(args.seed)
    splits, labels = load_data(data_args, args.seed, cache_dir=model_args.cache_dir, token=model_args.token)
    if model_args.model_name_or_path is None and data_args.source is None:
        model, processor = train_digits_model(splits, max_steps=args.digits_max_steps, seed=args.seed)
    else:
        model, processor = load_model(model_args, labels)
    columns = (data_args.image_column_name, data_args.label_column_name)
    prepared = splits.with_transform(image_transform(processor, *columns, channels_of(model)))
    return Bench(model, prepared["train"], prepared["validation"], args)


def main(argv: list[str]) -> dict:
    rules = [
        *DATA_RULES,
        *(FlagRule(name, "the digits model is for digits", needs=("model_name_or_path",)) for name in SOURCES),
    ]
    parser = CommandParser((ModelArguments, DataArguments, BenchmarkArguments), "benchmark.py", rules=rules)
    model_args, data_args, args = parser.parse(argv)
    bench = load_bench(model_args, data_args, args)
    results = {"settings": asdict(args), "torch": torch.__version__, "device": str(bench.classifier.device)}
    results["cost"] = measure_cost(bench)
    results["norms"] = measure_norms(bench)
    results["time_to_norm"] = measure_time_to_norm(bench, results["norms"]["released, limit 3"]["norm"])
    if args.num_certificates:
        results["certificates"] = measure_certificates(bench)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return results


def table(results: dict) -> str:
    """The results as Markdown."""
    cost = results["cost"]
    seconds = results["time_to_norm"]
    lines = ["| ours / released | released | ours | ratio |", "|---|---:|---:|---:|"]
    for name, label in (("seconds_per_step", "seconds per step"), ("peak_mib", "peak memory (MiB)")):
        if f"{name}_ratio" in cost:
            values = (cost[f"{name}_released"], cost[f"{name}_ours"], cost[f"{name}_ratio"])
            lines.append(f"| {label} | " + " | ".join(f"{value:.4g}" for value in values) + " |")
    label = f"seconds to the released boundary norm ({seconds['steps']} steps)"
    lines.append(f"| {label} | {seconds['released']:.3g} | {seconds['ours']:.3g} | {seconds['ratio']:.3g} |")
    if "seconds_to_compile" in cost:
        released = cost["seconds_per_step_released"]
        compiled = cost["seconds_per_step_ours_compiled"]
        lines.append(
            f"| seconds per step, ours compiled | {released:.4g} | {compiled:.4g} | {compiled / released:.4g} |"
        )
        lines.append(f"| seconds of the first search, with compiling | | {cost['seconds_to_compile']:.3g} | |")
    if "certificates" in results:
        shares = results["certificates"]
        released = "none claimed" if shares["released"] is None else f"{shares['released']:.2f}"
        lines.append(f"| share of claims that hold on fresh images | {released} | {shares['ours']:.2f} | |")
    lines += ["", "| boundary norm after equal steps | norm | over seeds | ratio | tokens min / median / max |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, row in results["norms"].items():
        spread = " / ".join(f"{row[f'token_norm_{part}']:.2f}" for part in ("min", "median", "max"))
        seeds = f"{row['norm_min']:.2f} to {row['norm_max']:.2f}"
        lines.append(f"| {name} | {row['norm']:.2f} | {seeds} | {row['ratio']:.2f} | {spread} |")
    rate = f"{cost['tflops_ours']:.3g} of {cost['tflops_matrix']:.3g} TFLOP/s ({100 * cost['matrix_share']:.0f} %)"
    return "\n".join([*lines, "", f"Our steps run at {rate} of the measured matrix rate of {results['device']}."])


if __name__ == "__main__":
    run_command("benchmark.py", main, sys.argv[1:])
