"""
Trains a new head alone before the whole model is finetuned, as LP-FT does ([arXiv 2202.10054](
https://arxiv.org/abs/2202.10054)): a head of random numbers would first spoil the features that the model came with.

The rest of the model is in eval mode and the pictures are not augmented, so nothing is random: the inputs of the head are
computed once, and the steps are those of a single layer.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..models.frozen import frozen
from ..models.soft_labels import SoftLabelSmoother, classification_loss
from ..models.trained_head import head_rows
from ..utils.files import replaced
from ..utils.random import keyed_generator, preserved_random_state


# Images of a forward pass; the same number on any number of processes, so that features round in the same way.
FEATURE_BATCH_SIZE = 64
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
TOLERANCE = 1e-3


class NoSingleHeadError(ValueError):
    """The logits of a model are not the outputs of one module with a row for each label."""


def train_head_first(
    model: PreTrainedModel,
    dataset: Any,
    collator: Callable[[list], dict[str, Any]],
    steps: int,
    accelerator: Accelerator | None = None,
    seed: int = 42,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
    label_smoothing: float = 0.0,
    compute_loss_func: Callable[..., torch.Tensor] | None = None,
    num_workers: int = 0,
) -> dict[str, Any]:
    """
    Trains the head of a classifier in place, on features that are computed once. With several processes each computes a
    share of the features, and all end with the same head.

    Args:
        model ([`~transformers.PreTrainedModel`]): The classifier, on its device and not wrapped.
        dataset (sized): The training images, of known length and without random transforms. No more are read than
            `steps * batch_size`.
        collator (`Callable`): Makes batches of them, with `labels`.
        steps (`int`): Steps of AdamW, without weight decay, at a learning rate that falls to zero linearly.
        accelerator ([`~accelerate.Accelerator`], *optional*): The processes. By default a new one.
        seed (`int`, *optional*, defaults to 42): Seed of the order of the images.
        learning_rate (`float`, *optional*, defaults to 1e-3): That of the first step.
        batch_size (`int`, *optional*, defaults to 256): Images of a step.
        label_smoothing (`float`, *optional*, defaults to 0.0): As `label_smoothing_factor` of the trainer.
        compute_loss_func (`Callable`, *optional*): As that of the trainer: called with outputs that have `logits`, labels
            and `num_items_in_batch`. By default the model's own loss.
        num_workers (`int`, *optional*, defaults to 0): Workers that read images.

    Returns:
        `dict[str, Any]`: `steps`, `images`, and the mean loss over those images before (`first_loss`) and after
        (`last_loss`).

    Raises:
        [`NoSingleHeadError`]: If the logits are not the outputs of one module, so that its inputs are not all there is.
        `ValueError`: If a batch has no labels, or `steps` is less than 1.
        `FloatingPointError`: If the loss is not finite.

    Example:

    ```python
    >>> from hf_nullspace import NullspaceDataCollator
    >>> from hf_nullspace.training.head_first import train_head_first

    >>> facts = train_head_first(model, train_dataset, NullspaceDataCollator(), steps=20)
    >>> facts["last_loss"] < facts["first_loss"]
    True
    ```
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, but got {steps!r}.")
    accelerator = Accelerator() if accelerator is None else accelerator
    _, head = find_head(model)
    order = torch.randperm(len(dataset), generator=keyed_generator("images of the head", seed))
    images = Subset(dataset, order[: steps * batch_size].tolist())
    batches = _batches(len(images), accelerator)
    loader = DataLoader(images, batch_sampler=batches, collate_fn=collator, num_workers=num_workers)
    with preserved_random_state(), frozen(model):
        features, labels = _features(model, head, loader, accelerator)
    features, labels = (_of_all_processes(values, len(images), accelerator) for values in (features, labels))
    config = copy.deepcopy(model.config)  # a loss writes into it what kind of problem it found

    def loss_of(head: nn.Module, places: torch.Tensor | slice) -> torch.Tensor:
        outputs = ImageClassifierOutput(logits=head(features[places]))
        wanted = labels[places]
        if compute_loss_func is not None:
            return compute_loss_func(outputs, wanted, num_items_in_batch=torch.tensor(wanted.numel()))
        if label_smoothing:
            return SoftLabelSmoother(label_smoothing)(outputs, wanted)
        return classification_loss(wanted, outputs.logits, config)

    trained = copy.deepcopy(head).eval().float().requires_grad_(True)
    with torch.no_grad():
        first_loss = loss_of(trained, slice(None)).item()
    _fit(trained, loss_of, len(images), steps, batch_size, learning_rate, seed)
    with torch.no_grad():
        last_loss = loss_of(trained, slice(None)).item()
        for weight, found in zip(head.parameters(), trained.parameters(), strict=True):
            weight.copy_(broadcast(found.detach()) if accelerator.num_processes > 1 else found)
    if not math.isfinite(last_loss):
        raise FloatingPointError(
            f"The loss of the head went from {first_loss} to {last_loss}. Lower the learning rate, or check the images."
        )
    return {"steps": steps, "images": len(images), "first_loss": first_loss, "last_loss": last_loss}


def head_in_words(facts: dict[str, Any]) -> str:
    """What [`train_head_first`] did, in one line for logs and cards."""
    change = f"{facts['first_loss']:.3g} to {facts['last_loss']:.3g}"
    return f"{facts['steps']} steps on the features of {facts['images']} training images, loss {change}"


def find_head(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """
    The module whose parameters have a row for each label, and its name.

    Raises:
        [`NoSingleHeadError`]: If there is none, or there are several.
    """
    owners = sorted({name.rpartition(".")[0] for name in head_rows(model)})
    if len(owners) != 1:
        found = f"has {len(owners)} such modules, {owners}" if owners else "is built in another way"
        raise NoSingleHeadError(
            f"A head is trained first where one module makes the logits, with a row for each label, but "
            f"{type(model).__name__} {found}."
        )
    return owners[0], model.get_submodule(owners[0])


def save_head(model: PreTrainedModel, path: str | Path, facts: dict[str, Any]) -> None:
    """Writes the head of a classifier, and the facts of its training, so that a run that is stopped goes on with it."""
    _, head = find_head(model)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in head.named_parameters()}
    with replaced(Path(path)) as unfinished:
        save_file(weights, unfinished, metadata={"facts": json.dumps(facts)})


def load_head(model: PreTrainedModel, path: str | Path) -> dict[str, Any]:
    """
    Puts a head that [`save_head`] wrote into a classifier.

    Returns:
        `dict[str, Any]`: The facts of its training.
    """
    _, head = find_head(model)
    with safe_open(path, "pt") as file, torch.no_grad():
        for name, weight in head.named_parameters():
            weight.copy_(file.get_tensor(name))
        return json.loads(file.metadata()["facts"])


def _batches(count: int, accelerator: Accelerator) -> list[list[int]]:
    """The batches of this process: every n-th of those of one process; all have as many, the last some twice."""
    batches = list(torch.arange(count).split(FEATURE_BATCH_SIZE))
    batches += batches[:1] * (-len(batches) % accelerator.num_processes)
    return [batch.tolist() for batch in batches[accelerator.process_index :: accelerator.num_processes]]


def _features(
    model: PreTrainedModel, head: nn.Module, loader: DataLoader, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of the head and the labels, of this process's batches, each filled up to its full size."""
    features, labels = [], []
    with _inputs_kept(head) as kept, torch.no_grad():
        for batch in loader:
            if batch.get("labels") is None:
                raise ValueError(f"The batches have no `labels`, only {sorted(batch)}; a head is trained on them.")
            labels.append(_filled(batch.pop("labels").to(accelerator.device)))
            with accelerator.autocast():
                logits = model(**{name: value.to(accelerator.device) for name, value in batch.items()}).logits
                runs_once = len(kept) == 1 and kept[0].dim() == 2
                again = head(kept[0]) if runs_once else None  # in the same precision
            if again is None or not _are_close(again, logits):
                raise NoSingleHeadError(
                    f"A head is trained first where its outputs are the logits, but {type(model).__name__} changes them "
                    "further."
                )
            features.append(_filled(kept[0].float()))
            kept.clear()
    return torch.cat(features), torch.cat(labels)


@contextmanager
def _inputs_kept(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside the `with` block, collects what a module is called with."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].detach()))
    try:
        yield kept
    finally:
        handle.remove()


def _are_close(found: torch.Tensor, logits: torch.Tensor) -> bool:
    if found.shape != logits.shape:
        return False
    scale = logits.float().abs().max().clamp_min(1)
    return bool((found - logits.float()).abs().max() <= TOLERANCE * scale)


def _filled(values: torch.Tensor) -> torch.Tensor:
    filled = values.new_zeros(FEATURE_BATCH_SIZE, *values.shape[1:])
    filled[: len(values)] = values
    return filled


def _of_all_processes(values: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """The rows of all images in their order."""
    if accelerator.num_processes > 1:
        shares = gather(values.contiguous()).unflatten(0, (accelerator.num_processes, -1, FEATURE_BATCH_SIZE))
        values = shares.transpose(0, 1).flatten(0, 2)
    return values[:count]


def _fit(
    head: nn.Module,
    loss_of: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    count: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for places in itertools.islice(_shuffled(count, batch_size, seed), steps):
        optimizer.zero_grad()
        loss_of(head, places).backward()
        optimizer.step()
        schedule.step()


def _shuffled(count: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches in another order in each pass, without an incomplete one at its end."""
    batch_size = min(batch_size, count)
    for index in itertools.count():
        order = torch.randperm(count, generator=keyed_generator("order of the head", seed, index))
        yield from order[: count // batch_size * batch_size].split(batch_size)
