"""Labels of a dataset as places among the model's logits, and pictures that cannot be read."""

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_nullspace.robustness.sources import image_source


def dataset(labels, feature, pictures=None):
    pictures = pictures or [PILImage.new("L", (8, 8), index) for index in range(len(labels))]
    return Dataset.from_dict({"image": pictures, "label": labels}, Features({"image": Image(), "label": feature}))


def model(*names):
    return SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(names))))


def test_source_reads_pictures_and_maps_labels():
    source = image_source(dataset([0, 1, 1], ClassLabel(names=["dog", "cat"])), model("cat", "dog"), "mine")
    assert source.labels == [1, 0, 0] and len(source) == 3
    assert [picture.convert("L").getpixel((0, 0)) for picture in source.read([2, 0])] == [2, 0]


def test_fingerprint_is_of_labels_and_pictures():
    feature, classes = ClassLabel(2), model("LABEL_0", "LABEL_1")
    others = [PILImage.new("L", (8, 8), value) for value in (0, 9)]
    fingerprints = [
        image_source(images, classes, "mine").fingerprint()
        for images in (
            dataset([0, 1], feature),
            dataset([0, 1], feature),
            dataset([1, 1], feature),
            dataset([0, 1], feature, others),
        )
    ]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3


def test_a_model_that_does_not_name_its_classes_takes_their_order(caplog):
    images = dataset([0, 1], ClassLabel(names=["dog", "cat"]))
    assert image_source(images, model("LABEL_0", "LABEL_1"), "mine").labels == [0, 1]
    assert "in their order" in caplog.text
    assert image_source(images, SimpleNamespace(), "mine").labels == [0, 1]


def test_classes_without_a_picture_compete_too():
    source = image_source(dataset([0, 1], ClassLabel(names=["dog", "cat"])), model("cat", "cow", "dog"), "mine")
    assert source.labels == [2, 0] and source.class_indices is None


def test_a_dataset_of_other_classes_or_without_a_class_list_is_refused():
    with pytest.raises(ValueError, match=r"no class \['cow'\]"):
        image_source(dataset([0, 1], ClassLabel(names=["cow", "cat"])), model("cat", "dog"), "mine")
    with pytest.raises(ValueError, match="no class list"):
        image_source(dataset([0, 1], Value("int64")), model("cat", "dog"), "mine")


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = dataset([0], ClassLabel(names=["cat", "dog"]), [str(tmp_path / "broken.png")])
    source = image_source(images, model("cat", "dog"), "mine")
    with pytest.raises(ValueError, match="Image 0 of 'mine'.*broken.png.*cannot be read"):
        source.read([0])


def test_something_else_than_a_dataset_is_refused():
    with pytest.raises(ValueError, match="`datasets.Dataset`.*got a list"):
        image_source([{"image": None, "label": 0}], model("cat", "dog"), "mine")
