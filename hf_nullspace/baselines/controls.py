"""Noises that a nullspace noise is compared with: of the same norm, but in no direction that was searched for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..models.frozen import frozen_classifier
from ..noise.certify import certify
from ..noise.controls import gaussian_control, permuted_control
from ..noise.kinds import Control
from ..noise.nullspace_noise import NullspaceNoise
from ..noise.synthesis import read_and_split
from ..training.trainer import NullspaceTrainer
from ..utils.random import keyed_generator
from .nullspace import NULLSPACE
from .way import Way


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
    The control of a noise, with a certificate of its own.

    It is measured on the images of the certificate of `noise`, so both can be compared. `steps` and `seconds` are those
    of `noise`, which has to be made first. A control is usually not `converged`. The control of per-image noise is
    per-image too, and all its controls have the same distribution; see [`DrawnNoise.control`].

    Args:
        control (`Callable`): [`permuted_control`] or [`gaussian_control`].
        name (`str`): Names the random stream, together with the seed and the round of `noise`.
        noise ([`NullspaceNoise`]): The noise, as [`synthesize_noise`] made it.
        model (`nn.Module`): The classifier it was made for, unwrapped; frozen during the call, and restored afterwards.
        dataloader (iterable of `dict`): Yields the images it was made with.
        accelerator, patch_projection: As in [`synthesize_noise`].
    """
    config = noise.config
    source = noise.certificate
    generator = keyed_generator(name, config.seed, noise.round_index, 0)
    made = noise.noise.control(control, generator)
    with frozen_classifier(model, patch_projection, accelerator) as classifier:
        _, held_out = read_and_split(classifier, dataloader, config, noise.round_index)
        on_device = made.to(classifier.device)
        certificate = certify(classifier, held_out, on_device, config, generator, source.steps, source.seconds)
    return NullspaceNoise(made, certificate, config, noise.round_index, noise.grid)


class NoiseControlTrainer(NullspaceTrainer):
    """
    [`NullspaceTrainer`] with a control in place of each nullspace noise; subclasses define which control.

    A round trains on its control exactly where it would have trained on the nullspace noise. `noise`, checkpoints and
    certificates are those of the control. The rows of `noise_history` hold `norm`, `probability_mse` and `converged` of
    the nullspace noise too, with `source_` before the name, and whether it would be trained on as `source_in_use`.

    Attributes:
        noise_control (`Callable`): From noises and a generator to their controls.
        noise_in_words (`str`): Description of the control for the model card.
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

    def _facts_of_round(self) -> dict[str, Any]:
        return self._source_row

    def _method_in_words(self) -> str | None:
        if not self.args.noise_weight:
            return super()._method_in_words()
        return f"beside each clean image it saw the same image under {self.noise_in_words}."


class PermutedNoiseTrainer(NoiseControlTrainer):
    """Finetunes on nullspace noise with its elements permuted: [`permuted_control`]."""

    noise_control = staticmethod(permuted_control)
    noise_in_words = "nullspace noise with its elements permuted (same norm, direction destroyed)"


class GaussianNoiseTrainer(NoiseControlTrainer):
    """Finetunes on Gaussian noise of the norm of the nullspace noise: [`gaussian_control`]."""

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
