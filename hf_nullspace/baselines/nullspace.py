"""Nullspace finetuning itself, in the table of the ways that it is compared with."""

from ..training.trainer import NullspaceTrainer
from .way import Way


# Clean images, the same under noise, and the pass that moves each image's noise up its loss.
NULLSPACE = Way("nullspace", "clean images, and the same under nullspace noise", 3.0, NullspaceTrainer)
