"""The cost table has every corruption, with changes that are those of the pictures themselves."""

import numpy as np
import pytest
from example_scripts import load_example
from PIL import Image

from hf_nullspace.robustness.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def example():
    return load_example("corruption_costs")


def test_table(example, capsys):
    results = example.main(["--side", "32", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["corruption", "---", *CORRUPTIONS, "median"]
    pictures = example.photographs(32)
    assert [picture.shape for picture in pictures] == [(32, 32, 3)] * 2
    changes = [
        np.abs(np.asarray(corrupt(Image.fromarray(p), "fog", 5, np.random.default_rng(0))).astype(float) - p).mean()
        for p in pictures
    ]
    assert results["fog"]["ours"][1][4] == pytest.approx(np.mean(changes))
    assert f"{np.mean(changes):.1f}" in lines[2 + list(CORRUPTIONS).index("fog")]
