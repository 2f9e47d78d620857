"""The methods that find noise, by name: a file each."""

from .base import NOISE_METHODS, NoiseMethod, register
from .boundary import BoundaryMethod
from .paper import PaperMethod
from .sample import SampleMethod


__all__ = ["NOISE_METHODS", "BoundaryMethod", "NoiseMethod", "PaperMethod", "SampleMethod", "register"]
