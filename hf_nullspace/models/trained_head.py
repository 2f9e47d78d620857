"""Reorders the rows of a trained head by the names of the classes, or refuses a head that is not trained or not known."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.class_labels import folded
from ..data.imagenet import imagenet_class_indices


logger = logging.get_logger(__name__)


def head_rows(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The parameters that have a row for each label, by name: those whose shape another number of labels changes.

    Empty where the model cannot be built with another number of labels, as one of timm with weights of its own.
    """
    config = copy.deepcopy(model.config)
    config.id2label = {index: str(index) for index in range(model.config.num_labels + 1)}
    try:
        with torch.device("meta"):
            larger = dict(type(model)(config).named_parameters())
    except Exception:  # other libraries' constructors raise many exception types, with the same meaning here
        return {}
    return {
        name: weight
        for name, weight in model.named_parameters()
        if name in larger and weight.dim() and larger[name].shape[0] == weight.shape[0] + 1
    }


def check_rows_named(name: str, id2label: Mapping[int, str]) -> None:
    """
    Raises:
        `ValueError`: If the classes of a checkpoint are not numbered 0, 1, ..., so that a class' row is not known.
    """
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(
            f"The `id2label` of {name!r} numbers its {len(id2label)} classes {sorted(id2label)[:5]}, so which row of the "
            f"head is whose is not known. Number them 0 to {len(id2label) - 1} in its config.json, one for each row."
        )


def check_trained_head(name: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """
    Makes sure that a model which is to be measured as it is has a head from its checkpoint.

    Args:
        name (`str`): Hub id or folder of the model, for errors.
        model ([`~transformers.PreTrainedModel`]): The model.
        missing (`Collection[str]`): Parameters that the checkpoint did not hold.

    Raises:
        `ValueError`: If a row for each label was drawn anew, or the classes are not numbered row by row.
    """
    check_rows_named(name, model.config.id2label)
    drawn = sorted(set(head_rows(model)) & set(missing))
    if drawn:
        raise ValueError(
            f"{name!r} is no trained classifier: it holds no {' and no '.join(drawn)}, so its answers would be random. "
            "Finetune it first (`hf-nullspace finetune`), or name a checkpoint with a head."
        )


def row_order(own: Mapping[int, str], labels: Sequence[str]) -> list[int] | None:
    """
    Which row of a head with classes `own` belongs to each of `labels`; `None` where the two are not the same classes.

    Names are compared without case and outer blanks, else as ImageNet's classes, whose WordNet ids match synonyms.
    """
    names = [folded(own[place]) for place in sorted(own)]
    wanted = [folded(label) for label in labels]
    if names == wanted:
        return list(range(len(wanted)))
    if sorted(names) == sorted(wanted) and len(set(names)) == len(names):
        return [names.index(label) for label in wanted]
    try:
        places = {index: place for place, index in enumerate(imagenet_class_indices(names))}
        return [places[index] for index in imagenet_class_indices(wanted)]
    except (ValueError, KeyError):
        return None


def follow_names(
    model: PreTrainedModel, own: Mapping[int, str], labels: Sequence[str], new_keys: Collection[str], start_anew: bool
) -> bool:
    """
    Puts the rows of a trained head in the order of `labels`, whose names the model's config has already.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model, loaded with a head for `labels`.
        own (`Mapping[int, str]`): The classes that the checkpoint names.
        labels (`Sequence[str]`): The classes of the images.
        new_keys (`Collection[str]`): Parameters that the checkpoint did not hold, or held in another shape.
        start_anew (`bool`): Whether a head of other classes is drawn anew instead of refused.

    Returns:
        `bool`: Whether the head is new: of random numbers, to be trained.

    Raises:
        `ValueError`: If the head was trained on other classes.
    """
    rows = head_rows(model)
    if not rows or set(rows) & set(new_keys):
        return bool(rows)
    if list(own.values()) == [f"LABEL_{index}" for index in range(len(own))]:
        if [str(label) for label in labels] != list(own.values()):
            logger.warning(
                f"The checkpoint does not name its {len(own)} classes; taking {list(labels)[:5]} in their order. If "
                "its head was never trained, `head_first_steps=500` trains it alone first."
            )
        return False
    order = row_order(own, labels)
    if order is None and not start_anew:
        raise ValueError(
            f"The head of this checkpoint was trained on {list(own.values())[:5]}, but the images are of "
            f"{list(labels)[:5]}. Name the classes alike, or pass `--ignore_mismatched_sizes` to start with a new head."
        )
    if order is None:
        logger.warning("The checkpoint's head was trained on other classes; it starts anew.")
        _draw_anew(model, rows)
    elif order != sorted(order):
        logger.warning(
            f"The rows of the trained head are put in the order of the images' classes, {list(labels)[:5]}."
        )
        with torch.no_grad():
            for weight in rows.values():
                weight.copy_(weight[order].clone())
    return order is None


def _draw_anew(model: PreTrainedModel, rows: Mapping[str, torch.Tensor]) -> None:
    deviation = getattr(model.config, "initializer_range", 0.02)
    for weight in rows.values():
        with torch.no_grad():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=deviation)
            else:
                nn.init.zeros_(weight)
