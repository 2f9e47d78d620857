"""Soft labels, as Mixup and CutMix produce them: how they are recognised, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForSequenceClassificationLoss
from transformers.trainer_pt_utils import LabelSmoother

from .adapters import without_adapters


# Largest distance of a distribution's sum from 1; labels may be rounded to bfloat16.
SUM_TOLERANCE = 1e-2


def knows_no_soft_labels(model: nn.Module) -> bool:
    """Whether a model uses the library's classification loss, which treats all rows of numbers as multi-label."""
    model = without_adapters(model)
    if not isinstance(model, PreTrainedModel) or "_loss_function" in vars(model):
        return False
    if type(model).loss_function is not PreTrainedModel.loss_function:
        return False
    # `model.loss_function` warns of models that have another loss than those of this table.
    return LOSS_MAPPING.get(model.loss_type) is ForSequenceClassificationLoss


def settle_problem_type(model: nn.Module, labels: Any) -> None:
    """Sets `config.problem_type` before the first batch, as [`classification_loss`] would for these labels."""
    config = getattr(without_adapters(model), "config", None)
    if config is None or config.problem_type is not None or config.num_labels <= 1 or not knows_no_soft_labels(model):
        return
    if _are_rows(labels, config.num_labels) and are_distributions(labels):
        config.problem_type = "single_label_classification"


def classification_loss(labels: torch.Tensor, pooled_logits: torch.Tensor, config: Any, **kwargs: Any) -> torch.Tensor:
    """
    The library's classification loss, extended by the cross-entropy of soft labels.

    `config.problem_type` decides. Where it is `None`, a first batch of distributions makes it
    `"single_label_classification"`; any other rows of numbers are multi-label, as for the library.

    Args:
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`): The labels.
        pooled_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The logits.
        config ([`~transformers.PreTrainedConfig`]): The model's.

    Raises:
        `ValueError`: If the problem is one of single labels and a row is no distribution.
    """
    if not (config.num_labels > 1 and _are_rows(labels, config.num_labels)) or config.problem_type not in (
        None,
        "single_label_classification",
    ):
        return ForSequenceClassificationLoss(labels, pooled_logits, config, **kwargs)
    if not are_distributions(labels):
        if config.problem_type is None:
            return ForSequenceClassificationLoss(labels, pooled_logits, config, **kwargs)
        raise ValueError(
            "Labels of shape (batch_size, num_labels) are distributions over the classes where `config.problem_type` is "
            "'single_label_classification', but a row is negative or does not sum to 1. If an image can have several "
            "labels, load the model with `problem_type='multi_label_classification'`."
        )
    config.problem_type = "single_label_classification"
    return soft_cross_entropy(pooled_logits, labels, kwargs.get("num_items_in_batch"))


def soft_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """
    `-sum(labels * log_softmax(logits))` as a mean over the images, or over those of the whole batch.

    Args:
        logits, labels (`torch.Tensor` of shape `(batch_size, num_labels)`): Of each image.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*): Label elements of the whole batch, `num_labels` for
            each image, as `Trainer` counts them.
        label_smoothing (`float`, *optional*, defaults to 0.0): Share of the uniform distribution to mix into the labels.
    """
    labels = labels.to(logits)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
    return loss if num_items_in_batch is None else loss * labels.shape[1] / num_items_in_batch


class SoftLabelSmoother(LabelSmoother):
    """[`~transformers.trainer_pt_utils.LabelSmoother`] that takes soft labels too."""

    def __call__(self, model_output, labels, shift_labels=False, num_items_in_batch=None):
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if logits.dim() == 2 and _are_rows(labels, logits.shape[1]) and are_distributions(labels):
            return soft_cross_entropy(logits, labels, num_items_in_batch, self.epsilon)
        return super().__call__(model_output, labels, shift_labels, num_items_in_batch=num_items_in_batch)


def _are_rows(labels: Any, num_labels: int) -> bool:
    is_float = isinstance(labels, torch.Tensor) and labels.is_floating_point()
    return is_float and labels.dim() == 2 and labels.shape[1] == num_labels


def are_distributions(labels: torch.Tensor) -> bool:
    """Whether each row is a distribution over the classes, as from Mixup, and not a multi-label target."""
    return bool(((labels >= 0).all() & ((labels.float().sum(-1) - 1).abs() <= SUM_TOLERANCE).all()).item())


@contextmanager
def loss_function_replaced(model: nn.Module, replacement: Callable[..., torch.Tensor]) -> Iterator[None]:
    """
    Inside the `with` block a model's forward pass calls `replacement` where it would have called its `loss_function`.

    Args:
        model (`nn.Module`): A Transformers model, or a PEFT model around one.
        replacement (`Callable`): Takes what the `loss_function` takes.
    """
    model = without_adapters(model)
    # The library's property reads `_loss_function`. A class with a `loss_function` method is shadowed by an attribute.
    name = "_loss_function" if isinstance(getattr(type(model), "loss_function", None), property) else "loss_function"
    own = vars(model).get(name)
    setattr(model, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(model, name)
        else:
            setattr(model, name, own)
