"""The exact nullspace of a patch projection: pixel noise that a model cannot see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers.utils import logging

from ..models.patch_projection import PatchProjection
from ..utils.random import keyed_generator
from .box_filling import approach, fill_box, norm_bound
from .patch_matrix import PatchMatrix


logger = logging.get_logger(__name__)


class PatchNullspace(PatchMatrix):
    """
    The pixel noise that a patch projection maps to zero.

    Non-overlapping patches are each multiplied by one matrix `W` of shape `(hidden_size, channels * patch_height *
    patch_width)`. If `W` has more columns than its rank, any vector of its nullspace can be added to every patch,
    independently, without changing the patch embeddings or the logits. The nullspace belongs to the current weights:
    build it again once training changes the projection. The singular value decomposition is taken jointly over the
    channels, in float64. Channel by channel, most of the nullspace would be missed.

    All pixels and noises here are **normalised**, as the model reads them, unless an argument says otherwise. Build one
    with [`PatchNullspace.from_model`].

    Args:
        projection ([`PatchProjection`]):
            The projection.
        image_size (`tuple[int, int]`, *optional*):
            `(height, width)` in pixels of the images that are sampled where no picture is given.
        rtol (`float`, *optional*):
            A singular value counts as zero up to `rtol` times the largest one. By default `max(W.shape)` times the
            machine epsilon of the weight's dtype, as in `numpy.linalg.matrix_rank`, and that of float32 for coarser
            dtypes: a half-precision matrix is exactly what its entries say, and the epsilon of float16 times its shape
            would declare half of a real model's filters to be zero.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of an image, for a linear projection, whose weights do not say. Its patches are expected as
            Siglip2's image processor cuts them, with the channel as the fastest axis of the features.

    Attributes:
        matrix (`torch.Tensor` of shape `(hidden_size, features)`): `W` in float64 on the CPU, where `features` is
            `channels * patch_height * patch_width`.
        rank (`int`): Its rank.
        dimension (`int`): `features - rank`, for each patch.
        tolerance (`float`): Singular values up to this one count as zero.
        basis (`torch.Tensor` of shape `(features, dimension)`): Orthonormal basis of the nullspace, float64.
        projection_name (`str`): Name of the projection inside the model.
        patch_size (`tuple[int, int]` or `None`): `(height, width)` in pixels; `None` for a linear projection.
        num_channels (`int`): Channels of an image.

    Raises:
        `ValueError`: If patches overlap, or `rtol` is negative.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> from hf_nullspace import PatchNullspace

    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    >>> model = ViTForImageClassification(config).eval()
    >>> nullspace = PatchNullspace.from_model(model)
    >>> nullspace.rank, nullspace.dimension  # 3 * 8 * 8 = 192 pixels of a patch, 32 filters
    (32, 160)
    >>> noise = nullspace.sample(1, norm=50.0)
    >>> images = torch.rand(1, 3, 16, 16)
    >>> torch.allclose(model(images).logits, model(images + noise).logits, atol=1e-5)
    True
    ```
    """

    def __init__(
        self,
        projection: PatchProjection,
        image_size: tuple[int, int] | None = None,
        rtol: float | None = None,
        num_channels: int = 3,
    ):
        super().__init__(projection, image_size, rtol, num_channels)
        self.dimension = self.num_features - self.rank
        self.basis = self.right_vectors[self.rank :].T.contiguous()
        if self.obstacle is not None:
            logger.warning(f"{self.obstacle} Samples will be zero.")

    def __repr__(self) -> str:
        rows, features = self.matrix.shape
        return (
            f"PatchNullspace(matrix={rows}x{features}, rank={self.rank}, dimension={self.dimension}, "
            f"tolerance={self.tolerance:.3g})"
        )

    # ---- The nullspace ----

    def project(self, pixel_noise: torch.Tensor) -> torch.Tensor:
        """
        The orthogonal projection of a noise onto the nullspace.

        Args:
            pixel_noise (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The noise.

        Returns:
            `torch.Tensor` of the same shape and dtype.
        """
        patches = self.to_patches(pixel_noise.double())
        basis = self.basis.to(patches.device)
        projected = patches @ basis @ basis.T
        return self.to_pixels(projected, tuple(pixel_noise.shape[2:])).to(pixel_noise.dtype)

    def sample(
        self,
        batch_size: int = 1,
        norm: float = 1.0,
        generator: torch.Generator | None = None,
        image_size: tuple[int, int] | None = None,
        num_patches: int | None = None,
    ) -> torch.Tensor:
        """
        Random noise in the nullspace, uniform in direction, every patch drawn independently.

        Args:
            batch_size (`int`, *optional*, defaults to 1): Number of noises.
            norm (`float`, *optional*, defaults to 1.0): Euclidean norm of each noise over the whole image.
            generator (`torch.Generator`, *optional*): A CPU generator. By default one with a fixed seed, so that the
                same call gives the same noise.
            image_size (`tuple[int, int]`, *optional*): `(height, width)` in pixels. Defaults to the model's.
            num_patches (`int`, *optional*): Instead of `image_size`, for a linear projection.

        Returns:
            `torch.Tensor` of shape `(batch_size, channels, height, width)` in float32; of shape `(batch_size,
            num_patches, features)` for a linear projection. Zero if the nullspace has dimension 0.

        Raises:
            `ValueError`: If `norm` is negative or not finite, or the image size is unknown.
        """
        if not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"`norm` must be a finite number of at least 0, but got {norm!r}.")
        if self.patch_size is None:
            if num_patches is None:
                raise ValueError(
                    f"The linear projection {self.projection_name!r} reads patches that are cut already. Pass "
                    "`num_patches`."
                )
        else:
            num_patches = self.num_patches(image_size)
        directions = self._directions(batch_size, num_patches, generator)
        lengths = directions.flatten(1).norm(dim=1).clamp_min(1e-30)
        return self.to_pixels((directions * (norm / lengths)[:, None, None]).float(), image_size)

    def _directions(self, batch_size: int, num_patches: int, generator: torch.Generator | None) -> torch.Tensor:
        generator = generator if generator is not None else keyed_generator("exact nullspace", 42)
        shape = (batch_size, num_patches, self.dimension)
        return torch.randn(shape, generator=generator, dtype=torch.float64) @ self.basis.T

    # ---- Inside the pixel box ----

    def sample_within(
        self,
        pixel_values: torch.Tensor,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        generator: torch.Generator | None = None,
        norm: float | None = None,
        slides: int | None = None,
    ) -> torch.Tensor:
        """
        Nullspace noise that keeps every pixel of the pictures in [0, 1], as large as the box allows.

        For every patch, the norm is maximised over the polytope that the nullspace and the pixel box have in common,
        from a random direction, up to a local maximum: a corner, where as many pixels as the nullspace has dimensions
        stand at 0 or 1. (The largest norm of all is NP-hard to find; [`~PatchNullspace.norm_bound`] limits it.) A patch
        whose pixels are black or white already has fewer ways to go, or none.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
                Normalised pictures, as the image processor gives them; `(batch_size, num_patches, features)` for a
                linear projection.
            image_mean, image_std (`Sequence[float]`):
                The image processor's, one value for each channel.
            generator (`torch.Generator`, *optional*):
                A CPU generator. By default one with a fixed seed, so that the same call gives the same noise.
            norm (`float`, *optional*):
                Euclidean norm that every noise shall have. By default as large as the search makes it.
            slides (`int`, *optional*):
                Most pixels of a patch that are driven to a bound. By default all that it takes to reach a corner.
                Fewer make a quicker search, whose time grows with their square, and smaller noise.

        Returns:
            `torch.Tensor` of the shape of `pixel_values`, in float32: noise to add to the normalised pictures.

        Raises:
            `ValueError`: If the pictures lie outside [0, 1], `image_mean` or `image_std` has another length than there
                are channels, or `norm` is larger than the box holds.
        """
        if slides is not None and slides < 1:
            raise ValueError(f"`slides` must be at least 1, but got {slides!r}.")
        lower, upper = self.pixel_box(pixel_values, image_mean, image_std)
        start = self._directions(len(lower), lower.shape[1], generator).float().to(lower.device)
        noise = self._in_box(fill_box, start, lower, upper, slides, pixel_values)
        if norm is not None:
            noise = self._at_norm(noise, norm, lower, upper)
        return noise

    def project_within(
        self,
        pixel_noise: torch.Tensor,
        pixel_values: torch.Tensor,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        slides: int | None = None,
    ) -> torch.Tensor:
        """
        Nullspace noise close to a wanted one that keeps every pixel of the pictures in [0, 1].

        The wanted noise is projected onto the polytope that the nullspace and the pixel box have in common; a walk
        towards that point, sliding along the bounds it meets, ends there or as near as it gets.

        Args:
            pixel_noise (`torch.Tensor` of the shape of `pixel_values`): The wanted change of the normalised pictures.
            pixel_values, image_mean, image_std, slides: As in [`~PatchNullspace.sample_within`].

        Returns:
            `torch.Tensor` of the same shape, in float32.
        """
        lower, upper = self.pixel_box(pixel_values, image_mean, image_std)
        target = self.to_patches(pixel_noise.float().to(lower.device))
        return self._in_box(approach, target, lower, upper, slides, pixel_values)

    def norm_bound(
        self, pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> torch.Tensor:
        """
        A norm that no nullspace noise inside the pixel box exceeds, for each picture, in normalised units.

        For each patch it is the farthest point of the ball around the box, cut by the nullspace. Reaching it would take
        every pixel at 0 or 1, and a corner has only as many there as the nullspace has dimensions, so it is not tight.

        Args:
            pixel_values, image_mean, image_std: As in [`~PatchNullspace.sample_within`].

        Returns:
            `torch.Tensor` of shape `(batch_size,)`.
        """
        return self._norm_bound(*self.pixel_box(pixel_values, image_mean, image_std))

    def _norm_bound(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        return norm_bound(lower, upper, self.basis).norm(dim=1)

    def _in_box(self, search, patches, lower, upper, slides, pixel_values) -> torch.Tensor:
        """Runs a search of `box_filling` over all patches and returns pixels."""
        slides = self.dimension if slides is None else slides
        noise = search(*(part.flatten(0, 1) for part in (patches, lower, upper)), self.basis, slides)
        return self.to_pixels(noise.view(lower.shape), tuple(pixel_values.shape[2:]))

    def _at_norm(self, noise: torch.Tensor, norm: float, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        norms = noise.flatten(1).norm(dim=1)
        if not 0 <= norm <= norms.min().item():
            index = int(norms.argmin())
            raise ValueError(
                f"No noise of norm {norm:.6g} fits into the pixel box of picture {index}: the largest that was found "
                f"has norm {norms[index].item():.6g} (normalised units), and none is larger than "
                f"{self._norm_bound(lower, upper)[index].item():.6g}. Ask for at most the former, raise `slides` if it "
                "is set, or leave `norm` out."
            )
        return noise * (norm / norms.clamp_min(1e-30)).view(-1, *[1] * (noise.dim() - 1))

    @property
    def obstacle(self) -> str | None:
        """Why the nullspace is zero, and what to use instead; `None` if it is not."""
        if self.dimension > 0:
            return None
        rows, features = self.matrix.shape
        return (
            f"The patch matrix of {self.projection_name!r} ({rows} x {features}, rank {self.rank}) has full column rank: "
            "its exact nullspace has dimension 0, and every change of the pixels reaches the encoder. Use the "
            "approximate nullspace of the encoder instead, with `synthesize_noise` or `NullspaceTrainer`."
        )
