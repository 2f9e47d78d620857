"""Controls of a noise: of the same norm, but in no direction that was searched for."""

from __future__ import annotations

import torch

from .certificate import remove_hidden_mean


def permute_elements(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    All elements of `noise` in a random order: same norm, direction destroyed (paper, figure 2).

    Args:
        noise (`torch.Tensor`): Noise of any shape.
        generator (`torch.Generator`): A CPU generator.
    """
    return noise.flatten()[torch.randperm(noise.numel(), generator=generator).to(noise.device)].view_as(noise)


def permuted_control(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    The elements of each noise in a random order, the same for all of them: same norm, direction destroyed (paper,
    figure 2, and "random" of its ablation).

    A permutation brings back a mean over the hidden axis, which moves no logit in a pre-norm encoder. It is removed,
    and what is left is scaled up to the norm of the noise, so that no part of that norm is spent on nothing.

    Args:
        noise (`torch.Tensor` of shape `(noises, num_patches, hidden_size)`): The noises, in units of the patch embeddings.
        generator (`torch.Generator`): A CPU generator.

    Returns:
        `torch.Tensor` of the same shape.
    """
    order = torch.randperm(noise[0].numel(), generator=generator).to(noise.device)
    return _with_norms_of(noise, noise.flatten(1)[:, order].view_as(noise))


def gaussian_control(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Gaussian noise of the norm of each noise, hidden-axis mean removed; see [`permuted_control`].

    The permuted noise keeps how the elements are distributed, this one nothing but the norm.
    """
    return _with_norms_of(noise, torch.randn(noise.shape, generator=generator).to(noise))


def _with_norms_of(noise: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
    control = remove_hidden_mean(control.double())
    norms, own_norms = (each.double().flatten(1).norm(dim=1) for each in (noise, control))
    scales = norms / own_norms.clamp_min(torch.finfo(torch.float64).tiny)
    return (control * scales.view(-1, 1, 1)).to(noise.dtype)
