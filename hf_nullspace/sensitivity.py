"""To which directions of the hidden axis an encoder is sensitive, and a direction turned away from them."""

from __future__ import annotations

import torch


# Least sensitivity of a direction, as a share of the mean: what a few batches measure as nothing is measured badly.
FLOOR = 0.1


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


def insensitive(direction: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """
    Divides each eigendirection of `moment` in `direction` by its eigenvalue: little is left where gradients are large.

    Args:
        direction (`torch.Tensor` of shape `(..., hidden_size)`): Any direction, a random one for example.
        moment (`torch.Tensor` of shape `(hidden_size, hidden_size)`): See [`hidden_moment`]; of any scale.

    Returns:
        `torch.Tensor` of the shape of `direction`, which comes back as it is if all gradients were zero.
    """
    mean = moment.diagonal().mean()
    if not mean > 0:
        return direction
    # A function of the matrix and not of its single eigenvectors, so rounding hardly moves it.
    values, vectors = torch.linalg.eigh(moment / mean)
    return direction @ vectors / (values.clamp_min(0.0) + FLOOR) @ vectors.T
