"""Converts between pixels of images and the patches that a projection reads."""

from __future__ import annotations

import torch
from torch import nn

from ..models.patch_projection import PatchProjection


class PatchGrid:
    """
    Cuts images into non-overlapping patches, in the order of features that the projection's matrix has, and back.

    Args:
        projection ([`PatchProjection`]): The projection; a linear one reads patches that are cut already.
        image_size (`tuple[int, int]`, *optional*): `(height, width)` in pixels of images whose size is not given.
        num_channels (`int`, *optional*, defaults to 3): Channels of an image, for a linear projection; a convolution
            says how many it reads.

    Raises:
        `ValueError`: If a linear projection's features cannot have so many channels.
    """

    def __init__(self, projection: PatchProjection, image_size: tuple[int, int] | None = None, num_channels: int = 3):
        self.projection_name = projection.name
        self.patch_size = projection.patch_size
        self.image_size = image_size
        self.num_features = projection.module.weight[0].numel()
        self.num_channels = projection.module.in_channels if self.patch_size else num_channels
        if self.num_features % self.num_channels:
            raise ValueError(
                f"The linear projection {projection.name!r} reads {self.num_features} features, which are no patches "
                f"of {num_channels} channels. Pass the `num_channels` of an image."
            )

    def to_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        Cuts pixels of shape `(batch_size, channels, height, width)` into `(batch_size, num_patches, features)`.

        For a linear projection, whose input is already cut into patches, it is returned unchanged.
        """
        if self.patch_size is None:
            if pixels.dim() != 3 or pixels.shape[2] != self.num_features:
                raise ValueError(
                    f"The linear projection {self.projection_name!r} reads patches of shape (batch_size, num_patches, "
                    f"{self.num_features}), but got {tuple(pixels.shape)}."
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
        Inverse of [`~PatchGrid.to_patches`].

        Args:
            patches (`torch.Tensor` of shape `(batch_size, num_patches, features)`): The patches, row by row.
            image_size (`tuple[int, int]`, *optional*): `(height, width)` of the images. Defaults to the model's.

        Raises:
            `ValueError`: If there are not as many patches as the image size has.
        """
        if self.patch_size is None:
            return patches
        size = self._size(image_size)
        num_patches = self.num_patches(size)
        if patches.shape[1] != num_patches:
            raise ValueError(
                f"Got {patches.shape[1]} patches, but an image of {size[0]} x {size[1]} pixels has {num_patches}. Pass "
                "the `image_size` that they belong to."
            )
        return nn.functional.fold(patches.transpose(1, 2), size, self.patch_size, stride=self.patch_size)

    def num_patches(self, image_size: tuple[int, int] | None = None) -> int:
        """Number of patches of an image; pixels beyond the last whole patch are ignored."""
        if self.patch_size is None:
            raise ValueError(f"The projection {self.projection_name!r} is linear: images come to it as patches.")
        height, width = self._size(image_size)
        patch_height, patch_width = self.patch_size
        return (height // patch_height) * (width // patch_width)

    def _size(self, image_size: tuple[int, int] | None) -> tuple[int, int]:
        size = image_size or self.image_size
        if size is None:
            raise ValueError("The model's config has no `image_size`. Pass `image_size=(height, width)`, in pixels.")
        return size
