"""Experiments with one noise: the operations, images and scales under which it stays in the nullspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..noise.certificate import token_norms
from ..noise.controls import permuted_control
from ..utils.random import keyed_generator


# From a noise to the means of its [`Outcomes`] over some images, by name, and `num_images`.
Measure = Callable[[torch.Tensor], dict[str, float]]


def closure(measure: Measure, noise: torch.Tensor, second: torch.Tensor, seed: int = 42) -> list[dict[str, Any]]:
    """
    Which operations stay in the approximate nullspace (scaling down, convex combination) and which leave it.

    Args:
        noise, second (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): Two noises from independent searches.
        seed (`int`, *optional*, defaults to 42): Seed of the permutations.

    Returns:
        `list[dict]`: For each `operation` its `norm` and the means of its [`Outcomes`].
    """
    order = torch.randperm(noise.shape[1], generator=keyed_generator("tokens", seed)).to(noise.device)
    operations = {
        "noise": noise,
        "second noise": second,
        "half of the noise": 0.5 * noise,
        "mean of both": 0.5 * noise + 0.5 * second,
        "sign flipped": -noise,
        "tokens permuted": noise[:, order],
        "elements permuted": permuted_control(noise, keyed_generator("permutation", seed)),
    }
    return [
        {"operation": name, "norm": changed.norm().item(), **measure(changed)} for name, changed in operations.items()
    ]


def transfer(measures: dict[str, Measure], noise: torch.Tensor, seed: int = 42) -> list[dict[str, Any]]:
    """One noise on several sets of images, by name (those it was searched on, others), with the permuted control."""
    return [{"images": name, **with_control(measure, noise, seed)} for name, measure in measures.items()]


def dose_response(
    measure: Measure, noise: torch.Tensor, scales: Sequence[float], seed: int = 42
) -> list[dict[str, float]]:
    """The error of `scale * noise` by scale, beside the permuted control."""
    return [
        {"scale": scale, "norm": scale * noise.norm().item(), **with_control(measure, scale * noise, seed)}
        for scale in scales
    ]


def token_norm_rows(noise: torch.Tensor, grid: tuple[int, int]) -> list[dict[str, float]]:
    """
    Norm of each token of a noise, hidden-axis mean excluded, with its place in the patch grid.

    Args:
        noise (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise.
        grid (`tuple[int, int]`): `(rows, columns)` of the patches.

    Raises:
        `ValueError`: If the grid has another number of patches than the noise.
    """
    num_patches = noise.shape[1]
    if grid[0] * grid[1] != num_patches:
        raise ValueError(
            f"A grid of {grid[0]} x {grid[1]} does not hold {num_patches} patches. Pass `grid=(rows, columns)`."
        )
    norms = token_norms(noise)[0].tolist()
    return [
        {"row": index // grid[1], "column": index % grid[1], "token_norm": norm} for index, norm in enumerate(norms)
    ]


def with_control(measure: Measure, noise: torch.Tensor, seed: int) -> dict[str, float]:
    """Outcomes of the noise, and as `permuted_...` those of the noise with its elements permuted."""
    control = measure(permuted_control(noise, keyed_generator("permutation", seed)))
    return {**measure(noise), **{f"permuted_{name}": control[name] for name in control if name != "num_images"}}
