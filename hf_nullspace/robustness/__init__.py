"""Measures robustness in pixel space."""

from .accuracy import robust_accuracy
from .attacks import fgsm
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .datasets import RobustnessDataset, dataset_for_model, load_robustness_dataset
from .imagenet import imagenet_wnids, masked_logits
from .pixel_model import PixelModel
