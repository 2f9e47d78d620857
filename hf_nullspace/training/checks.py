"""Checks before training of what `Trainer` would notice late or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_peft_available

from ..models.adapters import without_adapters
from ..models.frozen import frozen
from ..models.model_inputs import LABEL_NAMES, accepted_inputs
from ..models.objectives import read_logits
from ..models.patch_projection import PatchProjection, name_candidates, patch_projections
from ..utils.random import preserved_random_state
from .batch_rows import is_batched, select_rows
from .images import is_stream


# How far the mean of two images may be from an affine map's, as a share of the distance of the two: half precision rounds.
AFFINE_TOLERANCE = 0.02


def first_examples(dataset: Any, count: int = 2) -> list[Any]:
    """The first examples of a dataset that can be indexed; none of a stream, which reading would advance."""
    if is_stream(dataset):
        return []
    return [dataset[index] for index in range(min(count, len(dataset)))]


def check_columns(
    dataset: Any,
    collator: Callable[[list[Any]], Any],
    as_trained_on: Callable[[], tuple[Any, Callable[[list[Any]], Any]]],
    description: str,
) -> None:
    """
    Makes sure that transforms and the collator still find their columns after unused columns are removed.

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


def check_projection(model: nn.Module, projection: PatchProjection, batch: dict[str, Any], is_named: bool) -> None:
    """
    Makes sure that a forward pass embeds patches by the module that noise is to be added behind, and once.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
        projection ([`PatchProjection`]): The module.
        batch (`dict`): A collated batch of two images.
        is_named (`bool`): Whether the caller named the module. A linear layer that was named must read pixels: an affine
            map of them at most may come before.

    Raises:
        `ValueError`: If the module does not run once a pass, or gives no patch embeddings of each image.
    """
    pixels = batch["pixel_values"]
    device = next(model.parameters()).device
    if not pixels.is_floating_point() or len(pixels) < 2:
        return
    # Two images and their mean: an affine map sends the mean to the mean of the two outputs.
    first_of_each = {name: select_rows(value, slice(1), len(pixels)) for name, value in batch.items()}
    inputs = {
        name: value.expand(3, *value.shape[1:]).to(device) if is_batched(value, 1) else value
        for name, value in first_of_each.items()
    }
    inputs["pixel_values"] = torch.cat([pixels[:2], pixels[:2].mean(0, keepdim=True)]).to(device)
    candidates = {each.name: each.module for each in patch_projections(model)}
    modules = {**candidates, projection.name: projection.module}
    reads: dict[str, list] = {name: [] for name in modules}
    gives: dict[str, list] = {name: [] for name in reads}

    def record(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        reads[name].append(args[0])
        gives[name].append(output)

    handles = [module.register_forward_hook(partial(record, name)) for name, module in modules.items()]
    try:
        # Compiled code knows nothing of hooks that are added now.
        with preserved_random_state(), frozen(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(**accepted_inputs(model, inputs))
    except Exception:  # training reports why the forward pass fails
        return
    finally:
        for handle in handles:
            handle.remove()

    def obstacle(name: str) -> str | None:
        if len(gives[name]) != 1:
            return f"the forward pass runs it {len(gives[name]) or 'no'} times instead of once"
        (output,) = gives[name]
        if output.dim() not in (3, 4) or len(output) != 3:
            return f"it gives {tuple(output.shape)} for 3 images instead of embeddings of the patches of each"
        if is_named and isinstance(projection.module, nn.Linear) and name == projection.name:
            first, second, mean = reads[name][0].double()
            distance = (first / 2 + second / 2 - mean).norm()
            scale = (first - second).norm()
            if distance > AFFINE_TOLERANCE * scale:
                return "what it reads are no pixels, but features of them"
        return None

    reason = obstacle(projection.name)
    if reason is None:
        return
    given = f"`patch_projection={projection.name!r}`" if is_named else f"The module {projection.name!r}"
    would_do = [name for name in candidates if name != projection.name and obstacle(name) is None]
    raise ValueError(
        f"{given} of {type(model).__name__} is no patch projection: {reason}. Expected is the layer that turns pixels into "
        f"patch embeddings. {name_candidates(would_do)}"
    )


def check_not_checkpointed(model: nn.Module, projection: PatchProjection, will_be_on: bool = False) -> None:
    """
    Makes sure that activation checkpointing does not run the projection again without its noise.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
        projection ([`PatchProjection`]): Where the noise is added.
        will_be_on (`bool`, *optional*, defaults to `False`): Whether activation checkpointing is turned on later, in
            every layer that supports it. Otherwise only layers that have it on count.

    Raises:
        `ValueError`: If the patch projection lies inside a layer that activation checkpointing recomputes.
    """
    for name, layer in model.named_modules():
        is_on = isinstance(layer, GradientCheckpointingLayer) and (will_be_on or layer.gradient_checkpointing)
        if is_on and projection.name.startswith(f"{name}."):
            raise ValueError(
                f"Activation checkpointing runs {name} again in the backward pass, and with it the patch projection "
                f"{projection.name}, without its noise: the gradients would be wrong. Train "
                f"{type(model).__name__} without `activation_checkpointing`."
            )


def check_gradient(model: nn.Module, projection: PatchProjection, batch: dict[str, Any]) -> None:
    """
    Makes sure that a gradient reaches the patch embeddings, along which each image's noise can move up its loss.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
        projection ([`PatchProjection`]): The module that embeds patches.
        batch (`dict`): A collated batch.

    Raises:
        `ValueError`: If the logits do not depend on the patch embeddings in a way that can be differentiated.
    """
    found: list[torch.Tensor] = []

    def replace(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    device = next(model.parameters()).device
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    handle = projection.module.register_forward_hook(replace)
    try:
        with preserved_random_state(), frozen(model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            logits = read_logits(model(**accepted_inputs(model, inputs)))
            gradient = (
                torch.autograd.grad(logits.sum(), found, allow_unused=True)[-1] if logits.requires_grad else None
            )
    except Exception:  # training reports why the forward pass fails
        return
    finally:
        handle.remove()
    if gradient is None:
        raise ValueError(
            f"No gradient of the loss of {type(model).__name__} reaches its patch embeddings ({projection.name}), along "
            "which `noise_ascent` moves each image's noise: the forward pass detaches them. Set `noise_ascent=0`, or let "
            "the gradient pass."
        )


def check_neftune(model: nn.Module, example: dict[str, torch.Tensor]) -> None:
    """
    Makes sure that `neftune_noise_alpha` finds embeddings that it can add its noise to.

    Args:
        model (`nn.Module`): The classifier, unwrapped.
        example (`dict`): A collated example.

    Raises:
        `ValueError`: If the model has no input embeddings, or they are no tensor with at least three axes.
    """
    classifier = without_adapters(model)
    found = []
    try:
        embeddings = classifier.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    if embeddings is not None:
        handle = embeddings.register_forward_hook(lambda module, args, output: found.append(output))
        device = next(model.parameters()).device
        # Without labels: the model's loss would take distributions for several labels each, and keep that in its config.
        tensors = {name: value for name, value in example.items() if isinstance(value, torch.Tensor)}
        inputs = {name: value.to(device) for name, value in tensors.items() if name not in LABEL_NAMES}
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
