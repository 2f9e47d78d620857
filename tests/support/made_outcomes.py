"""Outcomes of images as an evaluation would give them, made up."""

from collections.abc import Sequence

import torch

from hf_nullspace.robustness.outcomes import KINDS, Outcomes


def made_outcomes(correct: Sequence[bool], indices: Sequence[int] | None = None, **named) -> Outcomes:
    """Images that are right or wrong, with other outcomes by name; what is not given is 0."""
    values = {name: torch.zeros(len(correct)) for name in KINDS} | {"correct": torch.as_tensor(correct)}
    values |= {name: torch.as_tensor(value) for name, value in named.items()}
    places = torch.arange(len(correct)) if indices is None else torch.tensor(indices)
    return Outcomes.of(places, values)
