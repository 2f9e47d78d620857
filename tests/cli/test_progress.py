"""What commands say of their progress: bars on a terminal, and in a log a line a phase without carriage returns."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading

import pytest
from random_pictures import PROCESSOR, save_class_folders

from hf_nullspace.cli.main import main


@pytest.fixture(scope="module")
def folders(make_vit, tmp_path_factory):
    """A model with five classes, and four pictures of each class in a folder of its own."""
    root = tmp_path_factory.mktemp("progress")
    save_class_folders(root / "pictures")
    make_vit(classifier_scale=20).save_pretrained(root / "model")
    PROCESSOR.save_pretrained(root / "model")
    return root


def commands(folders) -> dict[str, list[str]]:
    """The words of each command."""
    noise = ["--max_steps", "2", "--num_images", "4", "--num_certificate_images", "4", "--batch_size", "4"]
    photos = str(folders / "pictures")
    return {
        "evaluate": ["--images", photos, "--profile", "preview", "--batch_size", "20"],
        "synthesize": ["--train_dir", photos, "--train_val_split", "0.25", *noise],
        "probe": ["--images", photos, "--max_images", "8", "--max_steps", "1", "--lambdas", "0.1"],
    }


def run(command: str, folders, output_dir) -> None:
    words = commands(folders)[command]
    main([command, str(folders / "model"), *words, "--output_dir", str(output_dir)])


@pytest.mark.parametrize(
    ("command", "phases"),
    [
        (
            "evaluate",
            [
                r"Checking pictures: 20 of 20 pictures in \d+ s\.",
                r"Measuring 5 columns, 100 images in all \.\.\.",
                r"Measuring: clean done in \d+ s; 20 of 180 passes, about \d+ s left\.",
                r"Measuring: fgsm done in \d+ s; 180 of 180 passes\.",
                r"Measuring: 180 of 180 passes in \d+ s\.",
            ],
        ),
        ("synthesize", [r"Synthesising noise: 2 of 2 steps in \d+ s\."]),
        (
            "probe",
            [r"Probing the input: 3 of 3 parts in \d+ s\.", r"Probing the encoder: (\d+) of \1 steps in \d+ s\."],
        ),
    ],
)
def test_a_log_has_a_line_a_phase(folders, tmp_path, monkeypatch, command, phases):
    with open(tmp_path / "log", "w") as log:
        monkeypatch.setattr("sys.stderr", log)
        run(command, folders, tmp_path / "out")
        monkeypatch.undo()
    text = (tmp_path / "log").read_bytes().decode()
    assert "\r" not in text and "%|" not in text
    lines = text.splitlines()
    for phase in phases:
        found = [line for line in lines if re.fullmatch(rf"\d\d:\d\d:\d\d INFO {phase}", line)]
        assert found, (phase, lines)
    assert len(lines) < 30


def test_a_terminal_has_bars_that_say_what_runs_how_far_and_how_long_still(folders, tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    shown = []

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                shown.append(part)
        except OSError:  # the other end was closed
            os.close(ours)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        run("evaluate", folders, tmp_path)
        monkeypatch.undo()
    reader.join()
    text = b"".join(shown).decode()
    assert re.search(r"\rMeasuring: contrast_3: +\d+%\|.*40\.0/180 \[\d\d:\d\d<\d\d:\d\d, ", text), text
    assert "passes" not in text, "bars, and no lines of a log beside them"
