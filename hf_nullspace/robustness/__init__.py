"""Measures robustness in pixel space."""

from .accuracy import robust_accuracy
from .attacks import fgsm
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .pixel_model import PixelModel
