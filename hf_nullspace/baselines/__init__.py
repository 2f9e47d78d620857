"""The ways of finetuning that are compared: each differs from nullspace finetuning in one thing."""

from .adversarial import PGD, TRADES
from .controls import GAUSSIAN, PERMUTED
from .freelb import FREELB
from .neftune import NEFTUNE
from .nfgsm import NFGSM
from .nullspace import NULLSPACE
from .plain import PLAIN
from .sam import SAM
from .way import WAYS, Way, register_way


__all__ = [
    *("FREELB", "GAUSSIAN", "NEFTUNE", "NFGSM", "NULLSPACE", "PERMUTED", "PGD", "PLAIN", "SAM", "TRADES"),
    *("WAYS", "Way", "register_way"),
]


for _way in (PLAIN, PERMUTED, GAUSSIAN, NULLSPACE, NEFTUNE, FREELB, SAM, NFGSM, PGD, TRADES):
    register_way(_way)
