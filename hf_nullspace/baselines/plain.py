"""Plain finetuning: what noise of any kind adds is the difference from it."""

from ..training.trainer import NullspaceTrainer
from .way import Way


PLAIN = Way("plain", "clean images alone", 1.0, NullspaceTrainer, fixed_arguments={"noise_weight": 0.0})
