"""Finetune robust vision transformers on the approximate nullspace of their own encoder (arXiv 2403.10476)."""

from .exact_nullspace.patch_nullspace import PatchNullspace
from .models.injection import resize_noise
from .models.objectives import similarity_objective
from .noise.certificate import Certificate
from .noise.certify import measure_noise
from .noise.config import NullspaceConfig
from .noise.injection import inject_noise
from .noise.nullspace_noise import NullspaceNoise
from .noise.synthesis import NoiseNotConvergedError, synthesize_noise
from .probing.report import ProbeReport, probe
from .robustness.evaluation import evaluate_robustness
from .robustness.report import RobustnessReport
from .training.arguments import NullspaceTrainingArguments
from .training.data_collator import NullspaceDataCollator
from .training.trainer import NullspaceTrainer


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
    "resize_noise",
    "similarity_objective",
    "synthesize_noise",
]
