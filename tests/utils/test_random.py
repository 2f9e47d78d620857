"""Named random streams, and that global generators come back as they were."""

import random

import numpy as np
import pytest
import torch

from hf_nullspace.utils.random import keyed_generator, preserved_random_state


def stream(*keys):
    return torch.rand(8, generator=keyed_generator(*keys)).tolist()


def draw_from_all():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_same_keys_give_the_same_stream():
    assert stream("synthesis", 42, 3) == stream("synthesis", 42, 3)


@pytest.mark.parametrize(
    "other",
    [("draw", 42, 3), ("synthesis", 43, 3), ("synthesis", 42, 4), ("synthesis", 42), ("synthesis", 4, 23)],
)
def test_another_name_or_key_gives_another_stream(other):
    assert set(stream("synthesis", 42, 3)).isdisjoint(stream(*other))


def test_keyed_generator_does_not_depend_on_the_global_seed():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = stream("images", 0)
        torch.manual_seed(2)
        assert stream("images", 0) == first


@pytest.mark.parametrize("fails", [False, True])
def test_preserved_random_state_restores_all_generators(fails):
    with preserved_random_state():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        expected = draw_from_all()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            with preserved_random_state():
                assert draw_from_all() == expected
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert draw_from_all() == expected
