"""Measures robustness in pixel space."""

from ..frozen import frozen
from .accuracy import robust_accuracy
from .attacks import (
    ATTACKS,
    AutoAttackReport,
    autoattack,
    cw_l2,
    fgsm,
    parse_epsilon,
    patchfool,
    pgd_l2,
    pgd_linf,
    run_autoattack,
)
from .classifier_check import check_classifier
from .corruptions import corrupt
from .pixel_model import PixelModel
