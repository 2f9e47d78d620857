"""Labels of a dataset as places among the model's logits, and pictures that cannot be read."""

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_nullspace.robustness.sources import class_places, image_source


def config(*names):
    return SimpleNamespace(id2label=dict(enumerate(names)))


def test_names_decide_whatever_their_order():
    places = class_places(["dog", "cat"], [], config("cat", "cow", "dog"))
    assert places == {0: 2, 1: 0}


def test_order_decides_where_names_differ_or_say_nothing(caplog):
    assert class_places(["n01", "n02"], [], config("LABEL_0", "LABEL_1")) == {0: 0, 1: 1}
    assert "order" not in caplog.text
    assert class_places(["n01", "n02"], [], config("cat", "dog")) == {0: 0, 1: 1}
    assert "matched to the model's by their order" in caplog.text
    # ImageNet has two cranes: names that stand for two classes decide nothing.
    assert class_places(["crane", "crane"], [], config("crane", "crane")) == {0: 0, 1: 1}


def test_labels_without_a_class_list():
    assert class_places(None, ["dog"], config("cat", "dog")) == {"cat": 0, "dog": 1}
    assert class_places(None, [1, 0], config("cat", "dog")) == {0: 0, 1: 1}
    assert class_places(None, [3, 0], None) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_another_class_list_is_refused():
    with pytest.raises(ValueError, match=r"3 classes and the model 2, and 1 of.*\['cow'\]"):
        class_places(["cat", "cow", "dog"], [], config("cat", "dog"))


def dataset(labels, feature, pictures=None):
    pictures = pictures or [PILImage.new("L", (8, 8), index) for index in range(len(labels))]
    return Dataset.from_dict({"image": pictures, "label": labels}, Features({"image": Image(), "label": feature}))


def model(*names):
    return SimpleNamespace(config=config(*names))


def test_source_reads_pictures_and_maps_labels():
    source = image_source(dataset([0, 1, 1], ClassLabel(names=["dog", "cat"])), model("cat", "dog"), "mine")
    assert source.labels == [1, 0, 0] and len(source) == 3
    assert [picture.getpixel((0, 0)) for picture in source.read([2, 0])] == [2, 0]


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


@pytest.mark.parametrize("labels", [[0, -1], [0, 2], [0, None]])
def test_labels_that_the_model_has_not_are_refused(labels):
    with pytest.raises(ValueError, match=f"{labels[1]}.*none of the model's 2 classes"):
        image_source(dataset(labels, Value("int64")), model("cat", "dog"), "mine")


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    source = image_source(dataset([0], ClassLabel(2), [str(tmp_path / "broken.png")]), model("cat", "dog"), "mine")
    with pytest.raises(ValueError, match="Image 0 of 'mine'.*broken.png.*cannot be read"):
        source.read([0])


def test_something_else_than_a_dataset_is_refused():
    with pytest.raises(ValueError, match="`datasets.Dataset`.*it is a list"):
        image_source([{"image": None, "label": 0}], model("cat", "dog"), "mine")
