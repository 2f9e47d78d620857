"""Random generators keyed by a name, a seed and a round, independent of global state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def keyed_generator(name: str, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """
    A generator whose stream depends on `name`, `keys` and the kind of `device` alone.

    Args:
        name (`str`): What the numbers are for; two purposes never share a stream.
        keys (`int`): Usually the seed and the round.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the numbers are drawn. Kinds of devices
            draw different numbers from one seed.
    """
    digest = hashlib.sha256(":".join([name, *map(str, keys)]).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """
    Restores the global generators of Python, NumPy and torch (all devices) at the end.

    Transforms of a user's dataset draw from them; reading images for a synthesis must not shift the training run.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def keyed_random_state(name: str, *keys: int) -> Iterator[None]:
    """
    Inside the `with` block torch's global generator on the CPU draws what [`keyed_generator`] would; after it, it goes on
    where it was. For libraries that draw from the global generator alone.
    """
    state = torch.get_rng_state()
    torch.set_rng_state(keyed_generator(name, *keys).get_state())
    try:
        yield
    finally:
        torch.set_rng_state(state)
