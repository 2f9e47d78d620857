"""Figures are pictures of the promised size, drawn from results and nothing else."""

import numpy as np
import pytest
from PIL import Image

from hf_nullspace.comparison.figure import plot_rows
from hf_nullspace.training.figure import plot_noise_history
from hf_nullspace.utils.figures import optional_figure, svg_text


@pytest.fixture
def history(make_certificate):
    return [
        {"round": index, "step": 40 * index, **make_certificate(norm=norm).to_dict()}
        for index, norm in enumerate((12.0, 9.0, 15.0))
    ]


@pytest.mark.parametrize("rounds", [1, 3])
def test_writes_a_png_of_the_promised_size(history, tmp_path, rounds):
    plot_noise_history(history[:rounds], tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1350, 480))
        colours = set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3)))
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours


def test_title_says_what_came_of_the_noise(history):
    text = svg_text(lambda path: plot_noise_history(history, path), "noise")
    last = history[-1]
    kept, permuted = (f"{100 * last[name]:.0f} %" for name in ("agreement", "permuted_agreement"))
    assert f"Noise 1.2 times as large as at first keeps {kept} of predictions, permuted {permuted}" in text
    assert f"n = {last['num_images']} pictures at each round" in text and "(embedding units)" in text
    assert text == svg_text(lambda path: plot_noise_history(history, path), "noise"), "the same bytes each time"


@pytest.mark.parametrize(
    ("low", "title"),
    [
        (0.5, "Most gained nullspace, +1.0 points [+0.5, +2.0] against plain finetuning (mean)"),
        (-0.5, "No sure gain: at best nullspace, +1.0 points [-0.5, +2.0] against plain finetuning (mean)"),
    ],
)
def test_title_says_whether_a_gain_is_sure(low, title):
    row = {"mean": {"difference": 1.0, "low": low, "high": 2.0}}
    worse = {"mean": {"difference": -3.0, "low": -4.0, "high": -2.0}}
    differences = {"pgd": worse, "nullspace": row}
    costs = {"nullspace": 2.0, "pgd": 4.0}
    text = svg_text(lambda path: plot_rows(differences, costs, path, "n = 360 images, 3 seeds"), "rows")
    assert title in text and "n = 360 images, 3 seeds" in text
    text = svg_text(lambda path: plot_rows(differences, costs, path, finding="None won."), "rows")
    assert title not in text and "None won." in text


def test_figure_is_closed(history, tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_noise_history(history, str(tmp_path / "noise.png"))
    assert plt.get_fignums() == before


def test_empty_history_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`history` is empty"):
        plot_noise_history([], tmp_path / "noise.png")
    assert list(tmp_path.iterdir()) == []


def test_methods_are_drawn_by_group_and_by_cost(tmp_path):
    bar = {"difference": 1.0, "low": 0.5, "high": 2.0}
    differences = {name: {"mean": bar, "clean": bar, "attacks": bar} for name in ("nullspace", "pgd")}
    plot_rows(differences, {"nullspace": 2.4, "pgd": 4.0}, tmp_path / "methods.png")
    with Image.open(tmp_path / "methods.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1650, 540))
        colours = set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3)))
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} <= colours
    with pytest.raises(ValueError, match="`differences` is empty"):
        plot_rows({}, {}, tmp_path / "none.png")


@pytest.mark.parametrize(
    "error", [ImportError("matplotlib is missing"), AttributeError("numpy has no attribute float")]
)
def test_what_matplotlib_raises_costs_no_result(history, tmp_path, monkeypatch, caplog, error):
    def fail():
        raise error

    monkeypatch.setattr("hf_nullspace.training.figure.pyplot", fail)
    with optional_figure(tmp_path / "noise.png"):
        plot_noise_history(history, tmp_path / "noise.png")
    (message,) = caplog.messages
    assert message.startswith("noise.png is not drawn. ")
    assert message.endswith(str(error))
