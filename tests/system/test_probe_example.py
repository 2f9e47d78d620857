"""`hf-nullspace probe` and `examples/probe_nullspace.py` as users run them."""

import json
from pathlib import Path

import numpy as np
from example_scripts import load_example
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_nullspace.cli.main import main


EXAMPLE = Path(__file__).parents[2] / "examples" / "probe_nullspace.py"
QUICK = ["--max_steps", "2", "--lambdas", "0.1", "0.5", "--max_images", "16"]


def test_example_probes_a_digits_model(tmp_path, capsys):
    example = load_example("probe_nullspace")
    report = example.main([*QUICK, "--digits_max_steps", "5", "--output_dir", str(tmp_path)])
    assert report.exact["dimension"] == 96 and [row["lambda"] for row in report.encoder.sweep] == [0.1, 0.5]
    assert {"probe.json", "watermark.png", "noisy_pictures.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "Watermark: likeness" in capsys.readouterr().out


def test_command_probes_a_folder_of_pictures(make_vit, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        picture = Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8))
        picture.save(tmp_path / "pictures" / f"{index}.png")
    make_vit(classifier_scale=20).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    folders = ["--images", str(tmp_path / "pictures"), "--output_dir", str(tmp_path / "out")]
    main(["probe", str(tmp_path / "model"), *folders, *QUICK])
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert saved["exact"][0]["dimension"] == 160
    assert "| dimension | 160 |" in capsys.readouterr().out


def test_command_measures_the_exact_part_on_photographs(make_vit, tmp_path, capsys):
    make_vit(classifier_scale=20, image_size=32).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    main(["probe", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")])
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    (exact,) = saved["exact"]
    assert (exact["rank"], exact["dimension"], exact["num_images"]) == (32, 160, 2)
    assert 0 < exact["tolerance"] < 1e-3 and exact["noise_norm"] < exact["noise_norm_bound"]
    assert 0 < exact["pixels_at_bound"] < 1 and exact["noise_max"] > 0.5
    assert exact["relative_logit_change"] < 1e-4
    assert exact["permuted_relative_logit_change"] > 100 * exact["relative_logit_change"]
    assert "at least 4 pictures, but there are 2" in saved["encoder_refusal"] and "sweep" not in saved
    printed, written = capsys.readouterr().out, (tmp_path / "out" / "probe.md").read_text()
    for name, value in exact.items():
        row = f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |"
        assert row in printed and row in written
    assert saved["encoder_refusal"] in printed
    assert (tmp_path / "out" / "noisy_pictures.png").is_file()
