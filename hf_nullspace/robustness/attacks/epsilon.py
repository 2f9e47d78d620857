"""Radius of an attack, in pixel units, as people write it."""

from __future__ import annotations

import math
import re


FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*(\d+(?:\.\d+)?)\s*)?")


def parse_epsilon(value: float | str, largest: float = 1.0) -> float:
    """
    The radius of an attack as a number.

    Args:
        value (`float` or `str`): A number, or text such as `"8/255"` or `"0.03"`; in pixel units, where black is 0 and
            white is 1.
        largest (`float`, *optional*, defaults to 1.0): The largest radius that makes sense: 1 for Linf, `math.inf` for
            L2.

    Raises:
        `TypeError`: If `value` is neither a number nor text.
        `ValueError`: If the text is no number or fraction, or the number is negative, not finite or above `largest`.

    Example:

    ```python
    >>> from hf_nullspace.robustness import parse_epsilon

    >>> parse_epsilon("8/255") == parse_epsilon(8 / 255)
    True
    ```
    """
    if isinstance(value, str):
        match = FRACTION.fullmatch(value)
        if match is None or (match[2] is not None and float(match[2]) == 0):
            raise ValueError(f'`epsilon` must be a number or a fraction such as "8/255", but got {value!r}.')
        number = float(match[1]) / float(match[2] or 1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        raise TypeError(
            f'`epsilon` must be a number or text such as "8/255", but got {value!r}, a {type(value).__name__}.'
        )
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"`epsilon` must be finite and not negative, but got {value!r}.")
    if number > largest:
        raise ValueError(
            f"`epsilon` is in pixel units, where black is 0 and white is 1, so it is {largest:g} at most, but got "
            f'{value!r}. For grey levels of 0 to 255 write "8/255".'
        )
    return number
