"""Measures robustness in pixel space."""

from ..frozen import frozen
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
from .comparison import compare_reports
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .datasets import RobustnessDataset, dataset_for_model, load_robustness_dataset
from .evaluation import evaluate_robustness, public_name
from .imagenet import imagenet_wnids, masked_logits
from .pixel_model import PixelModel
from .profiles import PREVIEW, PROFILES, Column, Profile
from .report import RobustnessReport, draw_figure
