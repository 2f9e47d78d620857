"""Which directions of the patch embeddings a frozen classifier's logits depend on, over images: noise goes elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .certificate import remove_hidden_mean
from .frozen import FrozenClassifier, FrozenImages


# Random mixtures of the logits whose gradients are taken on each batch.
PROBES = 2
# Share of the mean that is added to every sensitivity: an estimate of 0 means few images, not an invisible direction.
SHRINKAGE = 0.01
# Powers of the inverse mean square gradients of hidden directions and of token patterns that amplitudes follow. Larger
# ones gain more per norm, and put all noise into fewer directions and tokens.
HIDDEN_POWER, TOKEN_POWER = 1.0, 0.5


@dataclass(frozen=True)
class Sensitivity:
    """
    Coordinates of noise in which a step of size 1 is about equally harmless everywhere.

    The mean square of the logits' gradient is taken to be a Kronecker product, as in K-FAC and Shampoo: one factor over
    the tokens, one over the hidden axis. Its eigenvectors are the axes, and along each of them coordinates are scaled
    by an inverse power of its eigenvalue.

    Args:
        token_axes (`torch.Tensor` of shape `(num_patches, num_patches)`): Patterns over the tokens, as columns.
        hidden_axes (`torch.Tensor` of shape `(hidden_size, hidden_size)`): Directions of the hidden axis, as columns.
        amplitudes (`torch.Tensor` of shape `(num_patches, hidden_size)`): Noise per coordinate.
    """

    token_axes: torch.Tensor
    hidden_axes: torch.Tensor
    amplitudes: torch.Tensor

    def to_noise(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Noise of shape `(1, num_patches, hidden_size)`, without hidden-axis mean, from coordinates of that shape."""
        return remove_hidden_mean(self.token_axes @ (self.amplitudes * coordinates) @ self.hidden_axes.T)

    def random_start(self, generator: torch.Generator) -> torch.Tensor:
        """Random coordinates, of shape `(1, num_patches, hidden_size)`, larger where noise is more harmless."""
        draw = torch.randn(1, *self.amplitudes.shape, generator=generator)
        return draw.to(self.amplitudes.device) * self.amplitudes

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the coordinates, from that with respect to the noise."""
        return self.amplitudes * (self.token_axes.T @ remove_hidden_mean(gradient) @ self.hidden_axes)


def measure_sensitivity(classifier: FrozenClassifier, images: FrozenImages, generator: torch.Generator) -> Sensitivity:
    """
    Measures the sensitivity of the logits at no noise, from gradients of random mixtures of them.

    Args:
        classifier ([`FrozenClassifier`]): The model.
        images ([`FrozenImages`]): The images.
        generator (`torch.Generator`): A CPU generator that draws the mixtures.

    Raises:
        `ValueError`: If no gradient reaches the patch embeddings, or one is not finite.
    """
    tokens, hidden = images.tokens_shape
    sums = torch.zeros(tokens**2 + hidden**2, dtype=torch.float64, device=classifier.device)
    num_labels = images.clean_logits.shape[-1]
    for batch in images.batches():
        # One for all images of a batch, whichever process holds them, so that 1 process and 2 see the same.
        mixtures = torch.randn(PROBES, num_labels, generator=generator).to(classifier.device)
        if not len(batch):
            continue
        variable = torch.zeros(len(batch), tokens, hidden, device=classifier.device, requires_grad=True)
        logits = classifier.logits(batch.inputs, variable, batch.embeddings)
        for index, mixture in enumerate(mixtures):
            (gradient,) = torch.autograd.grad((logits * mixture).sum(), variable, retain_graph=index < PROBES - 1)
            gradient = remove_hidden_mean(gradient).float()
            over_tokens = torch.einsum("bnd,bmd->nm", gradient, gradient)
            over_hidden = torch.einsum("bnd,bne->de", gradient, gradient)
            sums += torch.cat([over_tokens.flatten(), over_hidden.flatten()])
    sums = classifier.sum_over_processes(sums).cpu()
    if not (torch.isfinite(sums).all() and sums.abs().max() > 0):
        raise ValueError(
            "The model's logits do not depend on its patch embeddings, or their gradients are not finite. Check that it "
            "is trained, or use float32."
        )
    token_axes, token_amplitudes = _axes(sums[: tokens**2].view(tokens, tokens), TOKEN_POWER)
    hidden_axes, hidden_amplitudes = _axes(sums[tokens**2 :].view(hidden, hidden), HIDDEN_POWER)
    amplitudes = token_amplitudes[:, None] * hidden_amplitudes
    parts = (token_axes, hidden_axes, amplitudes / amplitudes.square().mean().sqrt())
    return Sensitivity(*(part.float().to(classifier.device) for part in parts))


def _axes(squares: torch.Tensor, power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors, as columns, and the amplitude along each."""
    values, axes = torch.linalg.eigh(squares)
    mean = values.mean()
    return axes, (values.clamp_min(0) / mean + SHRINKAGE).pow(-power)
