"""Measures robustness in pixel space."""

from ..data.class_lists import ImageNetClasses, NamedClasses
from ..data.dataset_spec import DATASETS, DatasetSpec, register_dataset
from ..data.imagenet import imagenet_wnids
from ..data.robustness_datasets import RobustnessDataset, dataset_for_model, load_robustness_dataset
from ..models.frozen import frozen
from ..models.pixel_model import PixelModel, masked_logits
from .attacks import ATTACKS, Attack, autoattack, fgsm, patchfool, register_attack
from .attacks.autoattack import AutoAttackReport, run_autoattack
from .attacks.cw import cw_l2
from .attacks.epsilon import parse_epsilon
from .attacks.pgd import pgd_l2, pgd_linf
from .classifier_check import check_classifier
from .comparison import compare_reports
from .corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt, corruption
from .evaluation import evaluate_robustness, public_name
from .profiles import PREVIEW, PROFILES, Column, Profile
from .report import RobustnessReport, draw_figure
