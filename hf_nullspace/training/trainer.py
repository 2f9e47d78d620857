"""`Trainer` that finetunes a classifier on its own nullspace noise: the training step of the paper's algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..models.frozen import frozen
from ..models.injection import NoiseInjector
from ..models.soft_labels import SoftLabelSmoother, classification_loss, knows_no_soft_labels
from ..noise.nullspace_noise import NullspaceNoise
from .arguments import NullspaceTrainingArguments
from .card import NoiseCard
from .checkpointing_trainer import CheckpointingTrainer
from .checkpoints import check_writable, report_lost_loss
from .checks import check_saved_with_adapters, weights_lost_with_adapters
from .dataset_checks import DatasetChecks
from .distributed import check_backend
from .images import StreamReader
from .noise_evaluation import NoiseEvaluation
from .noise_forward import ForwardPlan, check_not_checkpointed, loss_function_replaced
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
        self.card_settings: dict[str, Any] = {}
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

    def _loss_of_both(
        self,
        own: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The clean loss plus the weighted noisy loss; `own` computes the loss of one batch, as `compute_loss` does."""
        noise = self._draw_noise(inputs)
        options: dict[str, Any] = {"num_items_in_batch": num_items_in_batch}
        if return_outputs or (noise is not None and not self._has_own_loss()):
            options["return_outputs"] = True
        if noise is None:
            return own(model, copy(inputs), **options)

        def loss_of(model: nn.Module) -> tuple[torch.Tensor, Any]:
            result = own(model, copy(inputs), **options)  # labels are popped from what is given
            return result if "return_outputs" in options else (result, None)

        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with self._inside_own_loss():
            if self.args.noise_ascent:
                noise = self._ascend(unwrapped, noise, lambda model: loss_of(model)[0])
            clean, noisy = self._forward_plan.losses(loss_of, model, unwrapped, self.injector, noise)
        loss, outputs = clean
        noisy_loss, noisy_outputs = noisy
        self._buffer_noisy_loss(noisy_loss.detach(), num_items_in_batch)
        self._buffer_noisy_error(outputs, noisy_outputs, self._labels_of(inputs))
        loss = loss + self.args.noise_weight * noisy_loss
        return (loss, outputs) if return_outputs else loss

    def _draw_noise(self, inputs: dict[str, torch.Tensor | Any]) -> torch.Tensor | None:
        """Noise for each image of a micro-batch; `None` without noise training, in this round or at all."""
        args = self.args
        if not args.noise_weight:
            return None
        batch_size = len(inputs["pixel_values"])
        return self.noise_schedule.draw(self.state.global_step, batch_size, args.process_index, args.device)

    def _ascend(
        self, unwrapped: nn.Module, noise: torch.Tensor, loss_of: Callable[[nn.Module], torch.Tensor]
    ) -> torch.Tensor:
        """Noise moved up the loss. The gradient is taken on the unwrapped model, so DDP does not synchronise this pass."""
        variable = noise.detach().requires_grad_()
        with frozen(unwrapped), torch.enable_grad(), self.injector.inject(variable), self.accelerator.autocast():
            loss = loss_of(unwrapped)
            # Without its scale, the gradient of a small loss is lost in fp16.
            loss = loss if self.accelerator.scaler is None else self.accelerator.scaler.scale(loss)
            (gradient,) = torch.autograd.grad(loss, variable)
        return self.noise.noise.ascend(noise, gradient, self.args.noise_ascent)

    # ---- Whose loss it is ---------------------------------------------------------------------------------------

    def _labels_of(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """The labels of a batch, under any of the names that labels have."""
        return next((batch[name] for name in (*self.label_names, "labels") if batch.get(name) is not None), None)

    def _has_own_loss(self) -> bool:
        """Whether `compute_loss` is overridden, in a subclass or on this instance."""
        return type(self).compute_loss is not NullspaceTrainer.compute_loss or "compute_loss" in vars(self)

    @contextmanager
    def _own_loss_of_both(self) -> Iterator[None]:
        """
        Inside the `with` block an overridden `compute_loss` is called for the clean and for the noisy images.

        The override would otherwise hide this class's `compute_loss`. If it calls `super().compute_loss`, it gets the
        loss of the images it passes, and no second loss is added.
        """
        if not (self.args.noise_weight and self._has_own_loss()):
            yield
            return
        own = self.compute_loss
        was_set = "compute_loss" in vars(self)
        self.compute_loss = partial(self._loss_of_both, own)  # type: ignore[method-assign]
        try:
            yield
        finally:
            if was_set:
                self.compute_loss = own  # type: ignore[method-assign]
            else:
                del self.compute_loss

    @contextmanager
    def _inside_own_loss(self) -> Iterator[None]:
        """Inside the `with` block `compute_loss` returns the loss of the images it is given, without a noisy loss."""
        outer = self._is_in_own_loss
        self._is_in_own_loss = True
        try:
            yield
        finally:
            self._is_in_own_loss = outer

    # ---- The settings, and the model they are of ----------------------------------------------------------------

    def _read_settings(self) -> None:
        """Rebuilds what depends on the arguments; a hyperparameter search changes them before each trial."""
        args = self.args
        self.noise_schedule = NoiseSchedule(args.noise_refresh_steps, args.seed)
        if args.noise_weight:
            self._attach_noise(self.model)

    def _attach_noise(self, model: nn.Module) -> None:
        """Attaches the injector to a model and plans its clean and noisy forward passes."""
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
        progress = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._noisy_loss = None
        self._noisy_loss_since = self.state.global_step
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
