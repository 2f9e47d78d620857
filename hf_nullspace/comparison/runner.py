"""Trains and measures one row of a comparison with one seed, unless that was done before."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import set_seed

from ..baselines import PLAIN, WAYS
from ..data.loading import DataArguments, load_data
from ..data.splits import draw_images
from ..models.interpolation import interpolate
from ..models.loading import LoadedModel, ModelArguments, load_classifier
from ..models.patch_projection import channels_of
from ..models.preprocessing import Preprocessing
from ..robustness.evaluation import evaluate_robustness
from ..robustness.packages import check_packages
from ..robustness.profiles import resolve_profile
from ..robustness.report import REPORT_NAME, RobustnessReport
from ..training.arguments import NullspaceTrainingArguments
from ..training.augmentation import check_package
from ..training.augmented_images import augmentation_in_words, without_augmentation
from ..training.checkpoints import last_whole_checkpoint
from ..training.data_collator import NullspaceDataCollator
from ..training.recipe import head_trained_first, training_images
from ..training.trainer import NullspaceTrainer
from ..training.weight_average import WeightAverageCallback
from ..utils.files import json_hash
from ..utils.flags import dataset_locations
from .arguments import CompareArguments
from .costs import TIMED_STEPS, Cost, CostFile, mean_cost, measure_costs
from .plan import BASE, Row
from .runs import RUN_NAME, begin_run, read_run, training_settings, write_run


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


# Checkpoints of a row at least, so that one that is stopped goes on from the last; with `save_steps`, there may be more.
SAVES = 5
# What the settings of an interpolated run call its way.
INTERPOLATION = "interpolated"
# Arguments that change neither a model nor an evaluation.
NEUTRAL_FIELDS = ("token", "cache_dir", "preprocessing_num_workers", "max_eval_samples")


class Runner:
    """
    Trains and measures rows. Each is saved as soon as it is finished.

    Args:
        model_args ([`ModelArguments`]), data_args ([`DataArguments`]), compare_args ([`CompareArguments`]),
        args ([`NullspaceTrainingArguments`]): The flags.
        base_arguments (`Mapping[str, Any]`, *optional*): Training arguments of the model that all rows start from.

    Raises:
        `ImportError`: If the profile needs a package that is missing.
        `ValueError`: If there is no such profile.
    """

    def __init__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        compare_args: CompareArguments,
        args: NullspaceTrainingArguments,
        base_arguments: Mapping[str, Any] | None = None,
    ):
        self.model_args = model_args
        self.data_args = data_args
        self.compare_args = compare_args
        self.args = args
        self.folder = Path(args.output_dir)
        self.profile = resolve_profile(compare_args.profile)
        check_packages(self.profile)
        check_package(compare_args.augmentation)
        steps = {"max_steps": compare_args.base_max_steps}
        self.base = Row(BASE, PLAIN.name, arguments={**(base_arguments or {}), **steps})
        self.columns: dict[str, Any] = data_args.columns

    @property
    def accelerator(self) -> Accelerator:
        """A new accelerator each time: new training arguments reset the shared state of earlier ones."""
        precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else None
        return Accelerator(cpu=self.args.use_cpu, mixed_precision=precision)

    def folder_of(self, name: str, seed: int) -> Path:
        return self.folder / BASE if name == BASE else self.folder / "runs" / f"{name}-{seed}"

    # ---- Training -----------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> tuple[DatasetDict, list[str]]:
        """The splits, and the names of their classes."""
        hub = {"cache_dir": self.model_args.cache_dir, "token": self.model_args.token}
        return load_data(self.data_args, self.args.seed, **hub)

    def arguments_of(self, row: Row, seed: int, **changes: Any) -> NullspaceTrainingArguments:
        """The comparison's training arguments with those of the row, and some changes."""
        way = WAYS[row.way]
        given = {item.name: getattr(self.args, item.name) for item in fields(self.args) if item.init}
        defaults = {item.name: item.default for item in fields(self.args)}
        common = {name: value for name, value in given.items() if value != defaults[name]}  # ways have other defaults
        ours: dict[str, Any] = {"seed": seed, "data_seed": seed}
        ours |= {"remove_unused_columns": False, "resume_from_checkpoint": None, "push_to_hub": False}
        ours |= {"save_strategy": "steps", "save_total_limit": 1, "save_only_model": False}
        ours |= {"eval_strategy": "no", "load_best_model_at_end": False}
        settings = {**common, **way.fixed_arguments, **row.arguments, **ours}
        max_steps = settings.get("max_steps", -1)
        if max_steps > 0:
            settings["save_steps"] = min(self.args.save_steps, math.ceil(max_steps / SAVES))
        return way.arguments(**{**settings, "output_dir": str(self.folder_of(row.name, seed)), **changes})

    def recipe_of(self, row: Row) -> CompareArguments:
        """The flags with those that the row sets for itself."""
        return replace(self.compare_args, **row.recipe)

    def make_trainer(
        self, row: Row, args: NullspaceTrainingArguments, start: Path | None, seed: int
    ) -> tuple[NullspaceTrainer, bool]:
        """
        A trainer of the row, from a finished run or, without one, from the model that the flags name; and whether its head
        is new.
        """
        set_seed(seed)
        splits, labels = self.data
        recipe = self.recipe_of(row)
        model, processor, has_new_head = (
            load_classifier(self.model_args, labels) if start is None else self.load(start)
        )
        preprocessing = Preprocessing.of(processor, channels_of(model))
        train = training_images(splits["train"], preprocessing, recipe, labels, **self.columns, seed=seed)
        trainer = WAYS[row.way].trainer_class(
            model,
            args,
            data_collator=NullspaceDataCollator(num_labels=len(labels)),
            train_dataset=train,
            processing_class=processor,
            callbacks=[WeightAverageCallback(recipe.ema_decay)] if recipe.ema_decay and row is not self.base else None,
        )
        return trainer, has_new_head

    def is_finished(self, row: Row, seed: int) -> bool:
        """Whether the row has been trained with the seed, and measured with these settings."""
        folder = self.folder_of(row.name, seed)
        return (folder / RUN_NAME).is_file() and (self.report_folder(folder) / REPORT_NAME).is_file()

    def train(self, row: Row, seed: int) -> dict[str, Any]:
        """
        Trains a row with a seed, from its last checkpoint if it was stopped, unless it is finished; returns the content of
        its `training.json`.
        """
        folder = self.folder_of(row.name, seed)
        args = self.arguments_of(row, seed)
        start = None if row is self.base else self.folder_of(row.start, seed)
        is_trained = row is not self.base or self.compare_args.base_max_steps > 0
        settings = self._settings_of(row, args if is_trained else None, start, seed)
        run = read_run(folder, settings)
        self.accelerator.wait_for_everyone()
        if run is not None:
            return run
        if self.accelerator.is_main_process:
            began = begin_run(folder, settings)
            print(f"{'Going on with' if began else 'Training'} {folder.name}", flush=True)
        self.accelerator.wait_for_everyone()
        if row.interpolated_with is not None:
            facts = self._interpolate(row, seed)
        else:
            trainer, has_new_head = self.make_trainer(row, args, start, seed)
            train = trainer.train_dataset
            head_first = None
            if start is None:
                parts = (without_augmentation(train), trainer.data_collator, args, trainer.accelerator)
                head_first = head_trained_first(trainer.model, self.compare_args, has_new_head, *parts)
            if is_trained:
                trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
            facts = {"steps": trainer.state.global_step, "noise_history": trainer.noise_history}
            facts["augmentation"] = augmentation_in_words(train)
            facts["head_first"] = head_first
            trainer.save_model()
        if self.accelerator.is_main_process:
            write_run(folder, settings, facts)
        self.accelerator.wait_for_everyone()
        return read_run(folder, settings)

    def _interpolate(self, row: Row, seed: int) -> dict[str, Any]:
        """Saves the average of the weights of two finished runs; nothing is trained."""
        (start, *_), (finetuned, processor, _) = (
            self.load(self.folder_of(name, seed)) for name in (row.interpolated_with, row.start)
        )
        if self.accelerator.is_main_process:
            folder = self.folder_of(row.name, seed)
            interpolate(start, finetuned, self.compare_args.interpolation_weight).save_pretrained(folder)
            processor.save_pretrained(folder)
        return {"steps": 0, "noise_history": []}

    def _settings_of(
        self, row: Row, args: NullspaceTrainingArguments | None, start: Path | None, seed: int
    ) -> dict[str, Any]:
        """The settings that identify a run: its way, its arguments, its recipe and its start."""
        if row.interpolated_with is not None:
            ends = {name: self._start_of(name, seed) for name in (row.interpolated_with, row.start)}
            return {"method": INTERPOLATION, "weight": self.compare_args.interpolation_weight, "ends": ends}
        settings = {"method": row.way, "arguments": {"max_steps": 0} if args is None else training_settings(args)}
        settings |= self._recipe_settings(row)
        if start is not None:
            return {**settings, "start": {"row": row.start, "settings_hash": self._start_of(row.start, seed)}}
        given = {"model": asdict(self.model_args), "data": asdict(self.data_args)}
        return settings | {
            kind: {name: value for name, value in values.items() if name not in NEUTRAL_FIELDS}
            for kind, values in given.items()
        }

    def _recipe_settings(self, row: Row) -> dict[str, Any]:
        recipe = self.recipe_of(row)
        average = {"ema_decay": recipe.ema_decay} if recipe.ema_decay and row is not self.base else {}
        return recipe.recipe_settings() | average

    def _start_of(self, name: str, seed: int) -> str:
        """What identifies the finished run of a row."""
        return read_run(self.folder_of(name, seed))["settings_hash"]

    # ---- Costs --------------------------------------------------------------------------------------------------

    def plain_steps(self) -> int:
        """The steps that the flags ask for, of plain finetuning."""
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        images = len(self.data[0]["train"]) / (args.train_batch_size * args.world_size)
        batches = math.floor(images) if args.dataloader_drop_last else math.ceil(images)
        return math.ceil(args.num_train_epochs * max(1, math.ceil(batches / args.gradient_accumulation_steps)))

    def costs_of(self, rows: Sequence[Row]) -> dict[str, Cost]:
        """
        The time that training of each row takes, by name. What was measured before stays: a comparison that goes on has
        the same steps.

        Args:
            rows (`Sequence[Row]`): The rows, with plain finetuning as the first.
        """
        timed = [row.for_steps(1) for row in rows]
        seed = self.args.seed
        keys = {
            row.name: json_hash(
                {"method": row.way, "arguments": training_settings(self.arguments_of(row, seed))}
                | self._recipe_settings(row)
            )
            for row in timed
        }
        file = CostFile(self.folder, keys[rows[0].name])
        missing = file.missing(keys)
        self.accelerator.wait_for_everyone()
        if missing:
            named = {row.name: row for row in timed}
            measured = self._measure_costs([named[name] for name in missing])
            file.add({keys[name]: cost for name, cost in measured.items()})
            self.accelerator.wait_for_everyone()
        return {name: file.costs[key] for name, key in keys.items()}

    def _measure_costs(self, rows: Sequence[Row]) -> dict[str, Cost]:
        """The costs of rows that are timed in turn, all from the base model, and averaged over processes."""
        if self.accelerator.is_main_process:
            print(f"Timing {len(rows)} rows in turn", flush=True)
        folder, seed = self.folder / "timing", self.args.seed
        # A round begins with the first step alone, which is not counted as one.
        changes: dict[str, Any] = {"noise_refresh_steps": TIMED_STEPS + 1, "output_dir": str(folder)}
        changes |= {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
        changes["max_steps"] = min(TIMED_STEPS, self.plain_steps()) + 1
        named = {row.name: row for row in rows}

        def make_trainer(name: str) -> NullspaceTrainer:
            args = self.arguments_of(named[name], seed, **changes)
            return self.make_trainer(named[name], args, self.folder_of(BASE, seed), seed)[0]

        arguments = {row.name: self.arguments_of(row, seed) for row in rows}
        rounds = {name: args.noise_refresh_steps if args.noise_weight else None for name, args in arguments.items()}
        measured = {
            name: mean_cost(gather_object([cost])) for name, cost in measure_costs(make_trainer, rounds).items()
        }
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        return measured

    def load(self, folder: Path) -> LoadedModel:
        """The model and image processor of a finished run."""
        return load_classifier(ModelArguments(str(folder), trust_remote_code=self.model_args.trust_remote_code))

    # ---- Measuring ----------------------------------------------------------------------------------------------

    @cached_property
    def images(self) -> Dataset:
        """
        The evaluation images.

        Raises:
            `ValueError`: If `evaluate_on` is no split that was held back from training.
        """
        splits, _ = self.data
        name = self.compare_args.evaluate_on
        if name not in splits or name == "train":
            others = [split for split in splits if split != "train"]
            raise ValueError(f"`evaluate_on` must be one of the splits {others}, but got {name!r}.")
        return draw_images(splits[name], self.compare_args.max_robustness_samples, self.args.seed)

    def report_folder(self, folder: Path) -> Path:
        """Where the report of a run with these settings is."""
        return folder / f"robustness-{json_hash(self.evaluation_settings())[:12]}"

    def evaluate(self, row: Row, seed: int) -> RobustnessReport:
        """Measures a finished run, unless it was already measured with these settings."""
        folder = self.folder_of(row.name, seed)
        report_folder = self.report_folder(folder)
        if (report_folder / REPORT_NAME).is_file():
            return RobustnessReport.load(report_folder)
        model, processor, _ = self.load(folder)
        accelerator = self.accelerator
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
        """All settings besides the model that affect an evaluation. Other settings get another folder."""
        limits = {"max_robustness_samples": self.compare_args.max_robustness_samples, "seed": self.args.seed}
        limits |= {"max_eval_samples": self.data_args.max_eval_samples, "num_images": len(self.images)}
        where = {"split": self.compare_args.evaluate_on, "datasets": self.compare_args.datasets}
        return {"profile": self.profile.name, "profile_hash": self.profile.hash, **where, **limits}
