"""The bars of a robustness report, of one model and of several."""

import numpy as np
import pytest
from PIL import Image

from hf_nullspace.robustness.figure import plot_robustness
from hf_nullspace.utils.figures import svg_text


BARS = {
    "clean": {"accuracy": 90.0, "low": 85.0, "high": 94.0},
    "corruptions": {"accuracy": 60.0, "low": None, "high": None},
}


@pytest.mark.parametrize(("models", "colours"), [(1, {(0, 0x72, 0xB2)}), (2, {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)})])
def test_bars_are_as_long_as_the_accuracies(tmp_path, models, colours):
    plot_robustness({f"model {number}": BARS for number in range(models)}, tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == 1350
    for colour in colours:
        lengths = sorted(length for length in (pixels == colour).all(-1).sum(1).tolist() if length > 100)
        shorter, longer = lengths[0], lengths[-1]
        assert longer / shorter == pytest.approx(90 / 60, rel=0.1)


def test_no_bars_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`bars` is empty"):
        plot_robustness({}, tmp_path / "bars.png")


def test_title_says_the_finding_and_the_note_of_how_many(tmp_path):
    bar = {"low": None, "high": None}
    row = {"clean": {"accuracy": 90.0, **bar}, "fog": {"accuracy": 70.0, **bar}, "pgd": {"accuracy": 3.0, **bar}}
    one = svg_text(lambda path: plot_robustness({"a$b$": row}, path, "n = 50 pictures a column"), "bars")
    assert "a$b$ is right on 90.0 % (clean), down to 3.0 % (pgd)" in one and "n = 50 pictures a column" in one
    better = {name: {**values, "accuracy": 95.0} for name, values in row.items()}
    two = svg_text(lambda path: plot_robustness({"before": row, "after": better}, path), "bars")
    assert "Mean accuracy: after 95.0 %, before 54.3 %" in two
