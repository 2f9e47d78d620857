"""The pictures that claims are measured on are read as the commands read them that made the claims."""

import pytest
from random_pictures import random_pictures

from hf_nullspace.data.image_tables import read_folder
from hf_nullspace.hub.verification_images import PublishedImages
from hf_nullspace.robustness.sources import image_source


@pytest.fixture
def photos(tmp_path):
    for index, picture in enumerate(random_pictures(6)):
        folder = tmp_path / "photos" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def model(make_vit):
    return make_vit(num_labels=2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})


def fingerprint_of(photos, model):
    return image_source(read_folder(str(photos), "images"), model, "evaluation").fingerprint()


def test_a_slash_at_the_end_changes_nothing(photos, model):
    fingerprint = fingerprint_of(photos, model)
    for folder in (f"{photos}", f"{photos}/", photos):
        source, are_same = PublishedImages(None, 42, (folder,)).labelled(model, 6, fingerprint)
        assert are_same and len(source) == 6


def test_pictures_that_cannot_be_read_are_left_out_and_said_once(photos, model, caplog):
    fingerprint = fingerprint_of(photos, model)
    (photos / "cat" / "bad.png").write_bytes(b"")
    (photos / "dog" / "1000.png").write_bytes((photos / "dog" / "1.png").read_bytes()[:40])
    images = PublishedImages(None, 42, (photos,))
    source, are_same = images.labelled(model, 6, fingerprint)
    assert are_same and len(source) == len(images.validation(model)) == 6
    assert caplog.text.count("Skipping 2 of 8 images") == 1, "read once for all claims"


def test_pictures_without_folders_have_no_labels(photos, model):
    assert PublishedImages(None, 42, (photos / "cat",)).labelled(model, 3, "") is None
