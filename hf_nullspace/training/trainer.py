"""`Trainer` that finetunes a classifier on its own nullspace noise (paper, algorithm 1): glue, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers.utils import logging

from ..hub.manifest import write_manifest
from ..hub.model_card import TAGS, write_card
from ..hub.training_facts import collect_training_facts
from ..models.frozen import frozen
from ..models.injection import NoiseInjector
from ..models.model_inputs import forward_parameters
from ..models.objectives import is_multi_label, largest_probability_mse, probability_mse, read_logits
from ..models.soft_labels import SoftLabelSmoother, classification_loss, knows_no_soft_labels, settle_problem_type
from ..noise.certificate import Certificate
from ..noise.certify import measure_noise
from ..noise.nullspace_noise import NullspaceNoise
from ..noise.synthesis import synthesize_noise
from ..utils.phases import announce
from ..utils.random import preserved_random_state
from ..utils.wording import worded
from .arguments import NullspaceTrainingArguments, in_arguments
from .checkpoints import CheckpointingTrainer, check_writable, report_lost_loss
from .checks import (
    check_columns,
    check_neftune,
    check_projection,
    check_saved_with_adapters,
    weights_lost_with_adapters,
)
from .distributed import check_backend
from .evaluation_loss import exact_loss
from .images import StreamReader, check_enough, check_example, check_labels, draw_images, is_stream
from .noise_forward import ForwardPlan, check_not_checkpointed, loss_function_replaced
from .noise_schedule import NoiseSchedule, check_same_on_all_processes
from .publishing import PublishingTrainer
from .removed_arguments import check_checkpoint
from .weight_average import WeightAverageCallback


logger = logging.get_logger(__name__)


# What `evaluate_noise` logs.
EVALUATED_FIELDS = ("probability_mse", "probability_mse_upper", "agreement", "permuted_agreement")


class NullspaceTrainer(CheckpointingTrainer, PublishingTrainer):
    """
    Finetunes any classifier with a patch projection on `CE(clean) + noise_weight * CE(noisy)`.

    Every `noise_refresh_steps` optimizer steps a new noise is synthesised on the current weights, certified on images
    its synthesis did not see, logged under `noise/`, and written into every checkpoint. Evaluation and prediction never
    see noise. What is pushed to the Hub holds the noise, the model card and a manifest of hashes too, and no pickle but
    in checkpoints to resume from; a push that fails is logged with the command that repeats it, and training goes on.
    Everything else is [`~transformers.Trainer`], with the same arguments.

    The loss is the model's own, or that of `compute_loss_func`, or of a subclass's `compute_loss`: it is asked for the
    clean images and for the noisy ones, in two forward passes where one would not be the same. One thing differs, at
    every `noise_weight`: labels that are distributions over the classes, as Mixup gives them, are trained on with their
    cross-entropy unless `config.problem_type` says otherwise, where the library takes them for several labels an image.

    Args:
        args ([`NullspaceTrainingArguments`]):
            The arguments; a plain `TrainingArguments` is refused.

    Attributes:
        noise ([`NullspaceNoise`] or `None`): The current noise; `None` before the first round.
        card_extras (`dict`): What [`~hub.card_results`] gives, for the card.
        noise_history (`list[dict]`): One row for each round: `round`, `step`, and the fields of its certificate.

    Raises:
        `TypeError`: If `args` is no [`NullspaceTrainingArguments`].
        `ValueError`: If the model has no patch projection, the training set is empty or smaller than a synthesis batch,
            its images do not fit the model, a transform needs columns that are removed, a weight is trained that an
            adapter's checkpoints would not hold, `neftune_noise_alpha` finds no embeddings, FSDP1 or ZeRO-3 is asked for, one process has several devices, or a
            checkpoint to resume from is not whole or of another noise.
        `FloatingPointError`: In `train`, if a loss is not finite; before the step, so that no weight is lost.
        `OSError`: If the output folder cannot be written, or a checkpoint cannot be saved.

    Example:

    ```python
    >>> from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments

    >>> trainer = NullspaceTrainer(
    ...     model=model,
    ...     args=NullspaceTrainingArguments("out", epsilon=0.03, max_steps=50),
    ...     data_collator=NullspaceDataCollator(),
    ...     train_dataset=train_dataset,
    ...     processing_class=image_processor,
    ... )
    >>> result = trainer.train()
    >>> [row["round"] for row in trainer.noise_history]
    [0, 1]
    ```
    """

    label_smoother: Any  # of `Trainer`

    def __init__(
        self,
        model=None,
        args: NullspaceTrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
    ):
        args = NullspaceTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, NullspaceTrainingArguments):
            raise TypeError(f"`args` must be a `NullspaceTrainingArguments`, but got a `{type(args).__name__}`.")
        self.noise_schedule = NoiseSchedule(args.noise_refresh_steps, args.seed)
        self.card_extras: dict[str, Any] = {}
        self._noisy_loss: torch.Tensor | None = None
        self._noisy_error: torch.Tensor | None = None
        self._noisy_loss_since = 0
        self._is_in_own_loss = False
        self._forward_plan: ForwardPlan | None = None
        self.current_gradient_accumulation_steps = 1  # set by `train`, read by a `compute_loss` called without it
        if args.should_save:
            check_writable(args.output_dir)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        check_backend(self.accelerator)
        if args.noise_weight and args.n_gpu > 1:
            raise ValueError(
                f"One process was given {args.n_gpu} devices; `nn.DataParallel` would split the images between them, but "
                "not their noise. Start one process for each device with `accelerate launch`, or set "
                "`CUDA_VISIBLE_DEVICES` to one."
            )
        self._largest_error = 2.0
        self._noise_stream: StreamReader | None = None
        if self.label_smoother is not None:
            self.label_smoother = SoftLabelSmoother(self.label_smoother.epsilon)
        check_saved_with_adapters(self.model)
        with NoiseInjector.attached(self.model, args.patch_projection) if args.noise_weight else nullcontext():
            self._read_settings()
            self._check_datasets()

    @property
    def noise(self) -> NullspaceNoise | None:
        """The current noise; `None` before the first round."""
        return self.noise_schedule.noise

    @property
    def noise_history(self) -> list[dict[str, Any]]:
        """One row for each round: `round`, `step`, and the fields of its certificate."""
        return self.noise_schedule.history

    @property
    def _weight_average(self) -> WeightAverageCallback | None:
        callbacks = self.callback_handler.callbacks
        return next((each for each in callbacks if isinstance(each, WeightAverageCallback)), None)

    # ---- The method ---------------------------------------------------------------------------------------------

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if self.args.noise_weight and self.noise_schedule.is_due(self.state.global_step):
            self._refresh_noise(model)
        with self._own_loss_of_both():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            report_lost_loss(loss.item(), self.state.global_step, self.args, self.accelerator.scaler)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        parent = super().compute_loss
        if self._is_in_own_loss or not model.training:
            # The parent pops `labels` from what it is given.
            return parent(model, copy(inputs), return_outputs, num_items_in_batch)
        return self._loss_of_both(parent, model, inputs, return_outputs, num_items_in_batch)

    @property
    def _needs_labels(self) -> bool:
        """Whether the loss is the model's own."""
        return self.compute_loss_func is None and not self._has_own_loss()

    def _labels_of(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """The labels of a batch, by whichever name."""
        return next((batch[name] for name in (*self.label_names, "labels") if batch.get(name) is not None), None)

    def _has_own_loss(self) -> bool:
        """Whether a subclass, or whoever holds this trainer, computes the loss of a batch in a way of its own."""
        return type(self).compute_loss is not NullspaceTrainer.compute_loss or "compute_loss" in vars(self)

    @contextmanager
    def _own_loss_of_both(self) -> Iterator[None]:
        """
        Inside the `with` block a `compute_loss` of its own is asked for the clean and for the noisy images.

        It stands before this class, which could not ask it otherwise; one that asks this class for the loss gets that
        of the images at hand.
        """
        if not (self.args.noise_weight and self._has_own_loss()):
            yield
            return
        own, was_set = self.compute_loss, "compute_loss" in vars(self)
        self.compute_loss = partial(self._loss_of_both, own)  # type: ignore[method-assign]
        try:
            yield
        finally:
            if was_set:
                self.compute_loss = own  # type: ignore[method-assign]
            else:
                del self.compute_loss

    def _loss_of_both(
        self,
        own: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The clean loss and the weighted noisy one, where `own` computes the loss of a batch as `compute_loss` does."""
        noise = self._draw_noise(len(inputs["pixel_values"])) if self.args.noise_weight else None
        options = {"num_items_in_batch": num_items_in_batch}
        asks_for_outputs = return_outputs or not self._has_own_loss()
        if noise is None:
            return own(model, copy(inputs), **({"return_outputs": True} if return_outputs else {}), **options)

        def loss_of(model: nn.Module) -> tuple[torch.Tensor, Any]:
            # Labels are popped from what is given.
            if asks_for_outputs:
                return own(model, copy(inputs), return_outputs=True, **options)
            return own(model, copy(inputs), **options), None

        self._is_in_own_loss, outer = True, self._is_in_own_loss
        try:
            (loss, outputs), (noisy_loss, noisy_outputs) = self._clean_and_noisy(loss_of, model, noise)
        finally:
            self._is_in_own_loss = outer
        self._buffer_noisy_loss(noisy_loss.detach(), num_items_in_batch)
        self._buffer_noisy_error(outputs, noisy_outputs, self._labels_of(inputs))
        loss = loss + self.args.noise_weight * noisy_loss
        return (loss, outputs) if return_outputs else loss

    def _clean_and_noisy(
        self, loss_of: Callable[[nn.Module], tuple[torch.Tensor, Any]], model: nn.Module, noise: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, Any], tuple[torch.Tensor, Any]]:
        """Loss and outputs of a micro-batch without noise and with it."""
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if self.args.noise_ascent:
            noise = self._ascend(unwrapped, noise, lambda model: loss_of(model)[0])
        return self._forward_plan.losses(loss_of, model, unwrapped, self.injector, noise)

    def _read_settings(self) -> None:
        """What depends on the arguments, made of them anew: a search sets other ones before each of its trials."""
        args = self.args
        self.noise_schedule = NoiseSchedule(args.noise_refresh_steps, args.seed)
        if args.noise_weight:
            self._attach_noise(self.model)

    def _attach_noise(self, model: nn.Module) -> None:
        """Puts the injector on a model, and finds out how its two passes can run."""
        self.injector = NoiseInjector.attach(model, self.args.patch_projection)
        reason = None
        if self._has_own_loss():
            reason = f"`compute_loss` of {type(self).__name__} may run the model in any way"
        told = self._forward_plan.reason if self._forward_plan is not None else None
        self._forward_plan = ForwardPlan(self.args.noise_forward, model, reason, told)
        check_not_checkpointed(model, self.injector.projection, self._checkpoints_activations())

    def _checkpoints_activations(self) -> bool:
        """Whether the arguments turn activation checkpointing on when training begins."""
        # Renamed between Transformers 5.17 and 5.23.
        names = ("activation_checkpointing", "gradient_checkpointing")
        return any(getattr(self.args, name, False) for name in names)

    def _draw_noise(self, batch_size: int) -> torch.Tensor | None:
        args = self.args
        return self.noise_schedule.draw(self.state.global_step, batch_size, args.process_index, args.device)

    def _ascend(
        self, unwrapped: nn.Module, noise: torch.Tensor, loss_of: Callable[[nn.Module], torch.Tensor]
    ) -> torch.Tensor:
        """Noise moved up the loss, whose gradient is taken on the unwrapped model: DDP has no part in this pass."""
        variable = noise.detach().requires_grad_()
        with frozen(unwrapped), torch.enable_grad(), self.injector.inject(variable), self.accelerator.autocast():
            loss = loss_of(unwrapped)
            # Without its scale, the gradient of a small loss is lost in fp16.
            loss = loss if self.accelerator.scaler is None else self.accelerator.scaler.scale(loss)
            (gradient,) = torch.autograd.grad(loss, variable)
        return self.noise.noise.ascend(noise, gradient, self.args.noise_ascent)

    def _refresh_noise(self, model: nn.Module) -> None:
        """Makes this round's noise on the current weights the one to train on."""
        step, round_index = self.state.global_step, self.noise_schedule.round_of(self.state.global_step)
        config = self.args.nullspace_config()
        announce(
            f"Round {round_index} at step {step}: synthesising noise on {config.num_images} images, measuring it on "
            f"{config.wanted_certificate_images(self._largest_error)} more ..."
        )
        # Not compiled, even under `torch_compile`: compiling its passes takes longer than it saves in a run's rounds
        # (`examples/benchmark.py --torch_compile` times both).
        with preserved_random_state(), worded(in_arguments):
            noise = self._make_noise(self.accelerator.unwrap_model(model, keep_torch_compile=False), round_index)
        check_same_on_all_processes(noise, self.accelerator)
        self.noise_schedule.update(noise, step)
        self.card_extras.pop("evaluation_certificate", None)  # that of an earlier noise
        self.log(self.noise_schedule.logs())

    def _make_noise(self, model: nn.Module, round_index: int) -> NullspaceNoise:
        """The noise of a round, synthesised on images of its own; controls of the method make another."""
        return synthesize_noise(
            model,
            self._noise_dataloader(round_index),
            self.args.nullspace_config(),
            accelerator=self.accelerator,
            round_index=round_index,
            patch_projection=self.args.patch_projection,
            disable_tqdm=self.args.disable_tqdm,
        )

    def _noise_dataloader(self, round_index: int) -> DataLoader:
        """Global batches of training images, the same on every process."""
        images = self._noise_images(round_index, self._num_noise_images())
        _, collator = self._as_trained_on(self.train_dataset, "noise synthesis")

        def collate(examples: list) -> dict[str, Any]:
            batch = collator(examples)
            if self._needs_labels:
                check_labels(batch.get("labels"), self.model)
            return {**batch, "labels": self._labels_of(batch)}  # what the logits mean may depend on them

        return DataLoader(images, batch_size=self._noise_batch_size(), collate_fn=collate)

    def _num_noise_images(self) -> int:
        """Images that a round reads: those of the search and those of the certificate."""
        config = self.args.nullspace_config()
        return config.num_images + config.wanted_certificate_images(self._largest_error)

    def _noise_images(self, round_index: int, num_images: int) -> Subset | list:
        dataset, _ = self._as_trained_on(self.train_dataset, "noise synthesis")
        if is_stream(dataset):
            if self._noise_stream is None or self._noise_stream.dataset is not dataset:
                self._noise_stream = StreamReader(dataset)
            return self._noise_stream.read(round_index * self._num_noise_images(), num_images)
        return draw_images(dataset, num_images, self.args.seed, round_index)

    def _as_trained_on(self, dataset, description: str) -> tuple[Any, Callable[[list], dict[str, Any]]]:
        """A dataset and the collator without the columns that the model does not name, as `Trainer` reads them."""
        if all(hasattr(dataset, name) for name in ("column_names", "remove_columns", "__len__")):
            return self._remove_unused_columns(dataset, description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description)

    def _noise_batch_size(self) -> int:
        processes = 1 if self.is_fsdp_enabled else self.accelerator.num_processes  # see `FrozenClassifier`
        if self.args.noise_batch_size is None:
            return self._train_batch_size * processes
        # Smaller by as much as `auto_find_batch_size` has made the batch smaller.
        return max(1, self.args.noise_batch_size * self._train_batch_size // self.args.train_batch_size)

    def _check_datasets(self) -> None:
        """Fails now, not at step 500: reads an example of each dataset and compares it with the model."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        sets = {"training": self.train_dataset, **{f"evaluation {name}".strip(): each for name, each in sets.items()}}
        for description, dataset in sets.items():
            if dataset is not None and self.args.remove_unused_columns:
                as_trained_on = partial(self._as_trained_on, dataset, description)
                check_columns(dataset, self.data_collator, as_trained_on, description)
        if self.train_dataset is None or not (self.args.noise_weight or self.args.neftune_noise_alpha):
            return
        if self.args.noise_weight:
            check_enough(self.train_dataset, self._noise_batch_size())
        _, collator = self._as_trained_on(self.train_dataset, "training")
        with preserved_random_state():
            # Two images, since some collators mix pairs of them.
            images = self._noise_images(round_index=0, num_images=2)
            if not len(images):
                raise ValueError(
                    "The training set is a stream without images; one synthesis batch needs "
                    f"{self._noise_batch_size()}."
                )
            self._check_batch(collator([images[index] for index in range(len(images))]))

    def _check_batch(self, batch: dict[str, Any]) -> None:
        if self.args.noise_weight:
            names = {*self.label_names, "labels"} & {*self.label_names, *forward_parameters(self.model)}
            check_example(batch, self.model, sorted(names) if self._needs_labels else [])
            settle_problem_type(self.model, self._labels_of(batch))
            self._check_certifiable(batch)
            unlabelled = {name: value for name, value in batch.items() if name not in {*self.label_names, "labels"}}
            unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            is_named = self.args.patch_projection is not None
            with self.accelerator.autocast():
                check_projection(unwrapped, self.injector.projection, unlabelled, is_named)
        if self.args.neftune_noise_alpha is not None:
            check_neftune(self.model, batch)
            if self.args.noise_weight:
                logger.warning(
                    "`neftune_noise_alpha` adds noise of its own to the embeddings of every training image, under "
                    "nullspace noise or not: the clean loss is that of NEFTune."
                )

    def compute_loss_context_manager(self) -> ExitStack:
        stack = super().compute_loss_context_manager()
        if knows_no_soft_labels(self.model):
            stack.enter_context(loss_function_replaced(self.model, classification_loss))
        return stack

    def _check_certifiable(self, batch: dict[str, Any]) -> None:
        """That there are class probabilities for epsilon to bound, and a bound that excludes some noise."""
        multi_label = is_multi_label(self.model, self._labels_of(batch))
        num_labels = getattr(getattr(self.model, "config", None), "num_labels", 2)
        self._largest_error = largest_probability_mse(num_labels, multi_label)
        if self.args.epsilon >= self._largest_error:
            raise ValueError(
                f"`epsilon` is {self.args.epsilon:g}, but no noise can change this model's probabilities by more than "
                f"{self._largest_error:g} (summed squares over the labels), so that it would exclude none. Give a smaller "
                "one; 0.03 is the default."
            )
        config = self.args.nullspace_config()
        fewest = config.fewest_certificate_images(self._largest_error)
        total = len(self.train_dataset) if not is_stream(self.train_dataset) else None
        if config.on_failure == "error" and total is not None and total < fewest + self._noise_batch_size():
            raise ValueError(
                f"The training set has {total} images, but a certificate for epsilon {config.epsilon:g} takes {fewest} "
                f"beside a batch of {self._noise_batch_size()} to search on, and `noise_on_failure='error'` allows no noise "
                "without. Add images, raise `epsilon`, or set `noise_on_failure='shrink'`, which trains on noise marked as "
                "not certified."
            )

    # ---- Evaluation ---------------------------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            parent = super().prediction_step
            counts_all = self.args.average_tokens_across_devices and "labels" in inputs
            counts_all = counts_all and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)
            loss = exact_loss(
                self.accelerator, loss, inputs, lambda some: parent(model, some, True, ignore_keys)[0], counts_all
            )
        return loss, logits, labels

    def evaluate_noise(self, eval_dataset=None) -> Certificate | dict[str, Certificate] | None:
        """
        Measures the current noise on evaluation images; every process must call it. The model card shows the result.

        The noise's own certificate is of training images. Weights that fit those closely are changed more by the same
        noise on images they were not trained on.

        Args:
            eval_dataset (`Dataset`, `dict[str, Dataset]` or `str`, *optional*): Defaults to the trainer's; a name is that
                of one of its sets.

        Returns:
            [`Certificate`], or `None` before the first round and where there is no evaluation set. Of several sets a
            `dict` of them; what is logged of each begins with `eval_NAME_noise`, and the card shows the one with the
            largest `probability_mse_upper`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.noise is None or dataset is None:
            return None
        if not isinstance(dataset, dict):
            prefix = f"eval_{dataset}" if isinstance(dataset, str) else "eval"
            certificate = self.card_extras["evaluation_certificate"] = self._measure_noise(dataset, prefix)
            return certificate
        # By name where it is the trainer's own, so that workers that outlive an evaluation are found again.
        sets = {name: name if eval_dataset is None else each for name, each in dataset.items()}
        certificates = {name: self._measure_noise(each, f"eval_{name}") for name, each in sets.items()}
        self.card_extras["evaluation_certificate"] = max(
            certificates.values(), key=lambda certificate: certificate.probability_mse_upper
        )
        return certificates

    def _measure_noise(self, dataset, prefix: str) -> Certificate:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with worded(in_arguments):
            certificate = measure_noise(
                model,
                self.noise,
                self.get_eval_dataloader(dataset),
                accelerator=self.accelerator,
                patch_projection=self.args.patch_projection,
            )
        self.log({f"{prefix}_noise_{name}": float(getattr(certificate, name)) for name in EVALUATED_FIELDS})
        return certificate

    # ---- Logging ------------------------------------------------------------------------------------------------

    def _buffer_noisy_loss(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> None:
        """Adds one micro-batch to the sum that the next `log` reports, scaled as the loss is, without a device sync."""
        is_scaled = self.loss_is_scaled_for_ga
        if is_scaled is None:
            is_scaled = self.compute_loss_func is not None
            is_scaled = is_scaled or (self.model_accepts_loss_kwargs and num_items_in_batch is not None)
        if not is_scaled:
            loss = loss / self.current_gradient_accumulation_steps
        self._noisy_loss = loss if self._noisy_loss is None else self._noisy_loss + loss

    def _buffer_noisy_error(self, outputs: Any, noisy_outputs: Any, labels: torch.Tensor | None) -> None:
        """Adds what the noise trained on does to a micro-batch's probabilities; chosen and ascended, it does more."""
        try:
            clean, noisy = (read_logits(each).detach().float() for each in (outputs, noisy_outputs))
        except ValueError:  # a loss of its own that hands out no outputs, or others
            return
        multi_label = is_multi_label(self.model, labels, clean)
        error = probability_mse(clean, noisy, multi_label)
        sums = torch.stack([error.sum(), error.new_tensor(len(error))])
        self._noisy_error = sums if self._noisy_error is None else self._noisy_error + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._noisy_loss is not None:
            steps = max(1, self.state.global_step - self._noisy_loss_since)
            logs = {**logs, "noise/loss": self.accelerator.reduce(self._noisy_loss, "mean").item() / steps}
            self._noisy_loss, self._noisy_loss_since = None, self.state.global_step
            if self._noisy_error is not None:
                total, count = self.accelerator.reduce(self._noisy_error, "sum").tolist()
                logs["noise/trained_probability_mse"] = total / count
                self._noisy_error = None
        super().log(logs, start_time)

    # ---- Model card ---------------------------------------------------------------------------------------------

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        tags = [
            *([tags] if isinstance(tags, str) else tags or []),
            *(getattr(self.model, "model_tags", None) or []),
            *TAGS,
        ]
        tags = list(dict.fromkeys(tags))
        super().create_model_card(
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
        )
        if self.is_world_process_zero():
            settings = {**self.args.nullspace_config().to_dict(), **self.args.nullspace_schedule()}
            if self._weight_average is not None:
                settings["ema_decay"] = self._weight_average.decay
            name = dataset if isinstance(dataset, str) else ", ".join(dataset or []) or None
            extras = {"method": self._method_in_words(), **self.card_extras}
            facts = collect_training_facts(self, self.noise, self.noise_history, settings, name, **extras)
            write_card(self.args.output_dir, facts)
            write_manifest(self.args.output_dir)

    def _method_in_words(self) -> str | None:
        """What the card says of a run that was no nullspace finetuning."""
        return None if self.args.noise_weight else "it saw clean images alone."

    # ---- The noise in checkpoints -------------------------------------------------------------------------------

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        if resume_from_checkpoint is not None:
            check_checkpoint(resume_from_checkpoint, [] if self._weight_average is None else ["ema_decay"])
        self.args.check_noise_settings()
        self._read_settings()
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._noisy_loss, self._noisy_loss_since = None, self.state.global_step
        self._noisy_error = None
        if resume_from_checkpoint is not None and self.args.noise_weight:
            self.noise_schedule.load(resume_from_checkpoint, self.args.nullspace_config())
        return progress

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            lost = weights_lost_with_adapters(self.model)
            if lost:
                logger.warning(f"{lost} were trained, but PEFT does not save what is no part of the adapter.")
            if self.noise is not None:
                self.noise.save_pretrained(output_dir if output_dir is not None else self.args.output_dir)
        super().save_model(output_dir, _internal_call)

    def save_run_state(self, checkpoint: str) -> None:
        super().save_run_state(checkpoint)
        self.noise_schedule.save(checkpoint)
        if self._weight_average is not None:
            self._weight_average.save(checkpoint, self.state.global_step)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.args.noise_weight:
            self.noise_schedule.go_back_to(NullspaceNoise.from_pretrained(self.state.best_model_checkpoint))
