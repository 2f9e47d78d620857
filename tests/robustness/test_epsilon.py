"""`parse_epsilon` takes numbers and fractions, and says what is wrong with anything else."""

import math

import numpy as np
import pytest

from hf_nullspace.robustness.attacks.epsilon import parse_epsilon


@pytest.mark.parametrize(
    "value, number",
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.03", 0.03),
        ("0.5/255", 0.5 / 255),
        (0, 0.0),
        (1, 1.0),
        (0.1, 0.1),
    ],
)
def test_number_and_text(value, number):
    assert parse_epsilon(value) == number


def test_numpy_number():
    assert parse_epsilon(np.float64(0.25)) == 0.25


@pytest.mark.parametrize("value", [True, None, [8, 255], b"8/255"])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match='number or text such as "8/255", but got'):
        parse_epsilon(value)


@pytest.mark.parametrize("value", ["", "8/0", "8/255/2", "eight", "-8/255", "8e-3", "nan", "inf"])
def test_other_text_is_refused(value):
    with pytest.raises(ValueError, match='number or a fraction such as "8/255", but got'):
        parse_epsilon(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_numbers_that_are_no_radius_are_refused(value):
    with pytest.raises(ValueError, match="finite and not negative"):
        parse_epsilon(value)


@pytest.mark.parametrize("value", [8, "8", 1.0001])
def test_grey_levels_are_refused(value):
    with pytest.raises(ValueError, match='pixel units.*1 at most.*"8/255"'):
        parse_epsilon(value)
    assert parse_epsilon(value, largest=math.inf) == float(value)
