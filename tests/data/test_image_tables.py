"""Parquet, CSV and JSON-lines files, metadata, and local dataset folders: each split by itself, labels by their names."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_nullspace.data.image_tables import read_dataset
from hf_nullspace.data.splits import check_columns, drop_unreadable_images, load_image_splits


def picture(value):
    return Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8))


def dataset(labels, feature, **columns):
    pictures = [picture(index) for index in range(len(labels))]
    features = Features({"image": ImageFeature(), "label": feature, **{name: Value("int64") for name in columns}})
    return Dataset.from_dict({"image": pictures, "label": labels, **columns}, features=features)


def rows(splits, split):
    names = splits[split].features["label"].names
    return [(names[row["label"]], row["image"].getpixel((0, 0))[0]) for row in splits[split]]


@pytest.fixture
def load(tmp_path):
    def load_splits(image="image", label="label", **sources):
        sources = {name: str(value) for name, value in sources.items()}
        splits = load_image_splits(
            **sources, cache_dir=str(tmp_path / "cache"), image_column_name=image, label_column_name=label
        )
        return splits, check_columns(splits, image, label)

    return load_splits


@pytest.fixture
def pictures(tmp_path):
    """Six pictures, the pixels of each its number, beside tables that may name them."""
    for index in range(6):
        (tmp_path / "p [x]" / "files").mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / "p [x]" / "files" / f"{index}.png")
    return tmp_path / "p [x]"


CAT_DOG = ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        (ClassLabel(names=["dog", "cat"]), [1, 0, 0]),
        (ClassLabel(names=["dog", "eel", "cat"]), [2, 0, 0]),
        (Value("string"), ["cat", "dog", "dog"]),
    ],
    ids=["order", "more", "text"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_parquet_labels_mean_their_names(feature, labels, swapped, load, tmp_path):
    dataset([0, 1, 1], CAT_DOG).to_parquet(tmp_path / "train [1].parquet")
    dataset(labels, feature).to_parquet(tmp_path / "validation *.parquet")
    files = [tmp_path / "train [1].parquet", tmp_path / "validation *.parquet"][:: -1 if swapped else 1]
    splits, names = load(train_file=files[0], validation_file=files[1])
    assert set(names) >= {"cat", "dog"}
    assert rows(splits, "train") == rows(splits, "validation") == [("cat", 0), ("dog", 1), ("dog", 2)]


@pytest.mark.parametrize(
    ("feature", "labels", "message"),
    [
        (ClassLabel(names=["cat", "eel"]), [0, 1], r"validation split has labels \['eel'\].*\['cat', 'dog'\]"),
        (ClassLabel(names=["0", "1"]), [0, 1], r"validation split has labels \['0', '1'\].*\['cat', 'dog'\]"),
        (Value("int64"), [0, 1], r"validation split has integers for labels, such as 0.*\['cat', 'dog'\]"),
        (Value("string"), ["Cat", "dog"], r"validation split has labels \['Cat'\]"),
        (Value("string"), ["cat", None], "validation split has images without a label.*1 of 2.*image 1"),
        (Value("float32"), [0.5, 1], "holds Value.*float32.*must be classes"),
    ],
)
def test_parquet_of_other_classes_is_refused(feature, labels, message, load, tmp_path):
    dataset([0, 1], CAT_DOG).to_parquet(tmp_path / "train.parquet")
    dataset(labels, feature).to_parquet(tmp_path / "validation.parquet")
    with pytest.raises(ValueError, match=message):
        load(train_file=tmp_path / "train.parquet", validation_file=tmp_path / "validation.parquet")


def test_integers_that_are_also_the_names_are_taken(load, tmp_path):
    dataset([0, 1], ClassLabel(names=["0", "1"])).to_parquet(tmp_path / "train.parquet")
    dataset([1, 0], Value("int64")).to_parquet(tmp_path / "validation.parquet")
    splits, _ = load(train_file=tmp_path / "train.parquet", validation_file=tmp_path / "validation.parquet")
    assert splits["validation"]["label"][:] == [1, 0]
    dataset([0, 1], ClassLabel(names=["1", "0"])).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="integers for labels"):
        load(train_file=tmp_path / "train.parquet", validation_file=tmp_path / "validation.parquet")


LABELS = ["cat", "None", "cat", "7", "None", "7"]


def write_table(folder, name, kind, places, column="image", label="label", labels=LABELS):
    path = folder / f"{name}.{kind}"
    table = [{column: f"files/{place}.png", label: labels[place]} for place in places]
    if kind in ("csv", "tsv"):
        lines = [[column, label], *([*row.values()] for row in table)]
        path.write_text("".join(("," if kind == "csv" else "\t").join(map(str, line)) + "\n" for line in lines))
    elif kind == "parquet":
        Dataset.from_list(table).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("column", ["image", "file_name", "photo"])
def test_tables_that_name_pictures_beside_them(kind, column, load, pictures):
    image = "photo" if column == "photo" else "image"
    train = write_table(pictures, "train", kind, [0, 1, 2, 3], column)
    validation = write_table(pictures, "validation", kind, [5, 4], column)
    splits, names = load(image, train_file=train, validation_file=validation)
    assert names == ["7", "None", "cat"]
    assert [row["label"] for row in splits["validation"]] == [0, 1]
    assert [row[image].getpixel((0, 0))[0] for row in splits["train"]] == [0, 1, 2, 3]
    assert [row[image].getpixel((0, 0))[0] for row in splits["validation"]] == [5, 4]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["007", "7", "007", "08"], ["007", "08", "7"]),
        (["1e3", "1000", "1e3", "1"], ["1", "1000", "1e3"]),
        (["+1", "1", "1", "+1"], ["+1", "1"]),
        (["2", "10", "2", "0"], ["0", "2", "10"]),
        (["0.5e1", "b", "007", "b"], ["0.5e1", "007", "b"]),
    ],
    ids=["zeros", "exponents", "signs", "integers", "words"],
)
def test_codes_of_classes_are_no_numbers(kind, labels, names, load, pictures):
    table = write_table(pictures, "train", kind, range(4), labels=labels)
    splits, found = load(train_file=table, validation_file=table)
    assert sorted(found) == sorted(names)
    assert [found[label] for label in splits["train"]["label"]] == labels
    assert [row["image"].getpixel((0, 0))[0] for row in splits["train"]] == [0, 1, 2, 3]


def test_numbers_that_are_no_classes_stay_refused(load, pictures):
    table = write_table(pictures, "train", "csv", range(4), labels=["1.5e-3", "0.2", "007.5", "1"])
    with pytest.raises(ValueError, match="labels must be classes"):
        load(train_file=table, validation_file=table)


def test_codes_in_the_metadata_of_a_folder_are_refused(load, pictures):
    write_table(pictures, "metadata", "csv", range(6), "file_name", labels=["007", "7", "8", "007", "7", "8"])
    with pytest.raises(ValueError, match=r"metadata.csv' \(`--train_dir`\) has labels such as 007"):
        load(train_dir=pictures)


def test_integers_of_one_table_and_texts_of_another(load, pictures):
    train = write_table(pictures, "train", "csv", range(4), labels=["7", "10", "7", "9"])
    validation = write_table(pictures, "validation", "jsonl", [0, 1], labels=["10", "9"])
    splits, names = load(train_file=train, validation_file=validation)
    assert names == ["7", "9", "10"] and splits["validation"]["label"][:] == [2, 1]
    with pytest.raises(ValueError, match=r"has labels \['7', '9'\]|integers for labels"):
        load(train_file=validation, validation_file=train)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_folders_with_metadata(kind, load, pictures):
    write_table(pictures, "metadata", kind, [3, 2, 1, 0], "file_name", labels=["cat", "dog", "cat", "eel"])
    splits, names = load(train_dir=pictures, validation_dir=f"{pictures}/")
    assert names == ["cat", "dog", "eel"]
    assert rows(splits, "train") == rows(splits, "validation") == [("eel", 3), ("cat", 2), ("dog", 1), ("cat", 0)]


def test_a_folder_and_a_table_go_together(load, pictures, tmp_path):
    for index, name in enumerate(["cat", "None", "7"]):
        (tmp_path / "classes" / name).mkdir(parents=True)
        picture(index).save(tmp_path / "classes" / name / "0.png")
    table = write_table(pictures, "validation", "csv", [3, 0, 1])
    splits, names = load(train_dir=tmp_path / "classes", validation_file=table)
    assert names == ["7", "None", "cat"]
    assert rows(splits, "validation") == [("7", 3), ("cat", 0), ("None", 1)]


def test_raw_bytes_are_pictures(load, pictures, tmp_path):
    content = [(pictures / "files" / f"{place}.png").read_bytes() for place in range(4)]
    Dataset.from_dict({"image": content, "label": [0, 1, 0, 1]}).to_parquet(tmp_path / "bytes.parquet")
    splits, _ = load(train_file=tmp_path / "bytes.parquet", validation_file=tmp_path / "bytes.parquet")
    assert rows(splits, "train") == [("0", 0), ("1", 1), ("0", 2), ("1", 3)]


def test_all_missing_pictures_of_a_table_are_named_at_once(load, pictures):
    table = write_table(pictures, "train", "csv", [0, 1, 2, 3])
    for place in (1, 3):
        (pictures / "files" / f"{place}.png").unlink()
    splits, _ = load(train_file=table, validation_file=table)
    with pytest.raises(ValueError, match="2 of 4 images cannot be read: .*1.png.*3.png.*--skip_bad_images"):
        drop_unreadable_images(splits["train"], "image")
    assert rows({"train": drop_unreadable_images(splits["train"], "image", True)}, "train") == [("cat", 0), ("cat", 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", None, r"There is no file '.*x.parquet' \(`--train_file`\)"),
        ("x.txt", b"x", "takes a file of .parquet, .csv.*x.txt"),
        ("x.csv", b"", r"The file '.*x.csv' \(`--train_file`\) is empty"),
        ("x.parquet", b"nothing of that kind", "The file '.*x.parquet'.* cannot be read: "),
        ("x.jsonl", b"{nothing", "The file '.*x.jsonl'.* cannot be read: "),
        ("x.csv", b"image,label\n1,cat\n", "holds no pictures but Value"),
        ("x.csv", b"a,b\n1,cat\n", r"no column 'image', only \['a', 'b'\].*--image_column_name"),
        ("x.csv", b"image,b\n1.png,cat\n", r"no column 'label', only \['image', 'b'\].*--label_column_name"),
        ("x.csv", b"image,label\n1.png,\n2.png,cat\n", "images without a label.*1 of 2"),
        ("x.csv", b"image,label\n", "The file '.*x.csv'.* holds no rows"),
    ],
)
def test_what_is_wrong_with_a_file(name, content, message, load, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(train_file=tmp_path / name, validation_file=write_table(tmp_path, "good", "csv", [0, 1]))


def test_a_folder_is_no_file(load, tmp_path):
    with pytest.raises(ValueError, match="`--train_file` takes a file, but .* is a folder"):
        load(train_file=tmp_path)


# ---- Local dataset folders ----


@pytest.mark.parametrize("name", ["pets", "pets/"])
def test_a_dataset_folder_of_parquet_files_with_other_orders(name, load, tmp_path):
    (tmp_path / "pets" / "data").mkdir(parents=True)
    dataset([0, 1, 1], CAT_DOG).to_parquet(tmp_path / "pets" / "data" / "train-00000-of-00001.parquet")
    for split, names in (("validation", ["dog", "cat"]), ("test", ["eel", "fox"])):
        dataset([1, 0, 0], ClassLabel(names=names)).to_parquet(tmp_path / f"pets/data/{split}-00000-of-00001.parquet")
    splits, names = load(dataset_name=f"{tmp_path}/{name}")
    assert names == ["cat", "dog"] and set(splits) == {"train", "validation"}
    assert rows(splits, "train") == rows(splits, "validation") == [("cat", 0), ("dog", 1), ("dog", 2)]


def test_parts_of_one_split_with_other_orders_are_refused(load, tmp_path):
    (tmp_path / "pets").mkdir()
    dataset([0, 1], CAT_DOG).to_parquet(tmp_path / "pets" / "train-00000-of-00002.parquet")
    dataset([0, 1], ClassLabel(names=["dog", "cat"])).to_parquet(tmp_path / "pets" / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=r"Two files of the train split.*\['cat', 'dog'\].*\['dog', 'cat'\]"):
        load(dataset_name=tmp_path / "pets")


@pytest.mark.parametrize("name", ["pets [1]", "a::b", "*"])
def test_a_dataset_folder_of_class_folders_by_split(name, load, tmp_path):
    for split, labels in (("train", ["cat", "dog"]), ("val", ["dog"]), ("test", ["cat", "eel"])):
        for index, label in enumerate(labels):
            (tmp_path / name / split / label).mkdir(parents=True)
            picture(index).save(tmp_path / name / split / label / "0.png")
    splits, names = load(dataset_name=tmp_path / name)
    assert names == ["cat", "dog"] and set(splits) == {"train", "validation"}
    assert rows(splits, "validation") == [("dog", 0)]


def test_what_save_to_disk_wrote(load, tmp_path):
    data = dataset([0, 1, 1, 0], CAT_DOG)
    DatasetDict(train=data, validation=data.select([1])).save_to_disk(tmp_path / "both")
    splits, _ = load(dataset_name=tmp_path / "both")
    assert rows(splits, "validation") == [("dog", 1)]
    data.save_to_disk(tmp_path / "one")
    splits, _ = load(dataset_name=tmp_path / "one")
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 1}


def test_unlabelled_test_images_do_not_matter(load, tmp_path, caplog):
    (tmp_path / "pets").mkdir()
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        dataset(labels, CAT_DOG).to_parquet(tmp_path / "pets" / f"{split}.parquet")
    splits, _ = load(dataset_name=tmp_path / "pets")
    assert set(splits) == {"train", "validation"} and "The test split is left out: " in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"There is no folder '.*x' \(`--dataset_name`\)"),
        (lambda path: path.mkdir(), r"The folder '.*x' \(`--dataset_name`\) is empty"),
        (lambda path: path.write_text("x"), "takes a Hub id or a folder, but '.*x' is a file. Name its folder"),
    ],
)
def test_what_is_wrong_with_a_dataset_folder(make, message, load, tmp_path):
    make(tmp_path / "x")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(dataset_name=tmp_path / "x")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test", [0, 1, 2, 3]),
        ("test[1:3]", [1, 2]),
        ("test[:50%]", [0, 1]),
        ("test[50%:]", [2, 3]),
        ("test[:9]", [0, 1, 2, 3]),
    ],
)
def test_a_split_of_a_dataset_folder(split, expected, tmp_path):
    for index in range(4):
        (tmp_path / "pets" / "test" / "cat").mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / "pets" / "test" / "cat" / f"{index}.png")
    splits = read_dataset(str(tmp_path / "pets"), None, "image", "label", split=split)
    assert [row.getpixel((0, 0))[0] for row in splits[split]["image"]] == expected
    for wrong, message in (("tset", r"no split 'tset', only \['test'\]"), ("test[x]", "is not understood")):
        with pytest.raises(ValueError, match=message):
            read_dataset(str(tmp_path / "pets"), None, "image", "label", split=wrong)
