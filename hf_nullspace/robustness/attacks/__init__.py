"""
Adversarial attacks in pixel space: images in [0, 1], epsilon in pixel units, random numbers that belong to an image.

Each has a module, which says all that is known of it in an [`Attack`]; other modules add theirs with
[`register_attack`].
"""

from .autoattack import AutoAttackReport, autoattack, run_autoattack
from .base import ATTACKS, Attack, register_attack
from .cw import cw_l2
from .epsilon import parse_epsilon
from .fgsm import fgsm
from .patchfool import patchfool
from .pgd import pgd_l2, pgd_linf
from .released_fgsm import released_fgsm
