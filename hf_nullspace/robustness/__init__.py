"""Measures robustness in pixel space."""

from .attacks import ATTACKS, fgsm, parse_epsilon
from .comparison import compare_reports
from .corruptions import CORRUPTIONS, corrupt
from .evaluation import evaluate_robustness, public_name
from .pixel_model import PixelModel
from .profiles import PREVIEW, PROFILES, Column, Profile
from .report import RobustnessReport, draw_figure
