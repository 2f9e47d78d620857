"""Nullspace finetuning itself, in the table of the ways that it is compared with."""

from ..training.trainer import NullspaceTrainer
from .way import Way


# Clean images, and the same under noise, which moves along the gradient of the clean ones.
NULLSPACE = Way("nullspace", "clean images, and the same under nullspace noise", 2.0, NullspaceTrainer)
