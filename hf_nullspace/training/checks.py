"""What `Trainer` finds out at its first batch, after training, or not at all, found out before training begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import is_peft_available

from ..models.adapters import without_adapters
from ..models.frozen import frozen
from ..models.model_inputs import accepted_inputs
from ..utils.random import preserved_random_state


def first_examples(dataset: Any, count: int = 2) -> list[Any]:
    """The first examples of a dataset that can be indexed; none of a stream, which would be one image on."""
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        return []
    return [dataset[index] for index in range(min(count, len(dataset)))]


def check_columns(
    dataset: Any,
    collator: Callable[[list[Any]], Any],
    as_trained_on: Callable[[], tuple[Any, Callable[[list[Any]], Any]]],
    description: str,
) -> None:
    """
    Makes sure that a transform or a collator still finds what it reads when unused columns are gone.

    Args:
        dataset (`Dataset`): The dataset as it was given.
        collator (`Callable`): The collator as it was given.
        as_trained_on (`Callable`): Gives both as `Trainer` uses them, without the columns that the model does not name.
        description (`str`): What the dataset is for.

    Raises:
        `ValueError`: If a batch can be made of the dataset as it is, but not without those columns.
    """
    with preserved_random_state():
        try:
            kept, kept_collator = as_trained_on()
            examples = first_examples(kept)
            if examples:
                kept_collator(examples)
            return
        except Exception as error:  # whatever a user's transform raises where its column is gone
            reason = error
        try:
            given = sorted(_names(dataset))
            collator(first_examples(dataset))
        except Exception:  # it fails either way, and training says how
            return
    raise ValueError(
        f"The {description} set cannot be read without the columns that the model's forward pass does not name "
        f"({type(reason).__name__}: {reason}): it has {given}, of which a transform or the collator needs another. Pass "
        "`remove_unused_columns=False` to the training arguments."
    ) from reason


def _names(dataset: Any) -> Sequence[str]:
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        return columns
    example = dataset[0]
    return list(example) if isinstance(example, Mapping) else []


def check_saved_with_adapters(model: nn.Module) -> None:
    """
    Makes sure that an adapter's checkpoints hold every weight that is trained.

    Raises:
        `ValueError`: If a weight outside the adapter is trained, which PEFT would not save.
    """
    lost = weights_lost_with_adapters(model)
    if lost:
        modules = sorted({name.removeprefix("base_model.model.").rpartition(".")[0] for name in lost})
        raise ValueError(
            f"{lost} are trained, but are no part of the adapter: PEFT would not save them, and the reloaded model would "
            f"be another. Name their modules in the adapter's config, `LoraConfig(..., modules_to_save={modules})`, "
            "and leave them to PEFT to unfreeze; or freeze them."
        )


def weights_lost_with_adapters(model: nn.Module) -> list[str]:
    """Names of the trained weights of a PEFT model that its checkpoints do not hold; none of any other model."""
    if not is_peft_available():
        return []
    from peft import PeftModel, get_peft_model_state_dict

    if not isinstance(model, PeftModel):
        return []
    saved = set()
    for adapter in model.peft_config:
        state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        saved |= {weight.data_ptr() for weight in state.values()}
    return [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and not weight.is_meta and weight.data_ptr() not in saved
    ]


def check_neftune(model: nn.Module, example: dict[str, torch.Tensor]) -> None:
    """
    Makes sure that `neftune_noise_alpha` finds embeddings that it can add its noise to.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
        example (`dict`): A collated example.

    Raises:
        `ValueError`: If the model has no input embeddings, or they are no tensor with at least three axes.
    """
    classifier, found = without_adapters(model), []
    try:
        embeddings = classifier.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    if embeddings is not None:
        handle = embeddings.register_forward_hook(lambda module, args, output: found.append(output))
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in example.items() if isinstance(value, torch.Tensor)}
        try:
            with preserved_random_state(), frozen(model), torch.no_grad():
                classifier(**accepted_inputs(classifier, inputs))
        finally:
            handle.remove()
    if not found or not isinstance(found[0], torch.Tensor) or found[0].dim() < 3:
        given = f"give a `{type(found[0]).__name__}`" if found else "are none"
        raise ValueError(
            f"`neftune_noise_alpha` adds noise to the model's input embeddings, a tensor, but those of "
            f"{type(classifier).__name__} {given}. Leave `neftune_noise_alpha` out."
        )
