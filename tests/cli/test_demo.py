"""`hf-nullspace demo` without a browser and without Gradio: its flags, what goes in, and what stands on the page."""

import os
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from random_pictures import PROCESSOR, random_pictures

from hf_nullspace import NullspaceNoise
from hf_nullspace.cli.commands.demo import make_page, parse_demo_arguments
from hf_nullspace.cli.demo_page import MAX_PIXELS, DemoPage, check_port, own_folder, read_upload
from hf_nullspace.cli.demo_panel import panel_html, shown_noise
from hf_nullspace.cli.main import main
from hf_nullspace.probing.explorer import CORRUPTION, ENCODER, EXACT, EXACT_CONTROL, Explored, NoiseExplorer


def explored(**changes) -> Explored:
    values = {
        "pixels": torch.full((3, 8, 8), 0.5),
        "noise": torch.zeros(3, 8, 8),
        "probabilities": torch.tensor([0.1, 0.7, 0.2]),
        "clean_probabilities": torch.tensor([0.6, 0.3, 0.1]),
        "class_names": ["cat", "<b>dog</b>", "bird"],
        "relative_logit_change": 0.25,
        "probability_mse": 0.42,
        "is_unchanged": False,
        "words": "Not certified: 1 < 2.",
    }
    return Explored(**{**values, **changes})


def test_a_panel_has_numbers_classes_and_words_and_escapes_names():
    panel = panel_html("<script>x</script>", explored())
    for text in (">changed<", "2.5e-01 of their norm", "4.2e-01", "70.0 %", "20.0 %", "Not certified: 1 &lt; 2."):
        assert text in panel
    assert "<script>" not in panel and "<b>dog" not in panel and "&lt;b&gt;dog&lt;/b&gt; 70.0 %" in panel
    assert panel.index("70.0 %") < panel.index("20.0 %") < panel.index("10.0 %")
    assert panel.count("data:image/png;base64,") == 2 and "http" not in panel
    assert ">unchanged<" in panel_html("model", explored(is_unchanged=True))


def test_noise_is_shown_about_grey():
    assert torch.equal(shown_noise(torch.zeros(3, 2, 2)), torch.full((3, 2, 2), 0.5))
    noise = torch.tensor([[[0.1, -0.1], [0.1, -0.1]]])
    torch.testing.assert_close(shown_noise(noise), torch.tensor([[[0.75, 0.25], [0.75, 0.25]]]))


def test_a_page_asks_every_model(make_vit):
    models = {"before": make_vit(initializer_range=0.2), "after": make_vit(initializer_range=0.2, hidden_size=192)}
    page = DemoPage({name: NoiseExplorer(model, PROCESSOR) for name, model in models.items()}, random_pictures(1))
    assert EXACT not in page.kinds and CORRUPTION in page.kinds, "only what both can be asked about"
    panels = page.panels(page.open(page.examples[0]), CORRUPTION, 100, "contrast")
    assert ["before" in panels[0], "after" in panels[1]] == [True, True] and panels[0] != panels[1]
    assert all("contrast at severity 5 of 5" in panel for panel in panels)


def test_an_upload_is_read_upright_and_its_file_deleted(tmp_path):
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    read = read_upload(str(tmp_path / "turned.png"))
    assert read.size == (2, 4) and np.array_equal(np.asarray(read), np.rot90(np.asarray(picture), -1))
    assert list(tmp_path.iterdir()) == []


def test_uploads_that_are_refused_are_deleted_too(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="^text.png cannot be read"):
        read_upload(str(tmp_path / "text.png"))
    side = int(MAX_PIXELS**0.5) + 10
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=f"huge.png has {side} x {side} pixels, but at most 50 million are taken"):
        read_upload(str(tmp_path / "huge.png"))
    assert list(tmp_path.iterdir()) == []


def test_what_gradio_writes_goes_into_a_folder_that_is_gone_at_the_end(monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with own_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.is_dir()
        (folder / "upload.png").write_bytes(b"picture")
    assert not folder.exists() and "GRADIO_TEMP_DIR" not in os.environ
    with pytest.raises(KeyboardInterrupt), own_folder() as folder:
        raise KeyboardInterrupt
    assert not folder.exists()


def test_a_port_in_use_is_said_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            main(["demo", "--server_port", str(port)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert (
        f"Nothing can listen at port {port} of 127.0.0.1" in message
        and "Name another one with `--server_port`" in message
    )
    assert message.count("\n") == 1
    check_port("127.0.0.1", None)
    with pytest.raises(ValueError, match="Nothing can listen at port 99999 of 127.0.0.1: .*0-65535"):
        check_port("127.0.0.1", 99999)


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        main(["demo"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "hf-nullspace demo: error: The demo needs Gradio: `pip install 'hf_nullspace[demo]'`.\n"
    )


def test_the_page_is_for_this_machine_unless_told():
    _, args = parse_demo_arguments(["a/b", "c/d"], "demo")
    assert (args.models, args.server_name, args.server_port) == (["a/b", "c/d"], "127.0.0.1", None)
    _, args = parse_demo_arguments(["--server_name", "0.0.0.0", "--server_port", "7000"], "demo")
    assert (args.models, args.server_name, args.server_port) == ([], "0.0.0.0", 7000)


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["a/b", "c/d", "e/f"], ValueError, "At most 2 models fit beside each other, but got 3"),
        (["a/b", "--digits_max_steps", "9"], ValueError, "`--digits_max_steps` and `--models` do not fit together"),
        (["--images", "nowhere"], FileNotFoundError, "There is no folder 'nowhere'"),
        (["./nowhere"], FileNotFoundError, "There is no folder './nowhere'"),
        (["--server_port", "0"], ValueError, "`--server_port` must be at least 1"),
    ],
)
def test_flags_that_make_no_sense(argv, error, message):
    with pytest.raises(error, match=message):
        parse_demo_arguments(argv, "demo")


def test_a_folder_brings_its_own_noise_or_it_is_searched_on_the_pictures(make_vit, photos, tmp_path):
    args = parse_demo_arguments(
        [str(photos / "model"), "--images", str(photos / "images"), "--max_images", "12"], "demo"
    )
    page = make_page(*args)
    assert (
        list(page.explorers) == ["model"]
        and len(page.examples) == 8
        and page.kinds[:3] == [EXACT, EXACT_CONTROL, ENCODER]
    )
    noise = page.explorers["model"].noise
    assert noise.config.method == "boundary" and noise.tensor.shape == (1, 16, 96)
    assert "Not certified" in page.panels(page.open(page.examples[0]), ENCODER, 100, "fog")[0]
    model = make_vit()
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    own = NullspaceNoise(torch.ones(1, 4, 32).cumsum(-1), noise.certificate, noise.config)
    own.save_pretrained(tmp_path)
    page = make_page(*parse_demo_arguments([str(tmp_path), "--images", str(photos / "images")], "demo"))
    (explorer,) = page.explorers.values()
    assert torch.equal(explorer.noise.tensor, own.tensor)
