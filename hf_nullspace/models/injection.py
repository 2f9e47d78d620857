"""Hooks that add noise to a model's patch embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import is_compiled_module
from torch import nn

from .patch_projection import PatchProjection, find_patch_projection


def add_noise(activation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """
    Adds noise to patch embeddings in whichever layout the model keeps them.

    Args:
        activation (`torch.Tensor` of shape `(batch_size, hidden_size, height, width)` or
            `(batch_size, num_patches, hidden_size)`): Output of the patch projection.
        noise (`torch.Tensor` of shape `(1 or batch_size, num_patches, hidden_size)`): The noise; cast to
            the activation's device and dtype.

    Raises:
        `ValueError`: If the shapes do not fit; the message holds both.
    """
    expected = tokens_shape(activation)
    batch_size = activation.shape[0]
    if tuple(noise.shape[1:]) != expected or noise.shape[0] not in (1, batch_size):
        raise ValueError(
            f"Noise of shape {tuple(noise.shape)} does not fit patch embeddings of shape {tuple(activation.shape)}: "
            f"expected {(1, *expected)} or {(batch_size, *expected)}, that is (noises, num_patches, hidden_size). Use "
            "the image size that the noise was synthesised for, synthesise a new one, or resize it to the grid of these "
            "patches with `inject_noise(..., resize=True)`."
        )
    noise = noise.to(activation.device, activation.dtype)
    if activation.dim() == 4:
        noise = noise.transpose(1, 2).unflatten(2, activation.shape[2:])
    return activation + noise


def tokens_shape(activation: torch.Tensor) -> tuple[int, int]:
    """`(num_patches, hidden_size)` of the patch embeddings `activation`, in either layout."""
    if activation.dim() == 4:
        return activation.shape[2] * activation.shape[3], activation.shape[1]
    if activation.dim() == 3:
        return activation.shape[1], activation.shape[2]
    raise ValueError(f"Patch embeddings must have 3 or 4 dimensions, but got shape {tuple(activation.shape)}.")


def grid_of(activation: torch.Tensor) -> tuple[int, int] | None:
    """`(rows, columns)` of the patch grid of the patch embeddings `activation`; `None` if they are a sequence."""
    return tuple(activation.shape[2:]) if activation.dim() == 4 else None


def check_noise_tensor(noise: torch.Tensor) -> torch.Tensor:
    """
    Raises:
        `TypeError`: If `noise` is no tensor.
        `ValueError`: If it has no shape `(noises, num_patches, hidden_size)`, is no floating-point or not finite.
    """
    if not isinstance(noise, torch.Tensor):
        raise TypeError(
            f"The noise must be a `NullspaceNoise` or a `torch.Tensor`, but got a `{type(noise).__name__}`."
            + (" Load it first: `NullspaceNoise.from_pretrained(...)`." if isinstance(noise, str) else "")
        )
    if noise.dim() != 3 or noise.numel() == 0 or not noise.is_floating_point():
        raise ValueError(
            "The noise must be floating-point numbers of shape (noises, num_patches, hidden_size), but got "
            f"{noise.dtype} of shape {tuple(noise.shape)}."
        )
    if not torch.isfinite(noise).all():
        raise ValueError("The noise holds NaN or infinite values.")
    return noise


def resize_noise(noise: torch.Tensor, grid: tuple[int, int], old_grid: tuple[int, int] | None = None) -> torch.Tensor:
    """
    Interpolates noise bicubically over the patch grid, as models interpolate their position embeddings.

    The hidden-axis mean stays zero where it is zero. A certificate does not carry over: measure the result with
    [`measure_noise`].

    Args:
        noise (`torch.Tensor` of shape `(noises, old_height * old_width, hidden_size)`): The noise, row by row.
        grid (`tuple[int, int]`): `(height, width)` of the new grid, in patches.
        old_grid (`tuple[int, int]`, *optional*): The grid of the noise. By default a square.

    Returns:
        `torch.Tensor` of shape `(noises, height * width, hidden_size)`; the noise itself if the grid is unchanged.

    Raises:
        `ValueError`: If the noise does not fit `old_grid`, or is not square and `old_grid` is not given.
    """
    check_noise_tensor(noise)
    for name, value in (("grid", grid), ("old_grid", old_grid or grid)):
        if len(tuple(value)) != 2 or not all(isinstance(side, int) and side > 0 for side in value):
            raise ValueError(f"`{name}` must be (rows, columns), two integers of at least 1, but got {value!r}.")
    side = math.isqrt(noise.shape[1])
    old_grid = old_grid or (side, side)
    if math.prod(old_grid) != noise.shape[1]:
        raise ValueError(
            f"Noise of shape {tuple(noise.shape)} is no grid of {old_grid[0]} x {old_grid[1]} patches. Pass the "
            "`(height, width)` in patches that it was synthesised for as `old_grid` of `resize_noise`."
        )
    if tuple(old_grid) == tuple(grid):
        return noise
    pixels = noise.transpose(1, 2).unflatten(2, tuple(old_grid))
    return nn.functional.interpolate(pixels, size=tuple(grid), mode="bicubic").flatten(2).transpose(1, 2)


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` has been applied to a model or to a part of it."""
    return any(is_compiled_module(module) or module._compiled_call_impl is not None for module in model.modules())


class NoiseInjector:
    """
    A forward hook on the patch projection that adds noise inside [`~NoiseInjector.inject`] and does nothing otherwise.

    It is registered once, when it is built: torch.compile ignores hooks that are added after the first compiled call,
    and wrapping modules would change the keys of the state dict. A model has one injector at most:
    [`NoiseInjector.attach`] returns the existing one.

    Args:
        projection ([`PatchProjection`]): Where to add the noise.
    """

    def __init__(self, projection: PatchProjection):
        self.projection = projection
        self.noise: torch.Tensor | None = None
        self.resize = False
        self.grid: tuple[int, int] | None = None
        self._handle = projection.module.register_forward_hook(self)

    @classmethod
    def attach(cls, model: nn.Module, patch_projection: str | None = None) -> NoiseInjector:
        """The injector of `model`, created on first use."""
        projection = find_patch_projection(model, patch_projection)
        for hook in projection.module._forward_hooks.values():
            if isinstance(hook, cls):
                return hook
        injector = cls(projection)
        if is_compiled(model):
            torch.compiler.reset()  # code that was compiled before ignores the hook
        return injector

    @classmethod
    @contextmanager
    def attached(cls, model: nn.Module, patch_projection: str | None = None) -> Iterator[NoiseInjector]:
        """Yields the injector of `model`. If it is new and the `with` block raises, its hooks are removed."""
        projection = find_patch_projection(model, patch_projection)
        is_new = not any(isinstance(hook, cls) for hook in projection.module._forward_hooks.values())
        injector = cls.attach(model, patch_projection)
        try:
            yield injector
        except BaseException:
            if is_new:
                injector.remove()
            raise

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if self.noise is None:
            return output
        noise = self.noise(len(output)) if callable(self.noise) else self.noise
        grid = grid_of(output)
        if self.resize:
            noise = self._resized(noise, output)
        elif self.grid and grid and self.grid != grid:
            raise ValueError(
                f"The noise is of a grid of {self.grid[0]} x {self.grid[1]} patches, but this image has one of {grid[0]} x "
                f"{grid[1]}. Use the image size that it was synthesised for, or `inject_noise(..., resize=True)`."
            )
        return add_noise(output, noise)

    def _resized(self, noise: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The noise on the grid of the patch embeddings `output`. By default its own grid is a square."""
        num_patches = tokens_shape(output)[0]
        grid = grid_of(output)
        if grid is None:
            if noise.shape[1] == num_patches:
                return noise
            raise ValueError(
                f"Noise of {noise.shape[1]} patches cannot be resized to {num_patches}: {self.projection.name!r} gives "
                "patches in a row, without their grid. Resize it yourself with `resize_noise`."
            )
        is_square = math.isqrt(noise.shape[1]) ** 2 == noise.shape[1]
        if self.grid is None and not (is_square and (noise.shape[1] != num_patches or grid[0] == grid[1])):
            raise ValueError(
                f"Noise of {noise.shape[1]} patches does not say their grid, which may be another than the image's {grid[0]} "
                f"x {grid[1]}. Pass `grid=(rows, columns)` of the noise to `inject_noise`, or a `NullspaceNoise`, which "
                "keeps it."
            )
        return resize_noise(noise, grid, self.grid)

    @contextmanager
    def inject(
        self,
        noise: torch.Tensor | Callable[[int], torch.Tensor],
        resize: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> Iterator[None]:
        """
        Adds the noise in all forward passes inside the `with` block.

        Args:
            noise (`torch.Tensor` or `Callable`): As in [`add_noise`], or a function from a number of images to it.
            resize, grid: As in [`inject_noise`].
        """
        outer = self.noise, self.resize, self.grid
        self.noise = noise
        self.resize = resize
        self.grid = grid
        try:
            yield
        finally:
            self.noise, self.resize, self.grid = outer

    def remove(self) -> None:
        """Removes the hook from the model."""
        self._handle.remove()
