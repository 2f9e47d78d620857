"""`Trainer` that finetunes a classifier on its own nullspace noise: the training step of the paper's algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..models.frozen import frozen
from ..models.injection import NoiseInjector, is_compiled
from ..models.soft_labels import (
    SoftLabelSmoother,
    classification_loss,
    knows_no_soft_labels,
    loss_function_replaced,
)
from ..noise.nullspace_noise import NullspaceNoise
from .arguments import NullspaceTrainingArguments
from .batch_rows import select_rows
from .card import NoiseCard
from .checkpointing_trainer import CheckpointingTrainer
from .checkpoints import check_writable, report_lost_loss
from .checks import check_not_checkpointed, check_saved_with_adapters, weights_lost_with_adapters
from .dataset_checks import DatasetChecks
from .distributed import check_backend
from .images import StreamReader
from .noise_ascent import loss_gradient
from .noise_evaluation import NoiseEvaluation
from .noise_logging import NoiseLogging
from .noise_rounds import NoiseRounds
from .noise_schedule import NoiseSchedule
from .publishing import PublishingTrainer
from .removed_arguments import check_checkpoint
from .weight_average import WeightAverageCallback


logger = logging.get_logger(__name__)


class NullspaceTrainer(
    NoiseRounds, DatasetChecks, NoiseEvaluation, NoiseLogging, NoiseCard, CheckpointingTrainer, PublishingTrainer
):
    """
    Finetunes any classifier with a patch projection on `CE(clean) + noise_weight * CE(noisy)`.

    Every `noise_refresh_steps` optimizer steps a new noise is synthesised on the current weights, certified on images
    its synthesis did not see, logged under `noise/`, and saved in every checkpoint. Evaluation and prediction run
    without noise. A push to the Hub also holds the noise, the model card and a manifest of hashes; only checkpoints to
    resume from contain pickles. A failed push is logged with the command that repeats it, and training continues.
    Everything else is [`~transformers.Trainer`], with the same arguments.

    The loss is the model's own, that of `compute_loss_func`, or that of a subclass's `compute_loss`. It is computed for
    the clean and for the noisy images, in two forward passes where a single one would give another result. Soft labels,
    such as Mixup's, are trained on with their cross-entropy at every `noise_weight`, unless `config.problem_type` says
    otherwise. `Trainer` would treat them as multi-label targets.

    Args:
        args ([`NullspaceTrainingArguments`]):
            The arguments; a plain `TrainingArguments` is refused.

    Attributes:
        noise ([`NullspaceNoise`] or `None`): The current noise; `None` before the first round.
        card_extras (`dict`): Further results for the model card, from [`~hub.card_results`].
        card_settings (`dict`): Further settings for the model card, each a number or one line of text.
        noise_history (`list[dict]`): One row for each round: `round`, `step`, and the fields of its certificate.

    Raises:
        `TypeError`: If `args` is no [`NullspaceTrainingArguments`].
        `ValueError`: If the model has no patch projection, the training set is empty or smaller than a synthesis batch,
            its images do not fit the model, a transform needs columns that are removed, a weight is trained that an
            adapter's checkpoints would not hold, `neftune_noise_alpha` finds no embeddings, FSDP1 or ZeRO-3 is used, one
            process has several devices, or a checkpoint to resume from is incomplete or has noise of other settings.
        `FloatingPointError`: In `train`, if a loss is not finite; raised before the optimizer step, so that no weight is
            lost.
        `OSError`: If the output folder cannot be written, or a checkpoint cannot be saved.

    Example:

    ```python
    >>> from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments

    >>> trainer = NullspaceTrainer(
    ...     model=model,
    ...     args=NullspaceTrainingArguments("out", epsilon=0.03, max_steps=50, noise_refresh_steps=40),
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
        self.card_settings: dict[str, Any] = {}
        self._reset_noise_logs(0)
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

    # ---- The method ---------------------------------------------------------------------------------------------

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if self.args.noise_weight and self.noise_schedule.is_due(self.state.global_step):
            self._refresh_noise(model)
        if self.args.noise_weight and self.noise_schedule.is_in_use:
            loss = self._clean_and_noisy_step(super().training_step, model, inputs, num_items_in_batch)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            report_lost_loss(loss.item(), self.state.global_step, self.args, self.accelerator.scaler)
        return loss

    def _clean_and_noisy_step(
        self,
        step_on: Callable[..., torch.Tensor],
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """
        One training step of algorithm 1: the clean images there and back, then `noise_share` of them under noise.

        The noise of each image moves up its loss, along the gradient that the clean images' pass back leaves at the patch
        embeddings. `step_on` runs one batch there and back, as `Trainer.training_step` does.
        """
        args = self.args
        inputs = self._prepare_inputs(inputs)
        batch_size = len(inputs["pixel_values"])
        rows, noise = self.noise_schedule.draw(
            self.state.global_step, batch_size, args.noise_share, args.process_index, args.device
        )
        noisy_inputs = select_rows(inputs, rows, batch_size)
        follows_clean = args.noise_ascent and args.noise_ascent_gradient == "clean"
        if follows_clean and not self.noise_schedule.is_ascent_measured:
            self._measure_ascent(model)  # goes on from a checkpoint whose draws moved along their own gradient
        # A noise of zero changes nothing, and has a gradient where the weights of the projection are frozen, too.
        zero = noise.new_zeros(batch_size, *noise.shape[1:]).requires_grad_() if follows_clean else None
        with self._deferred_synchronisation(model), self.injector.inject(zero), self._logits_kept() as clean_logits:
            loss = step_on(model, copy(inputs), num_items_in_batch)  # labels are popped from what is given
        if follows_clean:
            noise = self.noise_schedule.ascend(noise, self._gradient_of(zero, self.injector)[rows])
        elif args.noise_ascent:
            noise = self._own_ascent(model, noisy_inputs, noise, num_items_in_batch)
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch * (len(noisy_inputs["pixel_values"]) / batch_size)
        with self._weighted_loss(), self.injector.inject(noise), self._logits_kept() as noisy_logits:
            noisy_loss = step_on(model, noisy_inputs, num_items_in_batch)
        self._buffer_noisy_loss(noisy_loss / args.noise_weight)
        self._buffer_noisy_error(select_rows(clean_logits, rows, batch_size), noisy_logits, self._labels_of(inputs))
        return loss + noisy_loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        # The parent pops `labels` from what it is given.
        loss, outputs = super().compute_loss(model, copy(inputs), True, num_items_in_batch)
        self._keep_logits(outputs)
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _deferred_synchronisation(self, model: nn.Module) -> Iterator[None]:
        """
        Inside the `with` block a pass back only adds to the gradients: DDP averages them once, with those of the noisy
        images, and DeepSpeed takes no step. FSDP2 averages both times, since its gradients would else be whole ones.
        """
        state = self.accelerator.gradient_state
        synchronises = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with nullcontext() if self.accelerator.is_fsdp2 else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(synchronises)

    @contextmanager
    def _weighted_loss(self) -> Iterator[None]:
        """Inside the `with` block `compute_loss`, whoever overrides it, gives `noise_weight` times the loss."""
        own = self.compute_loss
        was_set = "compute_loss" in vars(self)

        def weighted(*args: Any, **kwargs: Any) -> torch.Tensor:
            return self.args.noise_weight * own(*args, **kwargs)

        self.compute_loss = weighted  # type: ignore[method-assign]
        try:
            yield
        finally:
            if was_set:
                self.compute_loss = own  # type: ignore[method-assign]
            else:
                del self.compute_loss

    def _gradient_of(self, variable: torch.Tensor, injector: NoiseInjector) -> torch.Tensor:
        if variable.grad is None:
            raise RuntimeError(
                f"No gradient of the loss of {type(self.model).__name__} reached its patch embeddings "
                f"({injector.projection.name}), along which each image's noise moves up its loss. Let "
                "the gradient pass, or train without an ascent (`noise_ascent=0`)."
            )
        return variable.grad

    def _own_ascent(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        noise: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Noise moved along its own gradient, in a further pass."""
        loss_of = self._loss_under_noise(model, inputs, num_items_in_batch)
        with frozen(self.accelerator.unwrap_model(model, keep_torch_compile=False)):
            gradient = loss_gradient(loss_of, noise, self._scale_of_loss)[1]
        return self.noise_schedule.noise_on(noise.device).ascend(noise, gradient, self.args.noise_ascent)

    # ---- Whose loss it is ---------------------------------------------------------------------------------------

    def _labels_of(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """The labels of a batch, under any of the names that labels have."""
        return next((batch[name] for name in (*self.label_names, "labels") if batch.get(name) is not None), None)

    def _has_own_loss(self) -> bool:
        """Whether `compute_loss` is overridden, in a subclass or on this instance."""
        return type(self).compute_loss is not NullspaceTrainer.compute_loss or "compute_loss" in vars(self)

    # ---- The settings, and the model they are of ----------------------------------------------------------------

    def _read_settings(self) -> None:
        """Rebuilds what depends on the arguments; a hyperparameter search changes them before each trial."""
        args = self.args
        self.noise_schedule = NoiseSchedule(args.noise_refresh_steps, args.seed)
        if args.noise_weight:
            self._attach_noise(self.model)

    def _attach_noise(self, model: nn.Module) -> None:
        """Attaches the injector to a model."""
        self.injector = NoiseInjector.attach(model, self.args.patch_projection)
        check_not_checkpointed(model, self.injector.projection, self._checkpoints_activations())

    def _checkpoints_activations(self) -> bool:
        """Whether the arguments turn activation checkpointing on when training begins."""
        # Renamed between Transformers 5.17 and 5.23.
        names = ("activation_checkpointing", "gradient_checkpointing")
        return any(getattr(self.args, name, False) for name in names)

    def compute_loss_context_manager(self) -> ExitStack:
        stack = super().compute_loss_context_manager()
        if knows_no_soft_labels(self.model):
            stack.enter_context(loss_function_replaced(self.model, classification_loss))
        return stack

    # ---- The noise in checkpoints -------------------------------------------------------------------------------

    @property
    def _weight_average(self) -> WeightAverageCallback | None:
        callbacks = self.callback_handler.callbacks
        return next((each for each in callbacks if isinstance(each, WeightAverageCallback)), None)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        if resume_from_checkpoint is not None:
            check_checkpoint(resume_from_checkpoint, [] if self._weight_average is None else ["ema_decay"])
        self.args.check_noise_settings()
        self._read_settings()
        if self.args.torch_compile or is_compiled(self.model):
            # What was compiled for another model of this class, such as a control's, would run for this one, too: without
            # the hook that adds the noise, and without a word.
            torch.compiler.reset()
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._reset_noise_logs(self.state.global_step)
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
