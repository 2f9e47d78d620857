"""Finetune robust vision transformers on the approximate nullspace of their own encoder (arXiv 2403.10476)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"
# Each is imported where it is first asked for, so that `hf-nullspace --help` waits for no torch. Type checkers read the
# imports below.
_MODULES = {
    "Certificate": ".noise.certificate",
    "NoiseNotConvergedError": ".noise.synthesis",
    "NullspaceConfig": ".noise.config",
    "NullspaceDataCollator": ".training.data_collator",
    "NullspaceNoise": ".noise.nullspace_noise",
    "NullspaceTrainer": ".training.trainer",
    "NullspaceTrainingArguments": ".training.arguments",
    "PatchNullspace": ".exact_nullspace.patch_nullspace",
    "ProbeReport": ".probing.report",
    "RobustnessReport": ".robustness.report",
    "evaluate_robustness": ".robustness.evaluation",
    "inject_noise": ".noise.injection",
    "measure_noise": ".noise.certify",
    "probe": ".probing.report",
    "resize_noise": ".models.injection",
    "similarity_objective": ".models.objectives",
    "synthesize_noise": ".noise.synthesis",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


if TYPE_CHECKING:
    from .exact_nullspace.patch_nullspace import PatchNullspace as PatchNullspace
    from .models.injection import resize_noise as resize_noise
    from .models.objectives import similarity_objective as similarity_objective
    from .noise.certificate import Certificate as Certificate
    from .noise.certify import measure_noise as measure_noise
    from .noise.config import NullspaceConfig as NullspaceConfig
    from .noise.injection import inject_noise as inject_noise
    from .noise.nullspace_noise import NullspaceNoise as NullspaceNoise
    from .noise.synthesis import NoiseNotConvergedError as NoiseNotConvergedError
    from .noise.synthesis import synthesize_noise as synthesize_noise
    from .probing.report import ProbeReport as ProbeReport
    from .probing.report import probe as probe
    from .robustness.evaluation import evaluate_robustness as evaluate_robustness
    from .robustness.report import RobustnessReport as RobustnessReport
    from .training.arguments import NullspaceTrainingArguments as NullspaceTrainingArguments
    from .training.data_collator import NullspaceDataCollator as NullspaceDataCollator
    from .training.trainer import NullspaceTrainer as NullspaceTrainer
