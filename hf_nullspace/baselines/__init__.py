"""The ways of finetuning that are compared: each differs from nullspace finetuning in one thing."""

from .adversarial import PGD, TRADES
from .controls import GAUSSIAN, PERMUTED
from .nullspace import NULLSPACE
from .plain import PLAIN
from .way import WAYS, Way, register_way


__all__ = ["GAUSSIAN", "NULLSPACE", "PERMUTED", "PGD", "PLAIN", "TRADES", "WAYS", "Way", "register_way"]


for _way in (PLAIN, PERMUTED, GAUSSIAN, NULLSPACE, PGD, TRADES):
    register_way(_way)
