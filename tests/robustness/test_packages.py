"""A missing optional package is said before anything is measured."""

import sys

import numpy as np
import pytest
from PIL import Image

from hf_nullspace import evaluate_robustness
from hf_nullspace.cli.commands.evaluate import parse_evaluate_arguments
from hf_nullspace.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from hf_nullspace.robustness.packages import check_packages
from hf_nullspace.robustness.profiles import PREVIEW, PROFILES, Column, Profile


@pytest.fixture
def without(monkeypatch):
    """`without(package)` makes a package impossible to import."""

    def block(package: str) -> None:
        for name in [*sys.modules, package]:
            if name.partition(".")[0] == package:
                monkeypatch.setitem(sys.modules, name, None)

    return block


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_list_of_corruptions_is_right(without, name):
    without("scipy")
    picture, needs_scipy = Image.new("RGB", (24, 24)), False
    try:
        for severity in SEVERITIES:
            corrupt(picture, name, severity, np.random.default_rng(0))
    except ImportError:
        needs_scipy = True
    assert needs_scipy == ("scipy" in CORRUPTIONS[name].packages)


def test_scipy_and_pyautoattack_are_asked_for_where_needed(without):
    for package in ("scipy", "pyautoattack"):
        without(package)
    check_packages(PREVIEW)
    check_packages(
        Profile("published", (Column("blur", dataset="imagenet-c", corruption="defocus_blur", severity=1),))
    )
    with pytest.raises(ImportError, match=r"'quick' needs scipy for defocus_blur_3: .*hf_nullspace\[eval\]"):
        check_packages(PROFILES["quick"])
    with pytest.raises(ImportError, match=r"needs scipy for .* and \d+ more"):
        check_packages(PROFILES["standard"])
    with pytest.raises(ImportError, match=r"needs pyautoattack for aa: .*hf_nullspace\[attacks\]"):
        check_packages(Profile("mine", (Column("aa", attack="autoattack", settings={"epsilon": "8/255"}),)))


def test_evaluation_says_it_first(without, tiny_vit):
    without("scipy")
    with pytest.raises(ImportError, match="needs scipy"):
        evaluate_robustness(tiny_vit, None, None, "quick")
    with pytest.raises(ImportError, match="needs scipy"):
        parse_evaluate_arguments([], "evaluate")
    parse_evaluate_arguments(["--profile", "preview"], "evaluate")
