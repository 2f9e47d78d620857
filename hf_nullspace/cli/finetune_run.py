"""One run of `hf-nullspace finetune`, in phases: training, measuring, reporting and publishing."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..baselines import PLAIN
from ..comparison.runs import training_settings
from ..data.loading import DataArguments, load_data
from ..hub import card_results
from ..hub.card_results import CONTROL_NAME, MODEL_NAME
from ..hub.model_card import count_used, markdown_table
from ..models.loading import ModelArguments, load_classifier
from ..models.patch_projection import channels_of
from ..models.preprocessing import Preprocessing, image_transform
from ..robustness.evaluate_metrics import Accuracy
from ..robustness.evaluation import evaluate_robustness
from ..robustness.outcomes import model_fingerprint
from ..robustness.report import RobustnessReport
from ..training.augmentation import NO_AUGMENTATION
from ..training.augmented_images import without_augmentation
from ..training.checkpoints import check_whole, last_whole_checkpoint
from ..training.data_collator import NullspaceDataCollator
from ..training.figure import plot_noise_history
from ..training.head_first import head_in_words, load_head, save_head
from ..training.recipe import RecipeArguments, head_trained_first, training_images
from ..training.trainer import NullspaceTrainer
from ..utils.figures import optional_figure
from ..utils.phases import PhaseCallback, announced, bar_of
from .arguments import DIGITS_BASE
from .finetune_arguments import FinetuneArguments, FinetuneTrainingArguments
from .run_folder import RunFolder


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

FIGURE_NAME = "noise_norm.png"
# Parts of a measurement that a run which is stopped goes on from; one folder for each model, by its weights.
MEASURING_FOLDER = ".measuring"
# The head, trained alone, that all finetuning of the run starts from.
HEAD_NAME = ".trained_head.safetensors"
HEAD_PHASE = "head"
# Forward passes per image of a report: one clean, three corrupted, and an attack of one step.
REPORT_PASSES = 8
# The base model and the control are neither published nor resumed from a given checkpoint.
UNPUBLISHED = {"push_to_hub": False, "resume_from_checkpoint": None}


class FinetuneRun:
    """
    One run of the command, in phases. The results of a phase are saved before the next begins.

    Args:
        model_args, data_args, finetune_args, args: What [`parse_finetune_arguments`] gives.

    Raises:
        `ValueError`: If `output_dir` holds another run.
    """

    def __init__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        finetune_args: FinetuneArguments,
        args: FinetuneTrainingArguments,
    ):
        self.model_args = model_args
        self.data_args = data_args
        self.finetune_args = finetune_args
        self.args = args
        self.is_digits = data_args.source is None and model_args.model_name_or_path is None
        resume = args.resume_from_checkpoint
        self.takes_last = str(resume).lower() in ("true", "last")
        self.checkpoint = resume if resume and not self.takes_last else None
        args.device  # noqa: B018 (starts the processes that check the folder)
        self.folder = RunFolder(args.output_dir, self._settings(), bool(resume), finetune_args.overwrite_output_dir)
        if self.checkpoint is not None:
            check_whole(self.checkpoint)
        elif self.takes_last:
            self.checkpoint = last_whole_checkpoint(args.output_dir)
            if self.checkpoint is None and args.should_log:
                logger.warning(f"There is no checkpoint in {args.output_dir!r} to resume from: it is trained anew.")
        self.seconds_of_a_pass: float | None = None
        self._warn_of_missing_packages()

    def _settings(self) -> dict[str, Any]:
        """The settings that identify this run; logging, saving and measuring are not part of them."""
        neutral = ("token", "cache_dir", "trust_remote_code", "preprocessing_num_workers")
        given = {**asdict(self.model_args), **asdict(self.data_args)}
        defaults = {item.name: item.default for kind in (ModelArguments, DataArguments) for item in fields(kind)}
        settings = {name: value for name, value in given.items() if name not in neutral and value != defaults[name]}
        for name, value in settings.items():
            if isinstance(value, str) and Path(value).exists():
                settings[name] = str(Path(value).resolve())
        if self.is_digits:
            settings["base_max_steps"] = self.finetune_args.base_max_steps
        if self.finetune_args.ema_decay:
            settings["ema_decay"] = self.finetune_args.ema_decay
        return {**settings, **self.finetune_args.recipe_settings(), **training_settings(self.args)}

    def _warn_of_missing_packages(self) -> None:
        if find_spec("matplotlib") is None and self.args.should_log:
            logger.warning(
                "matplotlib is missing, so no figures will be drawn; all else is done. `pip install "
                "'hf_nullspace[plots]'` before the run ends brings them."
            )

    def run(self) -> dict[str, dict[str, float]]:
        """Runs all phases and returns the accuracies."""
        args = self.args
        set_seed(args.seed)
        with announced("Loading images and model"):
            self.splits, self.labels = load_data(
                self.data_args, args.seed, cache_dir=self.model_args.cache_dir, token=self.model_args.token
            )
            model, self.processor, self.has_new_head = load_classifier(self.model_args, self.labels)
        preprocessing = Preprocessing.of(self.processor, channels_of(model))
        columns = self.data_args.columns
        recipe = self.finetune_args if args.do_train else RecipeArguments(NO_AUGMENTATION)
        train, validation = self.splits["train"], self.splits["validation"]
        self.shared = {
            "data_collator": NullspaceDataCollator(num_labels=len(self.labels)),
            "train_dataset": training_images(train, preprocessing, recipe, self.labels, **columns, seed=args.seed),
            "eval_dataset": validation.with_transform(image_transform(preprocessing, **columns)),
            "processing_class": self.processor,
            "preprocess_logits_for_metrics": predicted_classes,
            "compute_metrics": accuracy,
        }
        # The base is copied before the trainer adds its hook to the model. The trainer is built before the base is
        # trained, since it checks all settings.
        base = copy.deepcopy(model) if self.is_digits or self.finetune_args.plain_control else None
        trainer = NullspaceTrainer(model, args, callbacks=self.finetune_args.callbacks(), **self.shared)
        self.folder.begin()
        if args.do_train:
            if self.is_digits:
                base = self._base(base)
                model.load_state_dict(base.state_dict())
            elif self._train_head(trainer) and base is not None:
                base.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
            self._nullspace(trainer)
        name = MODEL_NAME if args.do_train else "model"
        models = {name: trainer.accelerator.unwrap_model(trainer.model)}
        if self.finetune_args.plain_control:
            models = {"base": base, CONTROL_NAME: self._plain(base), **models}
        self._evaluate(trainer)
        reports = self._measure(trainer, models)
        results = {name: report.accuracies for name, report in reports.items()}
        if trainer.is_world_process_zero():
            if args.do_train:
                trainer.card_extras.update(card_results(reports))
            reports[name].save(args.output_dir)
            self._write_results(trainer, results)
        if args.do_train:
            self._publish(trainer)
        if trainer.is_world_process_zero():
            shutil.rmtree(Path(args.output_dir, MEASURING_FOLDER), ignore_errors=True)
        return results

    # ---- Training -----------------------------------------------------------------------------------------------

    def _base(self, model: PreTrainedModel) -> PreTrainedModel:
        """Trains the digits model from scratch."""
        # No checkpoint selection or weight averaging here: those settings belong to the finetuning.
        settings: dict[str, Any] = {**DIGITS_BASE, "max_steps": self.finetune_args.base_max_steps}
        settings |= {"eval_strategy": "no", "load_best_model_at_end": False}
        if self.args.save_strategy == "best":
            settings["save_strategy"] = "no"
        return self._control("base", "Training the base model", model, **settings)

    def _train_head(self, trainer: NullspaceTrainer) -> bool:
        """Whether the head was trained alone, now or before the run was stopped."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        path = Path(self.args.output_dir, HEAD_NAME)
        if self.checkpoint is not None and HEAD_PHASE not in self.folder.finished:
            return False  # a run that began without it
        if HEAD_PHASE in self.folder.finished:
            facts = load_head(model, path)
        else:
            images, collator = without_augmentation(self.shared["train_dataset"]), self.shared["data_collator"]
            facts = head_trained_first(
                model, self.finetune_args, self.has_new_head, images, collator, self.args, trainer.accelerator
            )
            if facts is None:
                return False
            if trainer.is_world_process_zero():
                save_head(model, path, facts)
            self.folder.finish(HEAD_PHASE)
        trainer.card_settings["head_first"] = head_in_words(facts)
        return True

    def _plain(self, base: PreTrainedModel) -> PreTrainedModel:
        """The control: the base model finetuned without noise, by the same code for as many steps."""
        return self._control(CONTROL_NAME, "Plain finetuning", copy.deepcopy(base), self.finetune_args.callbacks())

    def _control(
        self, name: str, title: str, model: PreTrainedModel, callbacks: Sequence[TrainerCallback] = (), **changes: Any
    ) -> PreTrainedModel:
        """Trains a model without noise in a sub-folder; loads it if it is already finished."""
        folder = Path(self.args.output_dir, name)
        if name in self.folder.finished:
            return type(model).from_pretrained(folder).to(self.args.device)
        args = replace(self.args, **{**UNPUBLISHED, **PLAIN.fixed_arguments, **changes, "output_dir": str(folder)})
        trainer = PLAIN.trainer_class(model, args, callbacks=list(callbacks), **self.shared)
        self._train(trainer, title, last_whole_checkpoint(folder) if self.takes_last else None)
        trainer.save_model()
        self.folder.finish(name)
        return trainer.accelerator.unwrap_model(trainer.model)

    def _nullspace(self, trainer: NullspaceTrainer) -> None:
        title = "Nullspace finetuning" if self.args.noise_weight else "Finetuning"
        output = self._train(trainer, title, self.checkpoint)
        trainer.save_model()
        if "train_runtime" in output.metrics:  # a run that had finished before keeps its metrics
            trainer.log_metrics("train", output.metrics)
            trainer.save_metrics("train", output.metrics)
        if "train_runtime" in output.metrics or not Path(self.args.output_dir, TRAINER_STATE_NAME).is_file():
            trainer.save_state()
        self._warn_of_unused_noise(trainer.noise_history)
        trainer.create_model_card(**self._card_arguments)  # the trained model is complete even if a later phase fails

    def _warn_of_unused_noise(self, rounds: list[dict[str, Any]]) -> None:
        unused = len(rounds) - count_used(rounds)
        if unused and self.args.should_log:
            logger.warning(
                f"In {unused} of {len(rounds)} rounds the noise was not certified within `epsilon` ({self.args.epsilon:g}) and was "
                "left out: there training saw clean images alone. Raise `noise_max_steps` or `noise_num_certificate_images`, "
                "or set `noise_on_failure='shrink'`."
            )

    def _train(self, trainer: NullspaceTrainer, title: str, checkpoint: str | None):
        rounds = trainer.args.noise_refresh_steps if trainer.args.noise_weight else None
        trainer.add_callback(PhaseCallback(title, rounds, bar_of(trainer)))
        set_seed(trainer.args.seed)  # as at the end of the trainer's constructor, whatever was trained in between
        return trainer.train(resume_from_checkpoint=checkpoint)

    # ---- Measuring ----------------------------------------------------------------------------------------------

    def _evaluate(self, trainer: NullspaceTrainer) -> None:
        if not self.args.do_eval:
            return
        num_images = len(self.shared["eval_dataset"])
        with announced(f"Evaluating on {num_images} validation images"):
            metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        self.seconds_of_a_pass = 1 / max(metrics["eval_samples_per_second"], 1e-9)
        if trainer.noise is not None:
            self._measure_noise(trainer, num_images)

    def _measure_noise(self, trainer: NullspaceTrainer, num_images: int) -> None:
        """Measures the noise on validation images; there may be too few for a certificate."""
        try:
            with announced(f"Measuring the noise on {num_images} validation images", self._time_of(3 * num_images)):
                trainer.evaluate_noise()
        except ValueError as error:
            if self.args.should_log:
                logger.warning(f"The noise is not measured on the {num_images} validation images: {error}")

    def _measure(self, trainer: NullspaceTrainer, models: dict[str, PreTrainedModel]) -> dict[str, RobustnessReport]:
        """Measures the robustness of each model on the same images."""
        test = self.splits["test" if self.is_digits else "validation"]
        test = test.select(range(min(len(test), self.finetune_args.max_robustness_samples)))
        reports: dict[str, RobustnessReport] = {}
        for place, (name, model) in enumerate(models.items()):
            seconds = [sum(report.seconds.values()) / self.args.world_size for report in reports.values()]
            with announced(
                f"Measuring the robustness of {name!r} (model {place + 1} of {len(models)}) on {len(test)} images",
                estimate=max(seconds) if seconds else self._time_of(REPORT_PASSES * len(test)),
            ):
                reports[name] = self._report(trainer, name, model.to(self.args.device).eval(), test)
        return reports

    def _time_of(self, passes: int) -> float | None:
        """Estimated seconds of `passes` forward passes of one image, at the speed of the evaluation."""
        return None if self.seconds_of_a_pass is None else passes * self.seconds_of_a_pass

    def _report(
        self, trainer: NullspaceTrainer, name: str, model: PreTrainedModel, images: Dataset
    ) -> RobustnessReport:
        parts = Path(self.args.output_dir, MEASURING_FOLDER, f"{model_fingerprint(model)[:16]}-{len(images)}")
        return evaluate_robustness(
            model,
            self.processor,
            images,
            "preview",
            accelerator=trainer.accelerator,
            output_dir=parts,
            figures=False,  # the report of the finetuned model is saved again, where it is seen
            model_name=name,
            disable_tqdm=self.args.disable_tqdm,
            **self.data_args.columns,
        )

    # ---- Results ------------------------------------------------------------------------------------------------

    def _write_results(self, trainer: NullspaceTrainer, results: dict[str, dict[str, float]]) -> None:
        """Prints and writes the table, and writes the history of the noise and its figure."""
        trainer.save_metrics(
            "robustness", {f"{name}_{key}": value for name, row in results.items() for key, value in row.items()}
        )
        folder = Path(self.args.output_dir)
        if trainer.noise_history:
            with optional_figure(FIGURE_NAME):
                plot_noise_history(trainer.noise_history, folder / FIGURE_NAME)
        extras = (trainer.card_extras.get(name) for name in ("intervals", "differences"))
        table = markdown_table(results, *extras)
        print(f"\nAccuracy (%)\n\n{table}\n")
        if MODEL_NAME in results and not count_used(trainer.noise_history):
            print(f"`{MODEL_NAME}` is this model, which saw no noise.\n")
        if trainer.noise is not None:
            print(trainer.noise)
        print(f"Everything is in {folder} ({self.args.world_size} process(es))")

    @property
    def _card_arguments(self) -> dict[str, Any]:
        return {"tasks": "image-classification", **self.data_args.card_arguments()}

    def _publish(self, trainer: NullspaceTrainer) -> None:
        """Writes the card with all measurements, and pushes to the Hub if requested."""
        if self.args.push_to_hub:
            trainer.push_to_hub(**self._card_arguments)
        else:
            trainer.create_model_card(**self._card_arguments)


def predicted_classes(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit; the accuracy needs nothing else to be gathered and kept."""
    return (logits[0] if isinstance(logits, (tuple, list)) else logits).argmax(-1)


def accuracy(output: EvalPrediction) -> dict[str, float]:
    """Share of correct predictions, by the metric of this package, which gives per cent."""
    metric = Accuracy(keep_in_memory=True)  # each process computes its own, and none waits for a file
    percent = metric.compute(predictions=output.predictions, references=output.label_ids)["accuracy"]
    return {"accuracy": percent / 100}
