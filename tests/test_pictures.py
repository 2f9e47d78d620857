"""Picture files of every kind become RGB and normalised pixels inside [0, 1]."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_nullspace.pictures import pixel_statistics, read_pictures, to_pixel_values


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.new("L", (5, 4), 128).save(tmp_path / "b_grey.png")
    Image.new("RGBA", (5, 4), (255, 0, 0, 0)).save(tmp_path / "deeper" / "transparent.png")
    Image.new("RGB", (5, 4), (0, 0, 255)).save(tmp_path / "a_colour.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_grey_and_transparent_pictures_become_rgb(folder):
    pictures = read_pictures(folder)
    assert [picture.mode for picture in pictures] == ["RGB"] * 3
    assert [np.asarray(picture)[0, 0].tolist() for picture in pictures[1:]] == [[128] * 3, [255, 0, 0]]
    assert len(read_pictures(folder, max_images=2)) == 2


def test_a_seed_mixes_the_sub_folders_and_gives_the_same_pictures_again(tmp_path):
    for shade in range(40):
        path = tmp_path / str(shade // 20) / f"{shade:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), shade).save(path)
    shades, again, others = (
        [np.asarray(picture)[0, 0, 0] for picture in read_pictures(tmp_path, 20, seed)] for seed in (0, 0, 1)
    )
    assert shades == again != others
    assert 5 <= sum(shade < 20 for shade in shades) <= 15
    assert sorted(np.asarray(picture)[0, 0, 0] for picture in read_pictures(tmp_path, seed=0)) == list(range(40))


def test_unreadable_pictures_are_left_out_and_named(folder, caplog):
    (folder / "broken.png").write_bytes(b"no picture")
    assert len(read_pictures(folder)) == 3
    assert "broken.png" in caplog.text


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_pictures(tmp_path / "missing")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no picture that can be read; it has 1"):
        read_pictures(tmp_path)


def test_pixels_stay_in_the_box_and_are_normalised():
    picture = Image.fromarray((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8))
    processor = ViTImageProcessorPil(
        size={"height": 20, "width": 20}, resample=3, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    values = to_pixel_values([picture], processor)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in pixel_statistics(processor))
    pixels = values * std + mean
    assert values.shape == (1, 3, 20, 20)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    assert torch.allclose(pixels[:, 0], pixels[:, 2], atol=1e-6)
    assert pixel_statistics(ViTImageProcessorPil(do_normalize=False)) == ([0.0] * 3, [1.0] * 3)
