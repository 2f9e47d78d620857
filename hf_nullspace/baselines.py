"""
What a claim about nullspace finetuning stands beside: other ways to finetune, in the same trainer and regime.

| name | trains on | what a difference to it says |
|---|---|---|
| `plain` | clean images | what noise of any kind adds to finetuning |
| `permuted` | the nullspace noise, its elements in a random order | what its direction adds to its norm |
| `gaussian` | Gaussian noise of the same norm | the same, and how its elements are distributed |
| `nullspace` | nullspace noise | |
| `pgd` | adversarial examples of the cross-entropy | what a finetuning made for attacks reaches |
| `trades` | clean images, and the divergence of adversarial ones | the same, with clean accuracy kept |

Of `noise_method="sample"`, where every image gets a noise of its own, both controls are draws of the same norm in any
direction, and `permuted` is `gaussian`. They cost what `nullspace` costs, and the measurement of their own certificates:
they are made by the search that they are the control of. `pgd` and `trades` take `adversarial_steps` more forward and
backward passes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from .adversarial_trainer import AdversarialTrainer, AdversarialTrainingArguments, TradesTrainer
from .noise import NullspaceNoise
from .noise_controls import Control, gaussian_control, make_control, permuted_control
from .trainer import NullspaceTrainer
from .training_args import NullspaceTrainingArguments


__all__ = [
    "METHODS",
    "AdversarialTrainer",
    "AdversarialTrainingArguments",
    "GaussianNoiseTrainer",
    "Method",
    "NoiseControlTrainer",
    "PermutedNoiseTrainer",
    "TradesTrainer",
]


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


class Method(NamedTuple):
    """
    How to finetune by one method.

    Args:
        trainer_class (`type[NullspaceTrainer]`): The trainer.
        args_class (`type[NullspaceTrainingArguments]`): Its arguments.
        fixed_arguments (`dict[str, Any]`): The arguments that make it this method.
    """

    trainer_class: type[NullspaceTrainer]
    args_class: type[NullspaceTrainingArguments]
    fixed_arguments: dict[str, Any]


METHODS: dict[str, Method] = {
    "plain": Method(NullspaceTrainer, NullspaceTrainingArguments, {"noise_weight": 0.0}),
    "permuted": Method(PermutedNoiseTrainer, NullspaceTrainingArguments, {}),
    "gaussian": Method(GaussianNoiseTrainer, NullspaceTrainingArguments, {}),
    "nullspace": Method(NullspaceTrainer, NullspaceTrainingArguments, {}),
    "pgd": Method(AdversarialTrainer, AdversarialTrainingArguments, {"noise_weight": 0.0}),
    "trades": Method(TradesTrainer, AdversarialTrainingArguments, {"noise_weight": 0.0}),
}
