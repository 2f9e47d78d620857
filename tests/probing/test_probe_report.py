"""The whole probe of a tiny model: its tables, files and figures, and models without an exact part."""

import csv
import json

import numpy as np
import pytest
from model_types import NAFLEX, TEXT
from PIL import Image
from transformers import Siglip2Config, Siglip2ForImageClassification, Siglip2ImageProcessorPil, ViTImageProcessorPil
from whole_path import draw_model

from hf_nullspace import probe
from hf_nullspace.probing.encoder import EncoderProbeConfig
from hf_nullspace.probing.report import MEANINGS, save_csv


CONFIG = EncoderProbeConfig(lambdas=(0.02, 0.1), max_steps=2, max_images=16, scales=(0.5, 1.0))
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(16)]


@pytest.fixture(scope="module")
def report(make_vit, pictures):
    return probe(make_vit(classifier_scale=20), PROCESSOR, pictures, CONFIG, max_exact_images=3, disable_tqdm=True)


def test_report_holds_both_nullspaces(report):
    assert (report.exact["rank"], report.exact["dimension"], report.exact["num_images"]) == (32, 160, 3)
    assert report.exact["relative_logit_change"] < 1e-4
    assert report.exact["permuted_relative_logit_change"] > 100 * report.exact["relative_logit_change"]
    assert report.layer_norm["relative_logit_change"] < 1e-4
    assert len(report.stability) == 3 and len(report.encoder.sweep) == 2
    for text in ("dimension | 160", "Approximate nullspace, by lambda", "sign flipped"):
        assert text in report.to_markdown()
    assert set(report.exact) == set(MEANINGS)


def test_files_hold_the_numbers(report, tmp_path):
    report.save(tmp_path)
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved["exact"] == [report.exact] and saved["sweep"] == report.encoder.sweep
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["norm"]) for row in rows] == [row["norm"] for row in report.encoder.sweep]
    for name in ("noisy_pictures", "lambda_sweep", "dose_response", "token_norms"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width >= 600 and len(picture.convert("L").getcolors(256)) > 10
    page = (tmp_path / "report.html").read_text()
    assert page == report.to_html() and len(page.encode()) < 2_000_000
    report.save(tmp_path / "plain", figures=False)
    assert not list((tmp_path / "plain").glob("*.png"))


def test_page_shows_pictures_figures_and_settings(report):
    page = report.to_html()
    assert "The model cannot see 160 of the 192 directions of a patch. Noise of norm" in page
    assert page.count("data:image/jpeg") == 3 * len(report.noisy_pictures) and page.count("<svg") == 3
    assert "✓ the same class" in page, "exact noise changes no prediction"
    for text in (
        "A prediction is the largest of all 5 logits of the model.",
        '<th scope="row">lambdas</th><td>[0.02, 0.1]</td>',
        report.run["model_sha256"],
        "image_processor: ViTImageProcessorPil",
        "Python called probe.",
    ):
        assert text in page, text
    assert report.run["num_pictures"] == 16 and report.run["settings"]["max_images"] == 16


def test_missing_matplotlib_costs_the_figures_only(report, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    report.save(tmp_path)
    assert "token_norms.png is not drawn" in caplog.text and (tmp_path / "probe.json").is_file()


def test_overlapping_patches_have_an_encoder_part_only(overlapping_model, pictures, tmp_path):
    report = probe(overlapping_model, PROCESSOR, pictures, CONFIG, disable_tqdm=True)
    assert report.exact is None and "`synthesize_noise`" in report.exact_refusal
    assert "exact" not in report.tables() and report.exact_refusal in report.to_markdown()
    assert len(report.encoder.token_norms) == 16
    report.save(tmp_path, figures=False)


def test_full_rank_is_said_with_what_to_use_instead(make_vit, pictures, tmp_path):
    model = make_vit(classifier_scale=20, hidden_size=192, num_hidden_layers=1)
    report = probe(model, PROCESSOR, pictures, CONFIG, max_exact_images=3, disable_tqdm=True)
    assert (report.exact["rank"], report.exact["dimension"]) == (192, 0)
    assert "relative_logit_change" not in report.exact, "a number of noise that is zero"
    for text in ("| dimension | 0 |", "(192 x 192, rank 192)", "dimension 0", "`synthesize_noise`"):
        assert text in report.to_markdown()
    report.save(tmp_path)
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved["exact"] == [report.exact] and saved["exact_refusal"] == report.exact_refusal
    assert not (tmp_path / "stability.csv").exists()
    assert [row["noise"] for row in saved["noisy_pictures"]] == ["encoder noise at epsilon 0.03"]


def test_patches_that_come_cut_already_have_both_parts(pictures, tmp_path):
    model = draw_model(Siglip2ForImageClassification, Siglip2Config(vision_config=NAFLEX, text_config=TEXT))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4)
    report = probe(model, processor, pictures, CONFIG, max_exact_images=3, disable_tqdm=True)
    assert (report.exact["rank"], report.exact["dimension"]) == (16, 176)
    assert report.exact["relative_logit_change"] < 1e-4
    assert report.exact["permuted_relative_logit_change"] > 100 * report.exact["relative_logit_change"]
    assert report.exact["noise_norm"] < report.exact["noise_norm_bound"]
    assert all(row["relative_logit_change"] < 1e-4 for row in report.stability)
    assert report.noisy_pictures == [] and len(report.encoder.token_norms) == 4
    report.save(tmp_path)
    assert not (tmp_path / "noisy_pictures.png").exists() and (tmp_path / "lambda_sweep.png").exists()


def test_rows_become_csv(tmp_path):
    save_csv([{"a": 1, "b": "x,y"}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().split() == ["a,b", '1,"x,y"']
