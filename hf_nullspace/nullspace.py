"""The exact nullspace of a patch projection: pixel noise that a model cannot see, and the way back from embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils import logging

from .patch_embedding import PatchProjection, find_patch_projection
from .randomness import keyed_generator


logger = logging.get_logger(__name__)

# Rounding that a picture may have gone through on its way into normalised float32 pixels.
PIXEL_TOLERANCE = 1e-4
# Distance to the bounds of a pixel that is left for the rounding of `pixel * std + mean`.
PIXEL_MARGIN = 1e-6
# The point that a random walk inside the box heads for, as a multiple of the box's half diagonal.
REACH = 2.0
# Rounds of operator splitting that pull that point towards the box, and patches that are worked on at a time.
SPLITTING_STEPS, PATCHES_AT_A_TIME = 40, 64


class PatchNullspace:
    """
    The pixel noise that a patch projection maps to zero.

    Non-overlapping patches are each multiplied by one matrix `W` of shape `(hidden_size, channels * patch_height *
    patch_width)`. Where `W` has more columns than its rank, whatever lies in its nullspace can be added to every patch,
    independently, and neither the patch embeddings nor the logits move. It belongs to the weights as they are now: once
    training changes the projection, build it again. The singular value decomposition is taken
    jointly over the channels, in float64; channel by channel, most of the nullspace would be missed.

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

    Attributes:
        matrix (`torch.Tensor` of shape `(hidden_size, features)`): `W` in float64 on the CPU, where `features` is
            `channels * patch_height * patch_width`.
        rank (`int`): Its rank.
        dimension (`int`): `features - rank`, for each patch.
        tolerance (`float`): Singular values up to this one count as zero.
        basis (`torch.Tensor` of shape `(features, dimension)`): Orthonormal basis of the nullspace, float64.
        projection_name (`str`): Name of the projection inside the model.
        patch_size (`tuple[int, int]` or `None`): `(height, width)` in pixels; `None` for a linear projection.
        num_channels (`int` or `None`): Channels of an image; `None` for a linear projection.

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
        self, projection: PatchProjection, image_size: tuple[int, int] | None = None, rtol: float | None = None
    ):
        if not projection.is_exact:
            raise ValueError(
                f"There is no exact nullspace per patch: {projection.obstacle}, so no matrix maps each patch by itself. "
                "Use `synthesize_noise`, whose approximate nullspace works for every model."
            )
        if rtol is not None and not rtol >= 0:
            raise ValueError(f"`rtol` must be at least 0, but got {rtol!r}.")
        weight = projection.module.weight
        self.projection_name = projection.name
        self.patch_size = projection.patch_size
        # Only the matrix is kept: samples belong to the weights of now, and workers get no module.
        self.num_channels = projection.module.in_channels if self.patch_size else None
        self.image_size = image_size
        self.matrix = projection.matrix().to("cpu", torch.float64)
        left, singular_values, right = torch.linalg.svd(self.matrix, full_matrices=True)
        if rtol is None:
            rtol = max(self.matrix.shape) * min(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps)
        self.tolerance = rtol * singular_values.max().item()
        self.rank = int((singular_values > self.tolerance).sum())
        self.dimension = self.matrix.shape[1] - self.rank
        self.basis = right[self.rank :].T.contiguous()
        rows = right[: self.rank]
        self._projector = torch.eye(self.matrix.shape[1], dtype=torch.float64) - rows.T @ rows
        self._pseudo_inverse = (rows.T / singular_values[: self.rank]) @ left[:, : self.rank].T
        if self.dimension == 0:
            logger.warning(f"{self._no_nullspace()} Samples will be zero.")

    @classmethod
    def from_model(
        cls, model: nn.Module, rtol: float | None = None, patch_projection: str | None = None
    ) -> PatchNullspace:
        """
        The exact nullspace of a classifier's patch projection.

        Args:
            model (`nn.Module`): The classifier, unwrapped.
            rtol (`float`, *optional*): See [`PatchNullspace`].
            patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.

        Raises:
            `ValueError`: If the model has no patch projection, or its patches overlap.
        """
        config = getattr(model, "config", None)
        size = getattr(getattr(config, "vision_config", config), "image_size", None)
        size = (size, size) if isinstance(size, int) else size
        return cls(find_patch_projection(model, patch_projection), tuple(size) if size else None, rtol)

    def __repr__(self) -> str:
        rows, features = self.matrix.shape
        return (
            f"PatchNullspace(matrix={rows}x{features}, rank={self.rank}, dimension={self.dimension}, "
            f"tolerance={self.tolerance:.3g})"
        )

    # ---- Patches ----

    def to_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        Cuts pixels of shape `(batch_size, channels, height, width)` into `(batch_size, num_patches, features)`.

        For a linear projection, which reads patches that are cut already, they come back as they are.
        """
        if self.patch_size is None:
            if pixels.dim() != 3 or pixels.shape[2] != self.matrix.shape[1]:
                raise ValueError(
                    f"The linear projection {self.projection_name!r} reads patches of shape (batch_size, num_patches, "
                    f"{self.matrix.shape[1]}), but got {tuple(pixels.shape)}."
                )
            return pixels
        height, width = self.patch_size
        channels = self.num_channels
        if pixels.dim() != 4 or pixels.shape[1] != channels or pixels.shape[2] < height or pixels.shape[3] < width:
            raise ValueError(
                f"Pixels must have shape (batch_size, {channels}, height, width) with at least one patch of {height} x "
                f"{width}, but got {tuple(pixels.shape)}."
            )
        return nn.functional.unfold(pixels, (height, width), stride=(height, width)).transpose(1, 2)

    def to_pixels(self, patches: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        Inverse of [`~PatchNullspace.to_patches`].

        Args:
            patches (`torch.Tensor` of shape `(batch_size, num_patches, features)`): The patches, row by row.
            image_size (`tuple[int, int]`, *optional*): `(height, width)` of the images. Defaults to the model's.

        Raises:
            `ValueError`: If there are not as many patches as the image size has.
        """
        if self.patch_size is None:
            return patches
        size = self._size(image_size)
        num_patches = math.prod(self._grid(size))
        if patches.shape[1] != num_patches:
            raise ValueError(
                f"Got {patches.shape[1]} patches, but an image of {size[0]} x {size[1]} pixels has {num_patches}. Pass "
                "the `image_size` that they belong to."
            )
        return nn.functional.fold(patches.transpose(1, 2), size, self.patch_size, stride=self.patch_size)

    def _size(self, image_size: tuple[int, int] | None) -> tuple[int, int]:
        size = image_size or self.image_size
        if size is None:
            raise ValueError("The model's config has no `image_size`. Pass `image_size=(height, width)`, in pixels.")
        return size

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    # ---- The nullspace ----

    def project(self, pixel_noise: torch.Tensor) -> torch.Tensor:
        """
        The nullspace part of a noise: what is left after removing all that the projection sees.

        Args:
            pixel_noise (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The noise.

        Returns:
            `torch.Tensor` of the same shape and dtype.
        """
        patches = self.to_patches(pixel_noise.double())
        projected = patches @ self._projector.to(patches.device)
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
            num_patches, features)` for a linear projection. Zero if the nullspace is.

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
            num_patches = math.prod(self._grid(self._size(image_size)))
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
        slides: int = 128,
    ) -> torch.Tensor:
        """
        Nullspace noise that keeps every pixel of the pictures in [0, 1], as large as the box allows.

        For every patch, a random nullspace direction is scaled to twice the half diagonal of the pixel box and pulled
        towards the box by operator splitting. From the clean patch, a walk then goes that way until a pixel reaches its
        bound, slides along that bound until the next one does, and so on: it never leaves the nullspace and never
        leaves the box. Each slide fixes one pixel, and a walk ends after `slides` of them, or when as many are fixed as
        nine tenths of the nullspace's dimensions: with all of them it would stand in a corner. A patch whose pixels are black or white
        already has fewer ways to go, or none.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
                Normalised pictures, as the image processor gives them.
            image_mean, image_std (`Sequence[float]`):
                The image processor's, one value for each channel.
            generator (`torch.Generator`, *optional*):
                A CPU generator. By default one with a fixed seed, so that the same call gives the same noise.
            norm (`float`, *optional*):
                Euclidean norm that every noise shall have. By default as large as the walk makes it.
            slides (`int`, *optional*, defaults to 128):
                Most pixels of a patch that are fixed at a bound. Time grows with its square.

        Returns:
            `torch.Tensor` of the shape of `pixel_values`, in float32: noise to add to the normalised pictures.

        Raises:
            `ValueError`: If the pictures lie outside [0, 1], `image_mean` or `image_std` has another length than there
                are channels, or `norm` is larger than the box holds.
        """
        if slides < 1:
            raise ValueError(f"`slides` must be at least 1, but got {slides!r}.")
        lower, upper = self.pixel_box(pixel_values, image_mean, image_std)
        target = self._directions(len(lower), lower.shape[1], generator).float().to(lower.device)
        half_diagonal = (upper - lower).norm(dim=-1, keepdim=True) / 2
        target = target / target.norm(dim=-1, keepdim=True).clamp_min(1e-30) * REACH * half_diagonal
        noise = self._walk(target, lower, upper, slides, extend=True)
        noise = self.to_pixels(noise, tuple(pixel_values.shape[2:]))
        return noise if norm is None else self._at_norm(noise, norm)

    def project_within(
        self,
        pixel_noise: torch.Tensor,
        pixel_values: torch.Tensor,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        slides: int = 128,
    ) -> torch.Tensor:
        """
        Nullspace noise close to a wanted one that keeps every pixel of the pictures in [0, 1].

        The method is that of [`~PatchNullspace.sample_within`], with the wanted noise as the point that the walk heads
        for, and where it stops.

        Args:
            pixel_noise (`torch.Tensor` of the shape of `pixel_values`): The wanted change of the normalised pictures.
            pixel_values, image_mean, image_std, slides: As in [`~PatchNullspace.sample_within`].

        Returns:
            `torch.Tensor` of the same shape, in float32.
        """
        lower, upper = self.pixel_box(pixel_values, image_mean, image_std)
        target = self.to_patches(pixel_noise.float().to(lower.device))
        noise = self._walk(target, lower, upper, slides, extend=False)
        return self.to_pixels(noise, tuple(pixel_values.shape[2:]))

    def pixel_box(
        self, pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        How far each pixel may go down and up, in normalised units.

        Returns:
            Two `torch.Tensor` of shape `(batch_size, num_patches, features)` in float32, the first at most 0 and the
            second at least 0.

        Raises:
            `ValueError`: If the pictures lie outside [0, 1], or a mean or standard deviation is missing or invalid.
        """
        if self.patch_size is None:
            raise ValueError(
                f"{self.projection_name!r} is a linear projection of patches that are cut already, in an order of its "
                "own, so the channel of a feature is unknown. Use `sample` and `project`."
            )
        mean, std = normalization(image_mean, image_std, pixel_values)
        pixels = pixel_values.double() * std + mean
        low, high = pixels.min().item(), pixels.max().item()
        if not (low >= -PIXEL_TOLERANCE and high <= 1 + PIXEL_TOLERANCE):
            raise ValueError(
                f"The pictures have pixels from {low:.4g} to {high:.4g} after undoing mean {list(image_mean)} and "
                f"standard deviation {list(image_std)}, but must lie in [0, 1]. Pass normalised `pixel_values` with "
                "the mean and standard deviation that they were normalised with."
            )
        lower = -((pixels - PIXEL_MARGIN).clamp_min(0) / std)
        upper = (1 - PIXEL_MARGIN - pixels).clamp_min(0) / std
        return self.to_patches(lower).float(), self.to_patches(upper).float()

    def _walk(
        self, target: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, slides: int, extend: bool
    ) -> torch.Tensor:
        """A walk from 0 towards each `target` inside the nullspace and the box; see `sample_within`."""
        shape = target.shape
        projector = self._projector.to(target.device, torch.float32)
        # The last directions that are left are the difference of nearly equal numbers, and would leave the nullspace.
        steps = min(slides, math.ceil(0.9 * self.dimension))
        if steps == 0:
            return torch.zeros_like(target)
        patches = zip(*(part.flatten(0, 1).split(PATCHES_AT_A_TIME) for part in (target, lower, upper)), strict=True)
        walked = [_slide(_pull(*patch, projector), *patch[1:], projector, steps, extend) for patch in patches]
        return torch.cat(walked).view(shape)

    def _at_norm(self, noise: torch.Tensor, norm: float) -> torch.Tensor:
        norms = noise.flatten(1).norm(dim=1)
        if not 0 <= norm <= norms.min().item():
            index = int(norms.argmin())
            raise ValueError(
                f"No noise of norm {norm:.6g} fits into the pixel box of picture {index}: the largest that was found "
                f"has norm {norms[index].item():.6g} (normalised units). Ask for at most that, raise `slides`, or "
                "leave `norm` out."
            )
        return noise * (norm / norms.clamp_min(1e-30)).view(-1, 1, 1, 1)

    # ---- From embeddings back to pixels ----

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
        patches = noise @ self._pseudo_inverse.to(noise.device).T
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
        matrix, inverse = self.matrix.to(lower), self._pseudo_inverse.to(lower)
        step = 1 / torch.linalg.matrix_norm(self.matrix, 2).item() ** 2
        patches = (noise @ inverse.T).clamp(lower, upper)
        ahead, momentum = patches, 1.0
        for _ in range(max_steps):
            following = (ahead - step * (ahead @ matrix.T - noise) @ matrix).clamp(lower, upper)
            momentum, last = (1 + math.sqrt(1 + 4 * momentum**2)) / 2, momentum
            ahead = following + (last - 1) / momentum * (following - patches)
            patches = following
        residual = self._residual(patches.double(), noise.double()).float()
        return self.to_pixels(patches, tuple(pixel_values.shape[2:])), residual

    def _residual(self, patches: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        missing = (patches @ self.matrix.to(patches.device).T - noise).flatten(1).norm(dim=1)
        return missing / noise.flatten(1).norm(dim=1).clamp_min(1e-30)

    def _check_embedding_noise(self, noise: torch.Tensor) -> None:
        if noise.dim() != 3 or noise.shape[2] != self.matrix.shape[0]:
            raise ValueError(
                f"Noise must have shape (noises, num_patches, {self.matrix.shape[0]}), but got {tuple(noise.shape)}."
            )

    def _no_nullspace(self) -> str:
        rows, features = self.matrix.shape
        return (
            f"The patch matrix of {self.projection_name!r} ({rows} x {features}, rank {self.rank}) has full column rank: "
            "its exact nullspace has dimension 0, and every change of the pixels reaches the encoder. Use the "
            "approximate nullspace of the encoder instead, with `synthesize_noise` or `NullspaceTrainer`."
        )


def normalization(
    image_mean: Sequence[float], image_std: Sequence[float], pixel_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and standard deviation in float64, of shape `(1, channels, 1, 1)`, on the device of the pictures.

    Raises:
        `ValueError`: If the pictures have no four dimensions, a length is not the number of channels, or a standard
            deviation is not positive.
    """
    if pixel_values.dim() != 4:
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, channels, height, width), but got {tuple(pixel_values.shape)}."
        )
    statistics = []
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        if len(values) != pixel_values.shape[1]:
            raise ValueError(
                f"`{name}` must have one value for each of the {pixel_values.shape[1]} channels, but has {len(values)}: "
                f"{list(values)}. Use `{name}` of the model's image processor."
            )
        statistics.append(torch.tensor(values, dtype=torch.float64, device=pixel_values.device).view(1, -1, 1, 1))
    if not (statistics[1] > 0).all():
        raise ValueError(f"Every value of `image_std` must be positive, but got {list(image_std)}.")
    return statistics[0], statistics[1]


def _pull(target: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, projector: torch.Tensor) -> torch.Tensor:
    """
    Pulls targets towards their nearest point in both the nullspace and the box, by splitting (ADMM).

    All of shape `(patches, features)`. The result lies in the nullspace, and only nearly in the box.
    """
    inside, multiplier = torch.zeros_like(target), torch.zeros_like(target)
    for _ in range(SPLITTING_STEPS):
        point = (target + inside - multiplier) @ projector / 2
        inside = (point + multiplier).clamp(lower, upper)
        multiplier = multiplier + point - inside
    return (target + inside - multiplier) @ projector / 2


def _slide(
    target: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    projector: torch.Tensor,
    steps: int,
    extend: bool,
) -> torch.Tensor:
    """
    Walks from 0 towards each target, sliding along the bounds that it meets.

    Args:
        target, lower, upper (`torch.Tensor` of shape `(patches, features)`): Targets in the nullspace, and the box.
        projector (`torch.Tensor` of shape `(features, features)`): Onto the nullspace.
        steps (`int`): Bounds that a walk may meet.
        extend (`bool`): Whether to go on beyond the target, until the last bound.

    Returns:
        `torch.Tensor` of shape `(patches, features)`, in the nullspace up to rounding and in the box exactly.
    """
    rows = torch.arange(len(target), device=target.device)
    noise, direction = torch.zeros_like(target), target
    pinned = torch.zeros_like(target, dtype=torch.bool)
    # Orthonormal directions of the nullspace that the pinned pixels forbid: Gram-Schmidt on the projector's columns.
    forbidden = target.new_zeros(len(target), steps, target.shape[1])
    still = 1e-5 * target.abs().amax(1)
    for step in range(steps):
        direction = direction.masked_fill(pinned, 0.0)
        bounds = torch.where(direction > 0, upper, lower)
        length, pixel = torch.where(direction == 0, torch.inf, (bounds - noise) / direction).min(1)
        moves = direction.abs().amax(1) > still
        length = torch.where(moves, length.clamp_min(0.0), 0.0)
        if not extend:
            # What is left to go is `direction` itself, so that a length of 1 arrives.
            moves, length = moves & (length < 1), length.clamp_max(1.0)
        noise = noise + length[:, None] * direction
        if not extend:
            direction = direction * (1 - length)[:, None]
        noise[rows, pixel] = torch.where(moves, bounds[rows, pixel], noise[rows, pixel])
        pinned[rows, pixel] |= moves
        column = projector[pixel]
        if step:
            shares = forbidden[:, :step].gather(2, pixel[:, None, None].expand(-1, step, 1))
            column = column - torch.bmm(shares.transpose(1, 2), forbidden[:, :step])[:, 0]
        size = column.norm(dim=1, keepdim=True)
        column = torch.where((size > 1e-5) & moves[:, None], column / size.clamp_min(1e-30), 0.0)
        forbidden[:, step] = column
        direction = direction - (direction * column).sum(1, keepdim=True) * column
    return noise.clamp(lower, upper)
