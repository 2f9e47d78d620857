"""Image datasets by folder and file: found, split, checked, and every bad picture or label named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTImageProcessorPil

from hf_nullspace.data.splits import check_columns, drop_unreadable_images, load_image_splits
from hf_nullspace.models.preprocessing import image_transform


def picture(seed):
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder(name, cat=2, dog=3)` writes that many pictures for each class."""

    def make(name, **counts):
        for place, (label, count) in enumerate(counts.items()):
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(count):
                picture(100 * place + index).save(tmp_path / name / label / f"{label}-{index}.png")
        return str(tmp_path / name)

    return make


@pytest.fixture
def load(tmp_path):
    def load_splits(**sources):
        return load_image_splits(**sources, cache_dir=str(tmp_path / "cache"))

    return load_splits


def make_dataset(labels, label_feature):
    features = Features({"image": Image(), "label": label_feature})
    pictures = [picture(index) for index in range(len(labels))]
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def pixels_of(dataset):
    return [np.asarray(image).tobytes() for image in dataset["image"]]


def test_imagefolder_with_splits(make_folder, load):
    splits = load(train_dir=make_folder("train", cat=2, dog=3), validation_dir=make_folder("val", cat=1, dog=2))
    assert check_columns(splits, "image", "label") == ["cat", "dog"]
    assert splits["train"]["label"] == [0, 0, 1, 1, 1]
    assert splits["validation"]["label"] == [0, 1, 1]
    assert pixels_of(splits["train"])[3] == picture(101).tobytes()


def test_dataset_folder_uses_test_for_validation(make_folder, load, tmp_path):
    make_folder("pets/train", cat=2, dog=2)
    make_folder("pets/test", cat=1, dog=1)
    splits = load(dataset_name=str(tmp_path / "pets"))
    assert splits["validation"]["label"] == [0, 1]
    assert splits["train"]["label"] == [0, 0, 1, 1]


def test_parquet(load, tmp_path):
    dataset = make_dataset([0, 1, 2, 1], ClassLabel(names=["a", "b", "c"]))
    files = {}
    for name in ("train_file", "validation_file"):
        files[name] = str(tmp_path / f"{name}.parquet")
        dataset.select([0, 1, 2] if name == "train_file" else [3]).to_parquet(files[name])
    splits = load(**files)
    assert check_columns(splits, "image", "label") == ["a", "b", "c"]
    assert (splits["train"]["label"], splits["validation"]["label"]) == ([0, 1, 2], [1])
    assert pixels_of(splits["validation"]) == [picture(3).tobytes()]


def test_validation_is_split_off_deterministically(make_folder, load):
    folder = make_folder("train", cat=10, dog=10)
    first, again, other = (load(train_dir=folder, train_val_split=0.25, seed=seed) for seed in (0, 0, 1))
    assert dict(first.num_rows) == {"train": 15, "validation": 5}
    assert sorted(pixels_of(first["train"]) + pixels_of(first["validation"])) == sorted(
        picture(seed).tobytes() for seed in [*range(10), *range(100, 110)]
    )
    assert pixels_of(first["validation"]) == pixels_of(again["validation"])
    assert set(pixels_of(first["validation"])) != set(pixels_of(other["validation"]))


@pytest.mark.parametrize(
    "sources, given",
    [
        ({}, "none"),
        ({"train_dir": "a", "train_file": "b"}, r"\['train_dir', 'train_file'\]"),
        ({"dataset_name": "a", "train_dir": "b"}, r"\['dataset_name', 'train_dir'\]"),
        ({"validation_dir": "a"}, "none"),
    ],
)
def test_exactly_one_source(sources, given):
    with pytest.raises(ValueError, match=rf"exactly one of .*got {given}"):
        load_image_splits(**sources)


@pytest.mark.parametrize(
    "image_column, label_column, missing, flag",
    [("picture", "label", "picture", "--image_column_name"), ("image", "class", "class", "--label_column_name")],
)
def test_wrong_column_is_named(image_column, label_column, missing, flag):
    splits = DatasetDict(train=make_dataset([0], ClassLabel(names=["a"])))
    with pytest.raises(ValueError, match=rf"train split has no column '{missing}', only .*{flag}"):
        check_columns(splits, image_column, label_column)


def test_label_outside_the_classes_is_refused():
    feature = ClassLabel(names=["a", "b"])
    splits = DatasetDict(train=make_dataset([0, 1], feature), validation=make_dataset([1, -1], feature))
    with pytest.raises(ValueError, match="validation split has labels from -1 to 1, but there are 2 classes"):
        check_columns(splits, "image", "label")


@pytest.mark.parametrize(
    "feature, train, validation, names",
    [
        (Value("string"), ["dog", "cat", "dog"], ["cat"], ["cat", "dog"]),
        (Value("int64"), [7, 3, 10], [3], ["3", "7", "10"]),
    ],
    ids=["text", "integers"],
)
def test_labels_are_encoded(feature, train, validation, names):
    splits = DatasetDict(train=make_dataset(train, feature), validation=make_dataset(validation, feature))
    assert check_columns(splits, "image", "label") == names
    for split, labels in (("train", train), ("validation", validation)):
        assert splits[split].features["label"] == ClassLabel(names=names)
        assert [names[place] for place in splits[split]["label"]] == [str(label) for label in labels]
        assert pixels_of(splits[split]) == [picture(index).tobytes() for index in range(len(labels))]


def test_label_that_training_lacks_is_refused():
    splits = DatasetDict(
        train=make_dataset(["cat", "dog"], Value("string")), validation=make_dataset(["cow"], Value("string"))
    )
    with pytest.raises(ValueError, match=r"validation split has labels \['cow'\].*\['cat', 'dog'\]"):
        check_columns(splits, "image", "label")


def test_classes_in_another_order_are_mapped_by_name():
    splits = DatasetDict(
        train=make_dataset([0, 1], ClassLabel(names=["cat", "dog"])),
        validation=make_dataset([0, 1, 1], ClassLabel(names=["dog", "cat"])),
    )
    assert check_columns(splits, "image", "label") == ["cat", "dog"]
    assert splits["validation"]["label"][:] == [1, 0, 0]


def test_class_folder_that_training_lacks_is_named(make_folder, load, caplog):
    splits = load(train_dir=make_folder("train", cat=2, dog=2), validation_dir=make_folder("val", cat=1, eel=1))
    assert check_columns(splits, "image", "label") == ["cat", "dog", "eel"]
    assert "validation split has images of ['eel']" in caplog.text


@pytest.fixture(params=["folder", "parquet"])
def make_damaged(request, make_folder, load, tmp_path):
    """`make_damaged(count)` gives four pictures, the first `count` of them cut short."""

    def make(count):
        folder = make_folder("train", cat=4)
        for index in range(count):
            path = tmp_path / "train" / "cat" / f"cat-{index}.png"
            path.write_bytes(path.read_bytes()[:60])
        dataset = load(train_dir=folder, train_val_split=0.25)
        parts = [dataset["train"], dataset["validation"]]
        rows = [row for part in parts for row in part.cast_column("image", Image(decode=False))["image"]]
        rows.sort(key=lambda row: row["path"])
        if request.param == "parquet":
            rows = [{"bytes": Path(row["path"]).read_bytes(), "path": row["path"]} for row in rows]
        return Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))

    return make


def test_good_images_are_all_kept(make_damaged):
    dataset = make_damaged(0)
    assert drop_unreadable_images(dataset, "image") is dataset


def test_corrupt_image_is_named(make_damaged):
    with pytest.raises(ValueError, match="1 of 4 images cannot be read: .*cat-0.png.*--skip_bad_images"):
        drop_unreadable_images(make_damaged(1), "image")


def test_corrupt_images_are_skipped(make_damaged):
    kept = drop_unreadable_images(make_damaged(2), "image", skip_bad_images=True)
    assert pixels_of(kept) == [picture(2).tobytes(), picture(3).tobytes()]


def test_all_images_corrupt_is_refused(make_damaged):
    with pytest.raises(ValueError, match="None of the 4 images can be read: .*cat-0.png"):
        drop_unreadable_images(make_damaged(4), "image", skip_bad_images=True)


def test_image_transform():
    processor = ViTImageProcessorPil(size={"height": 6, "width": 6})
    dataset = make_dataset([1, 0], ClassLabel(names=["a", "b"])).with_transform(
        image_transform(processor, "image", "label")
    )
    row = dataset[0]
    expected = torch.from_numpy(np.asarray(picture(0)).copy()).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(row["pixel_values"], expected, rtol=0, atol=1e-6)
    assert row["labels"] == 1
