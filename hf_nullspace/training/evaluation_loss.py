"""The mean loss of an evaluation batch over all processes, without the repeated images that fill it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size

from .batch_rows import select_rows


def exact_loss(
    accelerator: Accelerator,
    loss: torch.Tensor,
    inputs: dict[str, Any],
    loss_of: Callable[[dict[str, Any]], torch.Tensor],
    is_divided_by_all: bool,
) -> torch.Tensor:
    """
    The mean loss over the images of a batch, without the repeats that fill up the last batch on all processes.

    Args:
        accelerator (`Accelerator`): As in [`count_real_rows`]; for the reduction.
        loss (`torch.Tensor`): The loss over all rows, which is right where none is a repeat.
        inputs (`dict`): The batch of this process, a `dict` of tensors.
        loss_of (`Callable`): Gives the loss of some rows of the batch; every process calls it, even on rows that do not
            count, since it may wait for the others.
        is_divided_by_all (`bool`): As in [`mean_over_processes`], for what `loss_of` gives.
    """
    batch_size = find_batch_size(inputs)
    real = count_real_rows(accelerator, batch_size)
    if real is None:
        return loss
    rows = max(real, 1)
    some = select_rows(inputs, slice(rows), batch_size)
    return mean_over_processes(accelerator, loss_of(some), real, rows, is_divided_by_all)


def count_real_rows(accelerator: Accelerator, batch_size: int) -> int | None:
    """
    How many of this process's rows are not repeats that fill up the last batch; `None` if no process has repeats.

    Args:
        accelerator (`Accelerator`): Knows how far the dataloader has come, and how many images its last batch lacks.
        batch_size (`int`): This process's rows of the batch.
    """
    state = accelerator.gradient_state
    missing = state.remainder <= 0 or state.remainder >= batch_size * accelerator.num_processes
    if accelerator.num_processes == 1 or not state.end_of_dataloader or missing:
        return None
    # The processes take the rows of a batch in their order, and the repeats stand at its end.
    return min(max(state.remainder - accelerator.process_index * batch_size, 0), batch_size)


def mean_over_processes(
    accelerator: Accelerator, loss: torch.Tensor, real: int, rows: int, is_divided_by_all: bool
) -> torch.Tensor:
    """
    The mean loss over the real rows of all processes.

    Args:
        accelerator (`Accelerator`): For the reduction.
        loss (`torch.Tensor`): This process's loss over its `rows` rows.
        real (`int`): How many of the rows count: all, or none.
        rows (`int`): Rows that `loss` was computed on.
        is_divided_by_all (`bool`): Whether `loss` is the sum over the rows, divided by the rows of all processes and
            multiplied by the number of processes, as `Trainer` does; otherwise it is the mean over the rows.
    """
    counts = torch.tensor([float(rows), float(real)], device=loss.device)
    all_rows, all_real = accelerator.reduce(counts, "sum").tolist()
    weight = all_rows / accelerator.num_processes if is_divided_by_all else rows
    return accelerator.reduce(loss * weight if real else torch.zeros_like(loss), "sum") / all_real
