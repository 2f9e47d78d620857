"""The one place where noise enters a model: a gated forward hook behind the patch projection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .patch_embedding import PatchProjection, find_patch_projection


def add_noise(activation: torch.Tensor, noise: torch.Tensor, clean_rows: int = 0) -> torch.Tensor:
    """
    Adds noise to patch embeddings in whichever layout the model keeps them.

    Args:
        activation (`torch.Tensor` of shape `(batch_size, hidden_size, height, width)` or
            `(batch_size, num_patches, hidden_size)`): Output of the patch projection.
        noise (`torch.Tensor` of shape `(1 or batch_size - clean_rows, num_patches, hidden_size)`): The noise; cast to
            the activation's device and dtype.
        clean_rows (`int`, *optional*, defaults to 0): Leading images that stay as they are.

    Raises:
        `ValueError`: If the shapes do not fit; the message holds both.
    """
    expected = tokens_shape(activation)
    num_noisy = activation.shape[0] - clean_rows
    if tuple(noise.shape[1:]) != expected or noise.shape[0] not in (1, num_noisy):
        raise ValueError(
            f"Noise of shape {tuple(noise.shape)} does not fit patch embeddings of shape {tuple(activation.shape)}: "
            f"expected {(1, *expected)} or {(num_noisy, *expected)}, that is (noises, num_patches, hidden_size). Use "
            "the image size that the noise was synthesised for, or synthesise a new one."
        )
    noise = noise.to(activation.device, activation.dtype)
    if activation.dim() == 4:
        noise = noise.transpose(1, 2).unflatten(2, activation.shape[2:])
    if clean_rows:
        return torch.cat([activation[:clean_rows], activation[clean_rows:] + noise])
    return activation + noise


def tokens_shape(activation: torch.Tensor) -> tuple[int, int]:
    """`(num_patches, hidden_size)` of the patch embeddings `activation`, in either layout."""
    if activation.dim() == 4:
        return activation.shape[2] * activation.shape[3], activation.shape[1]
    if activation.dim() == 3:
        return activation.shape[1], activation.shape[2]
    raise ValueError(f"Patch embeddings must have 3 or 4 dimensions, but got shape {tuple(activation.shape)}.")


class NoiseInjector:
    """
    A forward hook on the patch projection that adds noise while its gate is open and does nothing while it is shut.

    It is registered once, when it is built: torch.compile ignores hooks that appear after the first compiled call, and
    wrapping modules would change the keys of the state dict. Two injectors on one model do not know of each other, so
    [`NoiseInjector.attach`] hands back the one that is already there.

    Args:
        projection ([`PatchProjection`]): Where to add the noise.
    """

    def __init__(self, projection: PatchProjection):
        self.projection = projection
        self.noise: torch.Tensor | None = None
        self.clean_rows = 0
        self.is_twofold = False
        self._handles = [
            projection.module.register_forward_pre_hook(self._halve),
            projection.module.register_forward_hook(self),
        ]

    @classmethod
    def attach(cls, model: nn.Module, patch_projection: str | None = None) -> NoiseInjector:
        """The injector of `model`, built on first use."""
        projection = find_patch_projection(model, patch_projection)
        for hook in projection.module._forward_hooks.values():
            if isinstance(hook, cls):
                return hook
        return cls(projection)

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if self.noise is None:
            return output
        if self.is_twofold:
            return torch.cat([output, add_noise(output, self.noise)])
        return add_noise(output, self.noise, self.clean_rows)

    def _halve(self, module: nn.Module, args: tuple) -> tuple:
        """Of a batch that holds every image twice, the projection need see each image only once."""
        if self.noise is None or not self.is_twofold:
            return args
        return args[0].chunk(2)[0], *args[1:]

    @contextmanager
    def inject(self, noise: torch.Tensor, clean_rows: int = 0, is_twofold: bool = False) -> Iterator[None]:
        """
        Opens the gate for the forward passes inside the `with` block.

        Args:
            noise (`torch.Tensor`): As in [`add_noise`].
            clean_rows (`int`, *optional*, defaults to 0): As in [`add_noise`].
            is_twofold (`bool`, *optional*, defaults to `False`): The batch is some images followed by the same images
                again; the second half gets the noise, and both share one pass through the projection.
        """
        outer = self.noise, self.clean_rows, self.is_twofold
        self.noise, self.clean_rows, self.is_twofold = noise, clean_rows, is_twofold
        try:
            yield
        finally:
            self.noise, self.clean_rows, self.is_twofold = outer

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def inject_noise(model: nn.Module, noise: torch.Tensor, patch_projection: str | None = None) -> Iterator[nn.Module]:
    """
    Lets any code see `model` under `noise`.

    Args:
        model (`nn.Module`): Any classifier with a patch projection.
        noise (`torch.Tensor` of shape `(1 or batch_size, num_patches, hidden_size)`): The noise, in units of the patch
            embeddings.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.

    Raises:
        `ValueError`: If the model has no patch projection, or the noise does not fit it.

    Example:

    ```python
    >>> with inject_noise(model, noise.tensor):  # doctest: +SKIP
    ...     logits = model(pixel_values).logits
    ```
    """
    injector = NoiseInjector.attach(model, patch_projection)
    with injector.inject(noise):
        yield model
