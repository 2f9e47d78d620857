"""Adversarial attacks in pixel space: images in [0, 1], epsilon in pixel units, random numbers that belong to an image."""

from collections.abc import Callable

from .autoattack import AutoAttackReport, autoattack, run_autoattack
from .cw import cw_l2
from .epsilon import parse_epsilon
from .fgsm import fgsm
from .patchfool import patchfool
from .pgd import pgd_l2, pgd_linf


ATTACKS: dict[str, Callable] = {
    "fgsm": fgsm,
    "pgd_linf": pgd_linf,
    "pgd_l2": pgd_l2,
    "cw_l2": cw_l2,
    "patchfool": patchfool,
    "autoattack": autoattack,
}
