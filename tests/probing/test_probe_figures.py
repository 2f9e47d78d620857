"""Figures of the probe: refusals of empty results, and grids that are not square."""

import numpy as np
import pytest
from PIL import Image

from hf_nullspace.probing.figures import plot_dose_response, plot_exact_noise, plot_lambda_sweep, plot_token_norms


@pytest.mark.parametrize("plot", [plot_lambda_sweep, plot_dose_response, plot_token_norms])
def test_empty_results_are_refused(plot, tmp_path):
    with pytest.raises(ValueError, match="`rows` is empty"):
        plot([], tmp_path / "figure.png")


def test_token_norms_of_a_wide_grid(tmp_path):
    rows = [{"row": row, "column": column, "token_norm": row + column} for row in range(2) for column in range(5)]
    plot_token_norms(rows, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width >= 600


def test_exact_noise_shows_the_largest_logits_by_name(tmp_path):
    rng = np.random.default_rng(0)
    picture, noisy = rng.random((2, 8, 8, 3))
    logits = list(range(7))
    for names in (None, list("abcdefg")):
        plot_exact_noise(picture, noisy, logits, logits, tmp_path / "figure.png", class_names=names)
        assert (tmp_path / "figure.png").stat().st_size > 10_000
