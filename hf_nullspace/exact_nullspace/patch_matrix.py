"""The patch projection as one matrix, and its inverse: pixel noise with a given patch embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.utils import logging

from ..models.patch_projection import PatchProjection, find_patch_projection
from ..models.pixel_box import pixel_limits
from .patch_grid import PatchGrid


if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.get_logger(__name__)


class PatchMatrix(PatchGrid):
    """
    The matrix `W` that a patch projection multiplies every patch with, its rank and its inverse.

    Args:
        projection ([`PatchProjection`]): The projection.
        image_size (`tuple[int, int]`, *optional*): See [`PatchNullspace`].
        rtol (`float`, *optional*): See [`PatchNullspace`].
        num_channels (`int`, *optional*, defaults to 3): See [`PatchNullspace`].

    Raises:
        `ValueError`: If patches overlap, or `rtol` is negative.
    """

    def __init__(
        self,
        projection: PatchProjection,
        image_size: tuple[int, int] | None = None,
        rtol: float | None = None,
        num_channels: int = 3,
    ):
        if not projection.is_exact:
            raise ValueError(
                f"There is no exact nullspace per patch: {projection.obstacle}, so no matrix maps each patch by itself. "
                "Use `synthesize_noise`, whose approximate nullspace works for every model."
            )
        if rtol is not None and not rtol >= 0:
            raise ValueError(f"`rtol` must be at least 0, but got {rtol!r}.")
        super().__init__(projection, image_size, num_channels)
        # Only the matrix is kept: later weight updates do not change samples, and data workers need no module.
        self.matrix = projection.matrix().to("cpu", torch.float64)
        left, singular_values, right = torch.linalg.svd(self.matrix, full_matrices=True)
        if rtol is None:
            weight = projection.module.weight
            rtol = max(self.matrix.shape) * min(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps)
        self.tolerance = rtol * singular_values.max().item()
        self.rank = int((singular_values > self.tolerance).sum())
        self.right_vectors = right
        self.pseudo_inverse = (right[: self.rank].T / singular_values[: self.rank]) @ left[:, : self.rank].T

    @classmethod
    def from_model(cls, model: nn.Module, rtol: float | None = None, patch_projection: str | None = None) -> Self:
        """
        Builds it from a classifier's patch projection.

        Args:
            model (`nn.Module`): The classifier, unwrapped.
            rtol (`float`, *optional*): See [`PatchNullspace`].
            patch_projection (`str`, *optional*): Name of the projection module, if the rule does not find it.

        Raises:
            `ValueError`: If the model has no patch projection, or its patches overlap.
        """
        config = getattr(model, "config", None)
        config = getattr(config, "vision_config", config)
        size = getattr(config, "image_size", None)
        size = (size, size) if isinstance(size, int) else size
        projection = find_patch_projection(model, patch_projection)
        return cls(projection, tuple(size) if size else None, rtol, getattr(config, "num_channels", 3))

    def pixel_box(
        self, pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        How far each pixel may decrease and increase, in normalised units.

        Returns:
            Two `torch.Tensor` of shape `(batch_size, num_patches, features)` in float32, the first at most 0 and the
            second at least 0.

        Raises:
            `ValueError`: If the pictures lie outside [0, 1], or a mean or standard deviation is missing or invalid.
        """
        self.to_patches(pixel_values)  # pictures of the wrong shape are named before their statistics
        lower, upper = pixel_limits(pixel_values, image_mean, image_std, self.num_channels)
        return self.to_patches(lower), self.to_patches(upper)

    def realize(self, noise: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        The smallest pixel noise whose patch embedding (without the bias) is the given noise.

        Exact when the matrix has full row rank (`rank == hidden_size`). Otherwise it comes as close as pixels can, and
        a warning gives the relative residual. Any exact-nullspace noise can be added to the result.

        Args:
            noise (`torch.Tensor` of shape `(noises, num_patches, hidden_size)`): For example `noise.tensor` of a
                [`NullspaceNoise`].
            image_size (`tuple[int, int]`, *optional*): `(height, width)` in pixels. Defaults to the model's.

        Returns:
            `torch.Tensor` of shape `(noises, channels, height, width)` in float32, in normalised pixels; of shape
            `(noises, num_patches, features)` for a linear projection.

        Raises:
            `ValueError`: If the noise does not fit the projection or the image size.
        """
        self._check_embedding_noise(noise)
        noise = noise.double()
        patches = noise @ self.pseudo_inverse.to(noise.device).T
        residual = self._residual(patches, noise).max().item()
        if residual > 1e-5:
            logger.warning(
                f"The matrix has rank {self.rank} for {self.matrix.shape[0]} hidden units, so pixels cannot give every "
                f"patch embedding: {100 * residual:.3g} % of the noise's norm is missing."
            )
        return self.to_pixels(patches.float(), image_size)

    def realize_within(
        self,
        noise: torch.Tensor,
        pixel_values: torch.Tensor,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        max_steps: int = 200,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Pixel noise that keeps the pictures in [0, 1] and whose patch embedding is as close as possible to the given one.

        Bounded least squares by accelerated projected gradient, from the minimum-norm solution clipped to the box. It
        stops after `max_steps`, and the residual says how close it came.

        Args:
            noise (`torch.Tensor` of shape `(1 or batch_size, num_patches, hidden_size)`): The noise.
            pixel_values, image_mean, image_std: As in [`~PatchNullspace.sample_within`].
            max_steps (`int`, *optional*, defaults to 200): Gradient steps.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Pixel noise of the shape of `pixel_values`, and for each picture the
            relative residual `||W p - v|| / ||v||`, of shape `(batch_size,)`.

        Raises:
            `ValueError`: As `sample_within`, or if the noise does not fit the projection or the pictures.
        """
        self._check_embedding_noise(noise)
        lower, upper = self.pixel_box(pixel_values, image_mean, image_std)
        if noise.shape[0] not in (1, len(lower)) or noise.shape[1] != lower.shape[1]:
            raise ValueError(
                f"Noise of shape {tuple(noise.shape)} does not fit {len(lower)} pictures of {lower.shape[1]} patches."
            )
        noise = noise.to(lower).expand(len(lower), -1, -1)
        matrix = self.matrix.to(lower)
        inverse = self.pseudo_inverse.to(lower)
        patches = bounded_least_squares(matrix, noise, lower, upper, noise @ inverse.T, max_steps)
        residual = self._residual(patches, noise).float()
        return self.to_pixels(patches, tuple(pixel_values.shape[2:])), residual

    def _residual(self, patches: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`||W p - v|| / ||v||` over all patches of each image, of shape `(batch_size,)`."""
        noise = noise.double()
        missing = (patches.double() @ self.matrix.to(patches.device).T - noise).flatten(1).norm(dim=1)
        return missing / noise.flatten(1).norm(dim=1).clamp_min(1e-30)

    def _check_embedding_noise(self, noise: torch.Tensor) -> None:
        if noise.dim() != 3 or noise.shape[2] != self.matrix.shape[0]:
            raise ValueError(
                f"Noise must have shape (noises, num_patches, {self.matrix.shape[0]}), but got {tuple(noise.shape)}."
            )


def bounded_least_squares(
    matrix: torch.Tensor,
    wanted: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    start: torch.Tensor,
    max_steps: int,
) -> torch.Tensor:
    """
    Minimises `||W p - v||` over `lower <= p <= upper` for every patch, by accelerated projected gradient.

    Args:
        matrix (`torch.Tensor` of shape `(hidden_size, features)`): `W`.
        wanted (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): `v`.
        lower, upper (`torch.Tensor` of shape `(batch_size, num_patches, features)`): The box.
        start (`torch.Tensor` of the same shape): Where to start; clipped to the box.
        max_steps (`int`): Gradient steps.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, features)`.
    """
    step = 1 / torch.linalg.matrix_norm(matrix.double(), 2).item() ** 2
    patches = start.clamp(lower, upper)
    ahead = patches
    momentum = 1.0
    for _ in range(max_steps):
        following = (ahead - step * (ahead @ matrix.T - wanted) @ matrix).clamp(lower, upper)
        last = momentum
        momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (last - 1) / momentum * (following - patches)
        patches = following
    return patches
