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

from ..training.arguments import NullspaceTrainingArguments
from ..training.trainer import NullspaceTrainer
from .adversarial import AdversarialTrainer, AdversarialTrainingArguments, TradesTrainer
from .controls import GaussianNoiseTrainer, NoiseControlTrainer, PermutedNoiseTrainer


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
