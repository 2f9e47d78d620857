"""Finetune robust vision transformers on the approximate nullspace of their own encoder (arXiv 2403.10476)."""

from .certificate import Certificate
from .configuration import NullspaceConfig
from .data_collator import NullspaceDataCollator
from .injection import inject_noise
from .noise import NullspaceNoise
from .nullspace import PatchNullspace
from .probe_report import ProbeReport, probe
from .probing import measure_noise
from .robustness import RobustnessReport, evaluate_robustness
from .synthesis import NoiseNotConvergedError, synthesize_noise
from .trainer import NullspaceTrainer
from .training_args import NullspaceTrainingArguments


__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "NoiseNotConvergedError",
    "NullspaceConfig",
    "NullspaceDataCollator",
    "NullspaceNoise",
    "NullspaceTrainer",
    "NullspaceTrainingArguments",
    "PatchNullspace",
    "ProbeReport",
    "RobustnessReport",
    "evaluate_robustness",
    "inject_noise",
    "measure_noise",
    "probe",
    "synthesize_noise",
]
