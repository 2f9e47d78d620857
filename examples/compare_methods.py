#!/usr/bin/env python
"""
Compares ways of finetuning one model: plain, on nullspace noise and its controls, and adversarially; for as many steps,
with several seeds, and with intervals over seeds and images.

Without arguments nothing is downloaded: a small ViT is trained on the handwritten digits that ship inside scikit-learn.

    python examples/compare_methods.py
    python examples/compare_methods.py --model_name_or_path MODEL --train_file train.parquet \\
        --validation_file test.parquet --equal_wall_time plain pgd --variants examples/compare_variants.json

Every run is kept in `output_dir/runs` and not repeated: the same command goes on where it was stopped, and rows, seeds or
another profile can be added later. A training run that was stopped begins again; nothing is saved in the middle of one.

Choose settings with `--evaluate_on validation` on the digits, and on other images without naming the test images, so that
some of the training images are split off. Name the test images, as the validation ones, only to report.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator, PartialState
from transformers import set_seed

from hf_nullspace import NullspaceDataCollator, NullspaceTrainingArguments, RobustnessReport, evaluate_robustness
from hf_nullspace.baselines import METHODS
from hf_nullspace.cli.arguments import DIGITS_BASE, DIGITS_TRAINING, parse_arguments
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.commands.evaluate import dataset_locations
from hf_nullspace.comparison.figure import plot_methods
from hf_nullspace.comparison.plan import Row, plan_rows, read_variants
from hf_nullspace.comparison.report import (
    BASE,
    EQUAL_TIME,
    METHOD,
    NULLSPACE,
    PERMUTED,
    PLAIN,
    VARIANT,
    comparison_markdown,
    norm_growth,
    summarize_methods,
)
from hf_nullspace.comparison.runs import begin_run, read_run, training_settings, write_run
from hf_nullspace.comparison.statistics import CONFIDENCE
from hf_nullspace.data.loading import DataArguments, load_data
from hf_nullspace.data.splits import draw_images
from hf_nullspace.models.loading import ModelArguments, load_model
from hf_nullspace.models.patch_projection import channels_of
from hf_nullspace.models.preprocessing import image_transform
from hf_nullspace.robustness.packages import check_packages
from hf_nullspace.robustness.profiles import resolve_profile
from hf_nullspace.utils.figures import optional_figure
from hf_nullspace.utils.files import json_hash, write_text


RESULTS_NAME, TABLES_NAME, FIGURE_NAME = "results.json", "results.md", "differences.png"
# What does not change a model or an evaluation.
NEUTRAL_FIELDS = ("token", "cache_dir", "preprocessing_num_workers", "max_eval_samples")
DIGITS_DEFAULTS = {**DIGITS_TRAINING, "output_dir": "outputs/compare", "max_steps": 100, "logging_strategy": "no"}


@dataclass
class CompareArguments:
    """What is compared, and how it is measured."""

    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": "Methods that are a row."})
    variants: str | None = field(
        default=None,
        metadata={"help": "JSON file with further rows by name, each a `method`, a `start` and training arguments."},
    )
    num_seeds: int = field(default=3, metadata={"help": "Runs of each row, with `seed`, `seed` + 1, ..."})
    base_max_steps: int | None = field(
        default=None,
        metadata={"help": "Steps of plain finetuning before, shared by all rows. Default: 800 for digits, else 0."},
    )
    equal_wall_time: list[str] = field(
        default_factory=list, metadata={"help": "Rows that are run for the time of the row nullspace, too."}
    )
    profile: str = field(default="quick", metadata={"help": "Name of a profile, or a JSON file with one."})
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Other datasets of the profile, each as NAME=FOLDER_OR_HUB_ID."}
    )
    evaluate_on: str | None = field(
        default=None, metadata={"help": "Split to measure on. Default: test for digits, else validation."}
    )
    max_robustness_samples: int | None = field(default=None, metadata={"help": "Measure on this many images at most."})


def parse(argv: list[str]):
    """Flags, or a single JSON file."""
    types = (ModelArguments, DataArguments, CompareArguments, NullspaceTrainingArguments)
    model_args, data_args, compare_args, args = parse_arguments(types, argv, DIGITS_DEFAULTS, "compare_methods.py")
    is_digits = data_args.source is None and model_args.model_name_or_path is None
    if compare_args.num_seeds < 1:
        raise ValueError(f"`num_seeds` must be at least 1, but got {compare_args.num_seeds}.")
    if compare_args.base_max_steps is None:
        compare_args.base_max_steps = DIGITS_BASE["max_steps"] if is_digits else 0
    if compare_args.evaluate_on is None:
        compare_args.evaluate_on = "test" if data_args.source is None else "validation"
    dataset_locations(compare_args.datasets)
    return model_args, data_args, compare_args, args, is_digits


class Comparison:
    """
    The runs of a comparison, on disk as soon as they are finished.

    Args:
        model_args, data_args, compare_args, args: The flags.
        is_digits (`bool`): Whether neither a model nor a dataset is named.
    """

    def __init__(self, model_args, data_args, compare_args: CompareArguments, args, is_digits: bool):
        self.model_args, self.data_args, self.compare_args, self.args = model_args, data_args, compare_args, args
        self.folder, self.profile = Path(args.output_dir), resolve_profile(compare_args.profile)
        check_packages(self.profile)
        self.rows = plan_rows(compare_args.methods, METHODS, read_variants(compare_args.variants))
        names, timed = [row.name for row in self.rows], compare_args.equal_wall_time
        if not set(timed) <= set(names) or (timed and NULLSPACE not in names):
            raise ValueError(
                f"`equal_wall_time` takes rows of this comparison, with {NULLSPACE!r} among them, but got {timed}, and the "
                f"rows are {names}."
            )
        taken = [name for name in names if name.endswith(EQUAL_TIME)]
        if taken:
            raise ValueError(
                f"The variants {taken} need other names: those of equal wall time end with {EQUAL_TIME!r}."
            )
        for row in self.rows:  # so that an argument out of range is known before any run
            try:
                self.arguments_of(row, args.seed)
            except (TypeError, ValueError) as error:
                kind = "variant" if row.arguments else "method"
                raise ValueError(f"The {kind} {row.name!r}: {error}") from error
        steps = {"max_steps": compare_args.base_max_steps}
        self.base = Row(BASE, PLAIN, arguments={**DIGITS_BASE, **steps} if is_digits else steps)
        hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
        self.splits, self.labels = load_data(data_args, args.seed, **hub)
        self.images = self._evaluation_images()
        self.columns = {
            "image_column_name": data_args.image_column_name,
            "label_column_name": data_args.label_column_name,
        }

    @property
    def accelerator(self) -> Accelerator:
        """A new one each time: training arguments reset the state that an earlier one stands on."""
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else None
        return Accelerator(cpu=self.args.use_cpu, mixed_precision=precision)

    @property
    def seeds(self) -> list[int]:
        return [self.args.seed + index for index in range(self.compare_args.num_seeds)]

    def folder_of(self, name: str, seed: int) -> Path:
        return self.folder / BASE if name == BASE else self.folder / "runs" / f"{name}-{seed}"

    def arguments_of(self, row: Row, seed: int) -> NullspaceTrainingArguments:
        """The comparison's training arguments with those of the row."""
        method = METHODS[row.method]
        common = {item.name: getattr(self.args, item.name) for item in fields(self.args) if item.init}
        ours = {"output_dir": str(self.folder_of(row.name, seed)), "seed": seed, "data_seed": seed}
        ours |= {"remove_unused_columns": False, "resume_from_checkpoint": None, "push_to_hub": False}
        ours |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
        return method.args_class(**{**common, **method.fixed_arguments, **row.arguments, **ours})

    def train(self, row: Row, seed: int) -> dict[str, Any]:
        """Trains a row with a seed, unless it is there; returns what its `training.json` holds."""
        folder, args = self.folder_of(row.name, seed), self.arguments_of(row, seed)
        is_trained = row is not self.base or self.compare_args.base_max_steps > 0
        settings = {"method": row.method, "arguments": training_settings(args) if is_trained else {"max_steps": 0}}
        if row is self.base:
            settings |= {"model": _settings_of(self.model_args), "data": _settings_of(self.data_args)}
        else:
            start = self.folder_of(row.start, seed)
            settings["start"] = {"row": row.start, "settings_hash": read_run(start)["settings_hash"]}
        run = read_run(folder, settings)
        self.accelerator.wait_for_everyone()
        if run is not None:
            return run
        if self.accelerator.is_main_process:
            begin_run(folder)
            print(f"Training {folder.name}", flush=True)
        self.accelerator.wait_for_everyone()
        set_seed(seed)
        model, processor = load_model(self.model_args, self.labels) if row is self.base else self.load(start)
        transform = image_transform(processor, **self.columns, num_channels=channels_of(model))
        train = self.splits["train"].with_transform(transform)
        trainer = METHODS[row.method].trainer_class(
            model,
            args,
            data_collator=NullspaceDataCollator(num_labels=len(self.labels)),
            train_dataset=train,
            processing_class=processor,
        )
        begin = time.perf_counter()
        if is_trained:
            trainer.train()
        facts = {"seconds": time.perf_counter() - begin, "steps": trainer.state.global_step}
        facts["synthesis_seconds"] = sum(entry["seconds"] for entry in trainer.noise_history)
        facts["noise_history"] = trainer.noise_history
        trainer.save_model()
        if self.accelerator.is_main_process:
            write_run(folder, settings, facts)
        self.accelerator.wait_for_everyone()
        return read_run(folder, settings)

    def load(self, folder: Path):
        """The model and image processor of a finished run."""
        return load_model(ModelArguments(str(folder), trust_remote_code=self.model_args.trust_remote_code))

    def evaluate(self, row: Row, seed: int) -> RobustnessReport:
        """Measures a finished run, unless it was measured so before."""
        folder = self.folder_of(row.name, seed)
        report_folder = folder / f"robustness-{json_hash(self.evaluation_settings())[:12]}"
        if (report_folder / "robustness.json").is_file():
            return RobustnessReport.load(report_folder)
        (model, processor), accelerator = self.load(folder), self.accelerator
        return evaluate_robustness(
            model.to(accelerator.device).eval(),
            processor,
            self.images,
            self.profile,
            accelerator=accelerator,
            output_dir=report_folder,
            datasets=dataset_locations(self.compare_args.datasets),
            model_name=folder.name,
            disable_tqdm=self.args.disable_tqdm,
            **self.columns,
        )

    def evaluation_settings(self) -> dict[str, Any]:
        """What can change a number of an evaluation beside the model; another has a folder of its own."""
        limits = {"max_robustness_samples": self.compare_args.max_robustness_samples, "seed": self.args.seed}
        limits |= {"max_eval_samples": self.data_args.max_eval_samples, "num_images": len(self.images)}
        where = {"split": self.compare_args.evaluate_on, "datasets": self.compare_args.datasets}
        return {"profile": self.profile.name, "profile_hash": self.profile.hash, **where, **limits}

    def _evaluation_images(self):
        name, limit = self.compare_args.evaluate_on, self.compare_args.max_robustness_samples
        if name not in self.splits or name == "train":
            others = [split for split in self.splits if split != "train"]
            raise ValueError(f"`evaluate_on` must be one of the splits {others}, but got {name!r}.")
        return draw_images(self.splits[name], limit, self.args.seed)

    # ---- All runs -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Trains and measures everything; returns the results."""
        self.train(self.base, self.args.seed)
        base = self.evaluate(self.base, self.args.seed)
        reports, runs, timed = {}, {}, []
        for seed in self.seeds:
            for row in self.rows:
                runs[row.name, seed] = self.train(row, seed)
                reports[row.name, seed] = self.evaluate(row, seed)
            timed = [
                self._for_equal_time(row, seed, runs)
                for row in self.rows
                if row.name in self.compare_args.equal_wall_time
            ]
            for row in timed:
                runs[row.name, seed] = self.train(row, seed)
                reports[row.name, seed] = self.evaluate(row, seed)
        outcomes = {BASE: [base.outcomes] * len(self.seeds)}
        for row in [*self.rows, *timed]:
            outcomes[row.name] = [reports[row.name, seed].outcomes for seed in self.seeds]
        columns = [column for column in self.profile.columns if column.name in base.columns]
        rows = {row.name: {**asdict(row), "kind": self._kind(row)} for row in self.rows}
        for name in (name for name in rows.copy() if name in self.compare_args.equal_wall_time):
            rows[f"{name}-{EQUAL_TIME}"] = {**rows[name], "name": f"{name}-{EQUAL_TIME}", "kind": EQUAL_TIME}
        references = {row.name: self._references(row) for row in self.rows} | {BASE: [PLAIN]}
        references[NULLSPACE] = [*references.get(NULLSPACE, ()), *(row.name for row in timed)]
        return {
            "rows": rows,
            "seeds": self.seeds,
            "confidence": CONFIDENCE,
            "evaluation": {**self.evaluation_settings(), "not_measured": base.not_measured},
            "methods": summarize_methods(columns, outcomes, references, self.args.seed),
            "training": {row.name: self._cost(row, runs) for row in [*self.rows, *timed]},
        }

    def _kind(self, row: Row) -> str:
        return METHOD if row.name in self.compare_args.methods else VARIANT

    def _for_equal_time(self, row: Row, seed: int, runs: dict) -> Row:
        """The row with as many steps as fit into the time that nullspace finetuning took with that seed."""
        own = runs[row.name, seed]
        steps = round(runs[NULLSPACE, seed]["seconds"] / own["seconds"] * own["steps"])
        return replace(row, name=f"{row.name}-{EQUAL_TIME}", arguments={**row.arguments, "max_steps": max(1, steps)})

    def _references(self, row: Row) -> list[str]:
        """The rows that a row is compared with, plain finetuning from the same start among them."""
        others = [PLAIN, *([PERMUTED] if row.method == NULLSPACE else [])]
        if self._kind(row) == VARIANT:
            others += [NULLSPACE, row.start]
            if row.start != BASE:
                others += [known.name for known in self.rows if (known.method, known.start) == (PLAIN, row.start)]
        names = [known.name for known in self.rows]
        return [name for name in dict.fromkeys(others) if name != row.name and name in names]

    def _cost(self, row: Row, runs: dict) -> dict[str, Any]:
        """Means over seeds; the time of a row counts that of the row it started from."""
        rows = {known.name: known for known in self.rows}

        def total(row: Row, seed: int) -> float:
            return runs[row.name, seed]["seconds"] + (total(rows[row.start], seed) if row.start in rows else 0.0)

        own = [runs[row.name, seed] for seed in self.seeds]
        growths = [norm_growth(run["noise_history"]) for run in own]
        seconds = [total(row, seed) for seed in self.seeds]
        return {
            "steps": fmean(run["steps"] for run in own),
            "seconds": fmean(seconds),
            "synthesis_seconds": fmean(run["synthesis_seconds"] for run in own),
            "relative_cost": fmean(seconds) / fmean(runs[PLAIN, seed]["seconds"] for seed in self.seeds),
            "norm_growth": None if None in growths else fmean(growths),
            "per_seed": {"steps": [run["steps"] for run in own], "seconds": seconds, "norm_growth": growths},
        }


def _settings_of(arguments) -> dict[str, Any]:
    return {name: value for name, value in asdict(arguments).items() if name not in NEUTRAL_FIELDS}


def save(results: dict[str, Any], folder: Path) -> None:
    """Writes and prints the tables; draws the figure where matplotlib is installed."""
    tables = comparison_markdown(results)
    write_text(folder / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
    write_text(folder / TABLES_NAME, tables + "\n")
    shown = [name for name, row in results["rows"].items() if name != PLAIN and row["kind"] != EQUAL_TIME]
    if shown:
        differences = {name: results["methods"][name]["minus"][PLAIN] for name in shown}
        costs = {name: results["training"][name]["relative_cost"] for name in shown}
        with optional_figure(FIGURE_NAME):
            plot_methods(differences, costs, folder / FIGURE_NAME)
    print(f"\n{tables}\n\nEverything is in {folder}")


def main(argv: list[str]) -> dict[str, Any]:
    comparison = Comparison(*parse(argv))
    results = comparison.run()
    if comparison.accelerator.is_main_process:
        save(results, comparison.folder)
    return results


if __name__ == "__main__":
    run_command("compare_methods.py", main, sys.argv[1:])
    PartialState().destroy_process_group()  # or a launched run may abort when Python ends
