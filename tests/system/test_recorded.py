"""Noise, certificates, training and evaluation give the numbers that they gave before the package had wings, and its files load."""

import json
from pathlib import Path

import pytest
import recorded

from hf_nullspace import NullspaceNoise, RobustnessReport, measure_noise
from hf_nullspace.hub import compare_with_manifest


RECORDED = Path(__file__).parents[1] / "recorded"
FILES = RECORDED / "written_by_0.1.0"


def flat(values: dict, name: str = "") -> dict:
    """Nested results as one `dict` of numbers and lists of numbers."""
    rows = {}
    for key, value in values.items():
        rows |= flat(value, f"{name}{key}/") if isinstance(value, dict) else {f"{name}{key}": value}
    return rows


def test_numbers_are_those_of_before(tmp_path):
    expected = flat(json.loads((RECORDED / "numbers.json").read_text(encoding="utf-8")))
    found = flat(recorded.numbers(tmp_path))
    assert set(found) == set(expected)
    for name, value in expected.items():
        # Bitwise where it was recorded; other processors round otherwise, which may cost an image of 24.
        tolerance = {"abs": 100 / 24 + 1e-6} if name.startswith("evaluation/") else {"rel": 1e-3, "abs": 1e-5}
        assert found[name] == pytest.approx(value, **tolerance), name


@pytest.mark.parametrize("method", ["boundary", "sample", "paper"])
def test_noise_of_before_loads(method):
    noise = NullspaceNoise.from_pretrained(FILES / f"noise-{method}")
    assert noise.config.method == method and noise.tensor.shape == (1, 16, 16)
    expected = json.loads((RECORDED / "numbers.json").read_text(encoding="utf-8"))["synthesis"][method]
    if method != "paper":  # recorded from another start
        assert noise.certificate.norm == expected["norm"]
        measured = measure_noise(recorded.model(), noise, recorded.batches())
        assert measured.probability_mse == pytest.approx(expected["measured_probability_mse"], rel=1e-3)


def test_a_bank_of_before_is_refused_by_what_was_measured():
    with pytest.raises(
        ValueError, match="bank of 2 noises.*`bank_size` was removed: .*3.78 points.*`method='sample'`"
    ):
        NullspaceNoise.from_pretrained(FILES / "noise-bank")


def test_a_report_of_before_loads():
    report = RobustnessReport.load(FILES / "report")
    expected = json.loads((RECORDED / "numbers.json").read_text(encoding="utf-8"))["evaluation"]
    assert {name: row["accuracy"] for name, row in report.to_dict()["columns"].items()} == expected


def test_a_manifest_of_before_holds():
    found = compare_with_manifest(FILES / "finetuned")
    assert len(found) > 3 and set(found.values()) == {""}


def test_a_checkpoint_of_before_goes_on(tmp_path):
    # As it was: each draw moves along its own gradient.
    settings = {"optim": "sgd", "save_strategy": "no", "noise_ascent_gradient": "noisy"}
    whole = recorded.trainer(tmp_path / "whole", "nullspace", **settings)
    whole.train()
    resumed = recorded.trainer(tmp_path / "resumed", "nullspace", **settings)
    resumed.train(resume_from_checkpoint=str(FILES / "finetuned" / "checkpoint-2"))
    assert resumed.state.global_step == 4 and resumed.noise.round_index == whole.noise.round_index
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert other.detach().numpy() == pytest.approx(one.detach().numpy(), abs=1e-4)
