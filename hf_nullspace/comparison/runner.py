"""Trains and measures one row of a comparison with one seed, unless that was done before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from transformers import set_seed

from ..baselines import PLAIN, WAYS
from ..data.loading import DataArguments, load_data
from ..data.splits import draw_images
from ..models.loading import LoadedModel, ModelArguments, load_classifier
from ..models.patch_projection import channels_of
from ..models.preprocessing import Preprocessing
from ..robustness.evaluation import evaluate_robustness
from ..robustness.packages import check_packages
from ..robustness.profiles import resolve_profile
from ..robustness.report import REPORT_NAME, RobustnessReport
from ..training.arguments import NullspaceTrainingArguments
from ..training.augmentation import check_package
from ..training.augmented_images import AugmentedImages, without_augmentation
from ..training.data_collator import NullspaceDataCollator
from ..training.recipe import head_trained_first, training_images
from ..utils.files import json_hash
from ..utils.flags import dataset_locations
from .arguments import CompareArguments
from .plan import BASE, Row
from .runs import begin_run, read_run, training_settings, write_run


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


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

    def arguments_of(self, row: Row, seed: int) -> NullspaceTrainingArguments:
        """The comparison's training arguments with those of the row."""
        way = WAYS[row.way]
        given = {item.name: getattr(self.args, item.name) for item in fields(self.args) if item.init}
        defaults = {item.name: item.default for item in fields(self.args)}
        common = {name: value for name, value in given.items() if value != defaults[name]}  # ways have other defaults
        ours: dict[str, Any] = {"seed": seed, "data_seed": seed}
        ours |= {"remove_unused_columns": False, "resume_from_checkpoint": None, "push_to_hub": False}
        ours |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
        settings = {**common, **way.fixed_arguments, **row.arguments, **ours}
        return way.arguments(**{**settings, "output_dir": str(self.folder_of(row.name, seed))})

    def train(self, row: Row, seed: int) -> dict[str, Any]:
        """Trains a row with a seed, unless it is finished; returns the content of its `training.json`."""
        folder = self.folder_of(row.name, seed)
        args = self.arguments_of(row, seed)
        start = None if row is self.base else self.folder_of(row.start, seed)
        is_trained = row is not self.base or self.compare_args.base_max_steps > 0
        settings = self._settings_of(row, args if is_trained else None, start)
        run = read_run(folder, settings)
        self.accelerator.wait_for_everyone()
        if run is not None:
            return run
        if self.accelerator.is_main_process:
            begin_run(folder)
            print(f"Training {folder.name}", flush=True)
        self.accelerator.wait_for_everyone()
        set_seed(seed)
        splits, labels = self.data
        model, processor, has_new_head = (
            load_classifier(self.model_args, labels) if start is None else self.load(start)
        )
        preprocessing = Preprocessing.of(processor, channels_of(model))
        train = training_images(splits["train"], preprocessing, self.compare_args, labels, **self.columns, seed=seed)
        trainer = WAYS[row.way].trainer_class(
            model,
            args,
            data_collator=NullspaceDataCollator(num_labels=len(labels)),
            train_dataset=train,
            processing_class=processor,
        )
        head_first = None
        if start is None:
            parts = (without_augmentation(train), trainer.data_collator, args, trainer.accelerator)
            head_first = head_trained_first(trainer.model, self.compare_args, has_new_head, *parts)
        begin = time.perf_counter()
        if is_trained:
            trainer.train()
        facts = {"seconds": time.perf_counter() - begin, "steps": trainer.state.global_step}
        facts["synthesis_seconds"] = sum(entry["seconds"] for entry in trainer.noise_history)
        facts["noise_history"] = trainer.noise_history
        facts["augmentation"] = str(train.augmentation) if isinstance(train, AugmentedImages) else None
        facts["head_first"] = head_first
        trainer.save_model()
        if self.accelerator.is_main_process:
            write_run(folder, settings, facts)
        self.accelerator.wait_for_everyone()
        return read_run(folder, settings)

    def _settings_of(self, row: Row, args: NullspaceTrainingArguments | None, start: Path | None) -> dict[str, Any]:
        """The settings that identify a run: its way, its arguments and its start."""
        settings = {"method": row.way, "arguments": {"max_steps": 0} if args is None else training_settings(args)}
        settings |= self.compare_args.recipe_settings()
        if start is not None:
            return {**settings, "start": {"row": row.start, "settings_hash": read_run(start)["settings_hash"]}}
        given = {"model": asdict(self.model_args), "data": asdict(self.data_args)}
        return settings | {
            kind: {name: value for name, value in values.items() if name not in NEUTRAL_FIELDS}
            for kind, values in given.items()
        }

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

    def evaluate(self, row: Row, seed: int) -> RobustnessReport:
        """Measures a finished run, unless it was already measured with these settings."""
        folder = self.folder_of(row.name, seed)
        report_folder = folder / f"robustness-{json_hash(self.evaluation_settings())[:12]}"
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
