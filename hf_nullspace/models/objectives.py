"""Logits and probabilities from a model's outputs, and how far noise moves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .soft_labels import are_distributions


Objective = Callable[[Any], torch.Tensor]


def read_logits(outputs: Any) -> torch.Tensor:
    """
    The default objective: the logits of a classifier, or of each pixel of a segmentation.

    Epsilon then bounds the squared change of the class probabilities; for a segmentation, its mean over the pixels.

    Args:
        outputs ([`~transformers.utils.ModelOutput`]): Output with `logits` of shape `(batch_size, num_labels)` or
            `(batch_size, num_labels, height, width)`; or a `dict` with them, a tuple that begins with them (after the
            loss, if there is one), or the logits themselves.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)` or `(batch_size, height * width, num_labels)`.

    Raises:
        `ValueError`: If the output has no logits.
    """
    logits = outputs
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    elif isinstance(outputs, (tuple, list)):  # `return_dict=False`, where a loss may come first
        logits = next((value for value in outputs if isinstance(value, torch.Tensor) and value.dim() > 1), None)
    elif not isinstance(outputs, torch.Tensor):
        logits = getattr(outputs, "logits", None)
    if logits is None:
        raise ValueError(
            f"The model's output, a {type(outputs).__name__}, has no `logits`. Use a model with a classification head, "
            "or pass `objective`, a function from the output to logits of shape (batch_size, num_labels); for a "
            "feature extractor or CLIP, `similarity_objective(...)` makes one."
        )
    return logits.flatten(2).transpose(1, 2) if logits.dim() == 4 else logits


def is_multi_label(model: nn.Module, labels: torch.Tensor | None = None, logits: torch.Tensor | None = None) -> bool:
    """
    Whether a classifier is multi-label: a sigmoid for each logit, instead of one softmax over all of them.

    The rule is that of Transformers' losses: `config.problem_type` if it is set. Otherwise the labels decide: rows of
    floating-point numbers are multi-label, unless they are distributions over the classes. A segmentation of one class
    is multi-label, with a sigmoid for each pixel.

    Args:
        model (`nn.Module`): The classifier; its `config` is read, where it has one.
        labels (`torch.Tensor`, *optional*): Labels of some images, as the loss receives them.
        logits (`torch.Tensor`, *optional*): Logits of some images, as [`read_logits`] returns them.

    Raises:
        `ValueError`: If the model is a regression: it has no probabilities that epsilon could bound.
    """
    config = getattr(model, "config", None)
    problem_type = getattr(config, "problem_type", None)
    num_labels = getattr(config, "num_labels", None) if logits is None else logits.shape[-1]
    is_dense = (logits is not None and logits.dim() > 2) or (isinstance(labels, torch.Tensor) and labels.dim() > 2)
    if problem_type == "multi_label_classification" or (problem_type is None and is_dense and num_labels == 1):
        return True
    if problem_type == "regression" or num_labels == 1:
        raise ValueError(
            f"{type(model).__name__} predicts numbers ({num_labels} outputs, problem_type {problem_type!r}), not classes: "
            "epsilon bounds the change of class probabilities, of which it has none. Use a classifier of at least two "
            "labels; for independent yes-or-no outputs set `model.config.problem_type = "
            "'multi_label_classification'`; to train without noise set `noise_weight=0`."
        )
    if problem_type is not None or not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        return False
    return labels.is_floating_point() and not are_distributions(labels)


def probabilities(logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """Softmax over the last axis; for a multi-label model the sigmoid of each logit."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def decisions(logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """The predicted class, without the last axis of `logits`; for a multi-label model a boolean for each label."""
    return logits > 0 if multi_label else logits.argmax(-1)


def largest_probability_mse(num_labels: int, multi_label: bool = False) -> float:
    """The largest possible sum of squared changes of the probabilities: 2 for a softmax, 1 per label for sigmoids."""
    return float(num_labels) if multi_label else 2.0


def kl_divergence(clean_logits: torch.Tensor, other_logits: torch.Tensor) -> torch.Tensor:
    """
    Per-image `KL(softmax(clean) || softmax(other))`; gradients flow through both.

    Args:
        clean_logits, other_logits (`torch.Tensor` of shape `(batch_size, num_labels)` or `(batch_size, pixels, num_labels)`):
            As [`read_logits`] returns them.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`; for a segmentation, the mean over the pixels.
    """
    clean, other = (logits.float().log_softmax(-1) for logits in (clean_logits, other_logits))
    return (clean.exp() * (clean - other)).sum(-1).reshape(len(clean), -1).mean(1)


def similarity_objective(
    references: torch.Tensor, temperature: float = 0.07, embed: Objective | None = None
) -> Objective:
    """
    Logits of a model without a head: cosine similarities to fixed embeddings, divided by a temperature.

    With the text embeddings of class names as references this is zero-shot classification (Radford et al., 2021,
    arXiv 2103.00020); with features of reference images it is the non-parametric softmax of Wu et al. (2018, arXiv
    1805.01978), which sees the distances of features that a nearest-neighbour classifier would see. `logit_distance` is
    then the distance of the similarities, and epsilon bounds the squared change of the probabilities over the
    references. The result is an `objective` of [`synthesize_noise`] and [`measure_noise`].

    Args:
        references (`torch.Tensor` of shape `(num_references, embedding_size)`): The embeddings to compare with; at
            least 2.
        temperature (`float`, *optional*, defaults to 0.07): Divides the similarities. For CLIP and SigLIP
            `1 / model.logit_scale.exp()`; a bias of the logits, as SigLIP has, does not change the probabilities.
        embed (`Callable`, *optional*): From the model's output to embeddings of shape `(batch_size, embedding_size)`.
            By default `image_embeds`, else `pooler_output`, else the mean of `last_hidden_state` over the tokens.

    Raises:
        `ValueError`: If the references have no two dimensions or rows, or the temperature is not positive.

    Example:

    ```python
    >>> from hf_nullspace import similarity_objective, synthesize_noise

    >>> objective = similarity_objective(text_embeds, 1 / clip.logit_scale.exp().item())
    >>> noise = synthesize_noise(vision_model, dataloader, objective=objective)
    ```
    """
    if references.dim() != 2 or len(references) < 2:
        raise ValueError(
            "`references` must have shape (num_references, embedding_size) with at least 2 rows, but got "
            f"{tuple(references.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, but got {temperature!r}.")
    embed = embed or _embed
    directions = torch.nn.functional.normalize(references.detach().float(), dim=-1)

    def objective(outputs: Any) -> torch.Tensor:
        embeddings = embed(outputs).float()
        if embeddings.dim() != 2 or embeddings.shape[1] != directions.shape[1]:
            raise ValueError(
                f"The model's embeddings have shape {tuple(embeddings.shape)}, but the references have shape "
                f"{tuple(directions.shape)}; expected (batch_size, {directions.shape[1]}). Make the references with the "
                "same model, or pass `embed`."
            )
        similarities = torch.nn.functional.normalize(embeddings, dim=-1) @ directions.to(embeddings.device).T
        return similarities / temperature

    return objective


def _embed(outputs: Any) -> torch.Tensor:
    for name in ("image_embeds", "pooler_output"):
        if getattr(outputs, name, None) is not None:
            return outputs[name].flatten(1)
    return outputs.last_hidden_state.mean(1)


def probability_mse(clean_logits: torch.Tensor, noisy_logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """
    Squared change of the predicted probabilities, summed over classes: the eps criterion (paper, section 4).

    Args:
        clean_logits (`torch.Tensor` of shape `(batch_size, num_labels)` or `(batch_size, positions, num_labels)`):
            Logits of `f(u)`; with positions (the pixels of a segmentation), all quantities are means over them.
        noisy_logits (`torch.Tensor` of the same shape): Logits of `f(u + v)`.
        multi_label (`bool`, *optional*, defaults to `False`): Whether each label has a probability of its own (a
            sigmoid) instead of its share of one softmax; see [`~objectives.is_multi_label`].

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, each value in [0, 2], or in [0, num_labels] for a multi-label model.
    """
    change = probabilities(noisy_logits, multi_label) - probabilities(clean_logits, multi_label)
    return _mean_over_positions(change.square().sum(-1))


def logit_distance(clean_logits: torch.Tensor, noisy_logits: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of the logits, of shape `(batch_size,)`: the synthesis objective (paper, equation 5)."""
    return _mean_over_positions(torch.linalg.vector_norm(noisy_logits - clean_logits, dim=-1))


def agreement(clean_logits: torch.Tensor, noisy_logits: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """
    1 where the predicted class is unchanged and 0 elsewhere, of shape `(batch_size,)` (paper, figure 2).

    For a multi-label model, 1 where no label crosses the probability 1/2.
    """
    same = decisions(clean_logits, multi_label) == decisions(noisy_logits, multi_label)
    same = same.all(-1) if multi_label else same
    return _mean_over_positions(same.to(clean_logits.dtype))


def _mean_over_positions(values: torch.Tensor) -> torch.Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(1)
