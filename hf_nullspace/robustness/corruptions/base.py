"""How a corruption is added: a function of pixels under the decorator [`corruption`]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...utils.registry import Registry


# Pixels in [0, 1] of shape `(height, width, 3)`, a severity from 1 to 5, and the source of all that is random.
CorruptionFunction = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
SCIPY = {"scipy": "hf_nullspace[eval]"}


@dataclass(frozen=True)
class Corruption:
    """
    A corruption that a column of a profile may name.

    Args:
        name (`str`): Its name.
        function (`Callable`): Called with pixels (`np.ndarray` of shape `(height, width, 3)`, float32 in [0, 1], which it
            must not change), a severity from 1 to 5 and a `np.random.Generator`; returns the corrupted pixels, which are
            clipped to [0, 1] and rounded to eight bits.
        help (`str`): What it does, in a line.
        packages (`Mapping[str, str]`, *optional*): Packages that it needs beyond those of `hf_nullspace`, each with what to
            install.
    """

    name: str
    function: CorruptionFunction
    help: str
    packages: Mapping[str, str] = field(default_factory=dict)


CORRUPTIONS: Registry[Corruption] = Registry("corruption")


def corruption(packages: Mapping[str, str] | None = None) -> Callable[[CorruptionFunction], CorruptionFunction]:
    """
    Decorates a function that becomes the corruption of its name; the first line of its docstring is the help text.

    Args:
        packages (`Mapping[str, str]`, *optional*): Packages that it needs beyond those of `hf_nullspace`, each with what to
            install.

    Raises:
        `ValueError`: If there is a corruption of this name already, or the function has no docstring.

    Example:

    ```python
    >>> from hf_nullspace.robustness.corruptions import corruption

    >>> @corruption()  # doctest: +SKIP
    ... def darkness(pixels, severity, rng):
    ...     "Dims the picture."
    ...     return pixels * (1 - severity / 6)
    ```
    """

    def register(function: CorruptionFunction) -> CorruptionFunction:
        lines = (function.__doc__ or "").strip().splitlines()
        if not lines:
            raise ValueError(
                f"The corruption {function.__name__!r} needs a docstring, whose first line is its help text."
            )
        CORRUPTIONS.register(Corruption(function.__name__, function, lines[0], dict(packages or {})))
        return function

    return register
