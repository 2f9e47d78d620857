"""The methods that find noise, by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.utils import logging

from ...models.frozen import FrozenClassifier
from ...models.objectives import logit_distance
from ..certificate import remove_hidden_mean
from ..config import NullspaceConfig
from ..draws import ImageNoise, draw_in_axes
from ..images import FrozenBatch, FrozenImages
from .axes import harmless_axes, hidden_moment
from .boundary import boundary_search
from .paper import paper_search
from .sample import sample_search


SEARCHES = {"boundary": boundary_search, "sample": sample_search, "paper": paper_search}
