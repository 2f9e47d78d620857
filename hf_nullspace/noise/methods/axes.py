"""Measures to which directions of the hidden axis an encoder is sensitive, and gives coordinates that avoid them."""

from __future__ import annotations

import torch


# Smallest sensitivity of a direction, as a share of the mean, since a few batches measure small values poorly.
FLOOR = 0.01


def hidden_moment(gradients: torch.Tensor) -> torch.Tensor:
    """
    Second moment of gradients over the hidden axis, summed over images and tokens.

    A noise has `num_patches * hidden_size` elements, far more than there are images to learn the covariance of its
    gradient from. Over the hidden axis alone every token of every image is a sample, so a few batches suffice.

    Args:
        gradients (`torch.Tensor` of shape `(num_images, num_patches, hidden_size)`): One gradient for each image.

    Returns:
        `torch.Tensor` of shape `(hidden_size, hidden_size)`.
    """
    rows = gradients.flatten(0, 1)
    return rows.T @ rows


def harmless_axes(moment: torch.Tensor) -> torch.Tensor:
    """
    The matrix `P` that makes noise `coordinates @ P` large only where gradients are small: the inverse of `moment`.

    Steps of equal size in such coordinates are about equally harmless in every direction, which steps in the noise
    itself are not. `P` is symmetric up to the removal of the hidden-axis mean from what it gives, and a function of the
    whole matrix and not of single eigenvectors, so that rounding hardly moves it.

    Args:
        moment (`torch.Tensor` of shape `(hidden_size, hidden_size)`): See [`hidden_moment`]; of any scale.

    Returns:
        `torch.Tensor` of shape `(hidden_size, hidden_size)`; only the mean is removed if all gradients were zero.
    """
    mean = moment.diagonal().mean()
    if not mean > 0:
        axes = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    else:
        values, vectors = torch.linalg.eigh(moment / mean)
        axes = vectors / (values.clamp_min(0.0) + FLOOR) @ vectors.T
    return axes - axes.mean(-1, keepdim=True)
