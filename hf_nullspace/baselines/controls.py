"""Noises that a nullspace noise is compared with: of the same norm, but in no direction that was searched for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn

from ..models.frozen import frozen_classifier
from ..noise.certificate import remove_hidden_mean
from ..noise.certify import certify, permute_elements
from ..noise.draws import draw_in_axes
from ..noise.nullspace_noise import NullspaceNoise
from ..noise.synthesis import read_and_split
from ..training.trainer import NullspaceTrainer
from ..utils.random import keyed_generator
from .nullspace import NULLSPACE
from .way import Way


# From one noise and a generator to its control, of the same shape.
Control = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def permuted_control(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    The elements of `noise` in a random order: same norm, direction destroyed (paper, "random" of its ablation).

    A permutation brings back a mean over the hidden axis, which moves no logit in a pre-norm encoder. It is removed,
    and what is left is scaled up to the norm of `noise`, so that no part of that norm is spent on nothing.

    Args:
        noise (`torch.Tensor` of shape `(1, num_patches, hidden_size)`): The noise, hidden-axis mean removed.
        generator (`torch.Generator`): A CPU generator.

    Returns:
        `torch.Tensor` of the same shape.
    """
    return _with_norm_of(noise, permute_elements(noise, generator))


def gaussian_control(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Gaussian noise of the norm of `noise`, hidden-axis mean removed; see [`permuted_control`].

    The permuted noise keeps how the elements are distributed, this one nothing but the norm.
    """
    return _with_norm_of(noise, torch.randn(noise.shape, generator=generator).to(noise))


def make_control(
    control: Control,
    name: str,
    noise: NullspaceNoise,
    model: nn.Module,
    dataloader: Iterable[dict[str, torch.Tensor]],
    *,
    accelerator: Accelerator | None = None,
    patch_projection: str | None = None,
) -> NullspaceNoise:
    """
    The control of every noise of a bank, each with a certificate of its own.

    Where every image gets a noise of its own, so does it by the control: draws of the same norm in any direction, which
    is what a permutation of each draw's elements would leave, and Gaussian noise; both controls are one there. It is
    measured on the images that the certificates of `noise` come from, so that both can be compared; `steps` and
    `seconds` are those of `noise`, which it costs. As a rule none is `converged`.

    Args:
        control (`Callable`): [`permuted_control`] or [`gaussian_control`].
        name (`str`): Names the random stream, together with the seed and the round of `noise`.
        noise ([`NullspaceNoise`]): The bank, as [`synthesize_noise`] made it.
        model (`nn.Module`): The classifier it was made for, unwrapped; frozen meanwhile, and put back as it was.
        dataloader (iterable of `dict`): Yields the images it was made with.
        accelerator, patch_projection: As in [`synthesize_noise`].
    """
    config, axes = noise.config, None
    tensors, certificates = [], []
    with frozen_classifier(model, patch_projection, accelerator) as classifier:
        _, held_out = read_and_split(classifier, dataloader, config, noise.round_index)
        for index, source in enumerate(noise.certificates):
            generator = keyed_generator(name, config.seed, noise.round_index, index)
            tensor, draws = noise.tensor[index : index + 1], None
            if noise.axes is None:
                tensor = control(tensor, generator)
            else:
                axes = remove_hidden_mean(torch.eye(noise.axes.shape[0]))
                tensor = draw_in_axes(axes, 1, tensor.shape[1], tensor.norm().item(), generator)
                draws = dataclasses.replace(noise.image_noise(classifier.device), axes=axes.to(classifier.device))
            on_device = tensor.to(classifier.device)
            certificates.append(
                certify(classifier, held_out, on_device, config, generator, source.steps, source.seconds, draws)
            )
            tensors.append(tensor)
    return NullspaceNoise(torch.cat(tensors), certificates, config, noise.round_index, axes, noise.grid)


def _with_norm_of(noise: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
    control = remove_hidden_mean(control.double())
    return (control * (noise.double().norm() / control.norm())).to(noise.dtype)


class NoiseControlTrainer(NullspaceTrainer):
    """
    [`NullspaceTrainer`] with a control in place of each nullspace noise; a subclass says which.

    A round trains on its control exactly where it would have trained on the nullspace noise. `noise`, checkpoints and
    certificates are those of the control. The rows of `noise_history` hold `norm`, `probability_mse` and `converged` of
    the nullspace noise too, with `source_` before the name, and whether it would be trained on as `source_in_use`.

    Attributes:
        noise_control (`Callable`): From one noise and a generator to its control.
        noise_in_words (`str`): What it is, for the card.
    """

    noise_control: Control
    noise_in_words: str

    def _make_noise(self, model: nn.Module, round_index: int) -> NullspaceNoise:
        source = super()._make_noise(model, round_index)
        self._source_row = {
            "source_norm": source.certificate.norm,
            "source_probability_mse": source.certificate.probability_mse,
            "source_converged": source.converged,
            "source_in_use": source.is_usable,
        }
        return make_control(
            self.noise_control,
            type(self).__name__,
            source,
            model,
            self._noise_dataloader(round_index),
            accelerator=self.accelerator,
            patch_projection=self.args.patch_projection,
        )

    def _refresh_noise(self, model: nn.Module) -> None:
        super()._refresh_noise(model)
        self.noise_history[-1].update(self._source_row)

    def _method_in_words(self) -> str | None:
        if not self.args.noise_weight:
            return super()._method_in_words()
        return f"beside each clean image it saw the same image under {self.noise_in_words}."


class PermutedNoiseTrainer(NoiseControlTrainer):
    """Finetunes on nullspace noise with its elements permuted: [`~noise_controls.permuted_control`]."""

    noise_control = staticmethod(permuted_control)
    noise_in_words = "nullspace noise with its elements permuted (same norm, direction destroyed)"


class GaussianNoiseTrainer(NoiseControlTrainer):
    """Finetunes on Gaussian noise of the norm of the nullspace noise: [`~noise_controls.gaussian_control`]."""

    noise_control = staticmethod(gaussian_control)
    noise_in_words = "Gaussian noise of the norm of nullspace noise"


PERMUTED = Way(
    "permuted",
    "clean images, and the same under nullspace noise with its elements permuted",
    NULLSPACE.cost,
    PermutedNoiseTrainer,
)


GAUSSIAN = Way(
    "gaussian",
    "clean images, and the same under Gaussian noise of the norm of nullspace noise",
    NULLSPACE.cost,
    GaussianNoiseTrainer,
)
