"""Figures of the probe: refusals of empty results, and grids that are not square."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_nullspace.probing.figures import (
    plot_dose_response,
    plot_lambda_sweep,
    plot_noisy_pictures,
    plot_token_norms,
)
from hf_nullspace.probing.noisy_pictures import NoisyPictures
from hf_nullspace.utils.figures import svg_text


@pytest.mark.parametrize("plot", [plot_lambda_sweep, plot_dose_response, plot_token_norms])
def test_empty_results_are_refused(plot, tmp_path):
    with pytest.raises(ValueError, match="`rows` is empty"):
        plot([], tmp_path / "figure.png")


def test_token_norms_of_a_wide_grid(tmp_path):
    rows = [{"row": row, "column": column, "token_norm": row + column} for row in range(2) for column in range(5)]
    plot_token_norms(rows, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width >= 600


def pictures_under_noise(names: list[str]) -> NoisyPictures:
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    probabilities = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.55, 0.35, 0.1, 0.0], [0.0, 0.1, 0.2, 0.7]])
    return NoisyPictures("exact nullspace noise", pixels, probabilities, names, (0.005, 0.9))


def test_noisy_pictures_are_drawn_on_white_with_their_classes(tmp_path):
    row = pictures_under_noise(["a", "b", "c $x_", "d"])
    plot_noisy_pictures([row], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as one:
        pixels = np.asarray(one.convert("RGB")).astype(int)
        assert pixels[0, 0].tolist() == [255, 255, 255], "an opaque white page, for readers in the dark too"
        blue = np.abs(pixels - [153, 199, 224]).max(-1) < 12  # four tenths of the palette's blue on white
        orange = np.abs(pixels - [238, 191, 153]).max(-1) < 12
        thirds = [slice(start, start + one.width // 3) for start in range(0, one.width - 2, one.width // 3)]
        bars = [(blue[:, third].sum(), orange[:, third].sum()) for third in thirds]
        assert bars[0][0] > 10 * bars[0][1] and bars[1][0] > 10 * bars[1][1]
        assert bars[2][1] > bars[2][0] > 0, "the first class is none of the picture's own, the second is"
    with pytest.raises(ValueError, match="`rows` is empty"):
        plot_noisy_pictures([], tmp_path / "none.png")


def test_titles_say_what_the_noise_does_beside_its_control():
    known = {"num_images": 24, "confidence_change": 0.0, "permuted_confidence_change": 0.5, "probability_mse": 0.01}
    known["permuted_probability_mse"] = 0.9
    rows = [
        {"lambda": 0.1, "norm": 2.0, "agreement": 1.0, "permuted_agreement": 0.6, **known},
        {"lambda": 0.4, "norm": 5.0, "agreement": 0.99, "permuted_agreement": 0.25, **known},
        {"lambda": 0.8, "norm": 9.0, "agreement": 0.9, "permuted_agreement": 0.1, **known},
    ]
    sweep = svg_text(lambda path: plot_lambda_sweep(rows, path), "sweep")
    assert "Noise of norm 5 (lambda 0.4): 99 % unchanged, permuted 25 %" in sweep, "the largest that is harmless"
    assert "n = 24 pictures; the control has the same elements in another order" in sweep
    dose = svg_text(lambda path: plot_dose_response(rows, path), "dose")
    assert "90 % unchanged, permuted 10 % at norm 9; 100 % unchanged, permuted 60 % at 2" in dose
    harmful = svg_text(lambda path: plot_lambda_sweep(rows[2:], path), "sweep")
    assert "Noise of norm 9 (lambda 0.8): 90 % unchanged, permuted 10 %" in harmful
