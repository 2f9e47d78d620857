"""Noise of the patch embeddings in the pixels of training images: real pictures whose embeddings are that noisy."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..exact_nullspace.patch_matrix import PatchMatrix
from .images import image_statistics


# Of the search for pixels: on a ViT-S/14, 50 come within a tenth of what 200 reach, 5 make more harm than the noise.
MAX_STEPS = 50


class NoisyPictures:
    """
    Adds noise to pictures in place of their patch embeddings, inside [0, 1]; what does not fit into the box is lost.

    Without the box nothing would change: any noise has pixels that give exactly its embedding if the projection has full
    row rank, and the forward pass is then that of noise on the embeddings.

    Args:
        model (`nn.Module`): The classifier.
        processing_class ([`~transformers.BaseImageProcessor`]): The image processor that normalises the pictures.
        patch_projection (`str`, *optional*): Name of the projection module where the rule does not find it.

    Raises:
        `TypeError`: If `processing_class` is no image processor.
        `ValueError`: If its normalisation does not fit the model, or the patches of the model overlap.
    """

    def __init__(self, model: nn.Module, processing_class: Any, patch_projection: str | None = None):
        self.image_mean, self.image_std = image_statistics(model, processing_class, "Noise in pictures is")
        self.patch_projection = patch_projection
        self._matrix(model)  # refuses overlapping patches before any training

    @torch.no_grad()
    def make(self, model: nn.Module, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        The pictures with noise, for the weights of now.

        Args:
            model (`nn.Module`): The classifier, unwrapped.
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised pictures.
            noise (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`): The noise of each.

        Returns:
            `torch.Tensor` of the shape and dtype of `pixel_values`.

        Raises:
            `ValueError`: If the pictures lie outside [0, 1] before they are normalised.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            images = pixel_values.float()
            change, _ = self._matrix(model).realize_within(
                noise.float(), images, self.image_mean, self.image_std, MAX_STEPS
            )
            return (images + change).to(pixel_values.dtype)

    def _matrix(self, model: nn.Module) -> PatchMatrix:
        return PatchMatrix.from_model(model, patch_projection=self.patch_projection)
