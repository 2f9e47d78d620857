"""Folders of pictures: their names are never patterns, and what is wrong with one is said in words of its own."""

import numpy as np
import pytest
from PIL import Image

from hf_nullspace.data.image_folders import split_of_name
from hf_nullspace.data.image_tables import read_folder
from hf_nullspace.data.splits import check_columns, load_image_splits


def draw(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(path)


def class_folders(root, **counts):
    """`counts` pictures of each class, their pixels counting from 0."""
    for place, (name, count) in enumerate(counts.items()):
        for index in range(count):
            draw(root / name / f"{index}.png", 10 * place + index)
    return root


def rows(dataset):
    names = dataset.features["label"].names
    return [(names[row["label"]], row["image"].getpixel((0, 0))[0]) for row in dataset]


EXPECTED = [("cat", 0), ("cat", 1), ("dog", 10), ("dog", 11), ("dog", 12)]
NAMES = [
    "plain",
    "br[ack]et",
    "[a-z]",
    "sp a ce ",
    "as*ter",
    "**",
    "qu?est",
    "üñí→",
    "a::b",
    "zip:x",
    "{c}",
    "~x",
    "-dash",
]
NAMES += [
    "100%",
    "hash#1",
    "new\nline",
    "a'b",
    'a"b',
    "a,b",
    "@x",
    ".hidden",
    "__x__",
    "train",
    "x.png",
    "back\\slash",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_itself(name, tmp_path):
    class_folders(tmp_path / "other", eel=1)
    class_folders(tmp_path / name, cat=2, dog=3)
    assert rows(read_folder(str(tmp_path / name), "train_dir")) == EXPECTED
    assert rows(read_folder(f"{tmp_path / name}/", "train_dir")) == EXPECTED
    splits = load_image_splits(train_dir=f"{tmp_path / name}//", validation_dir=str(tmp_path / name))
    assert rows(splits["train"]) == rows(splits["validation"]) == EXPECTED


def test_class_folders_of_any_name(tmp_path):
    names = sorted(["[a]", "b*", "c d", "é", "train"])
    for place, name in enumerate(names):
        draw(tmp_path / name / "[1] *.PNG", place)
    dataset = read_folder(str(tmp_path), "train_dir")
    assert rows(dataset) == [(name, place) for place, name in enumerate(names)]


def test_relative_home_and_linked_folders(tmp_path, monkeypatch):
    class_folders(tmp_path / "photos", cat=2, dog=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("photos", target_is_directory=True)
    (tmp_path / "parts").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "parts" / name).symlink_to(tmp_path / "photos" / name, target_is_directory=True)
    for name in ("photos", "./photos", "photos/../photos/", "~/photos", "link", "link/", "parts"):
        assert rows(read_folder(name, "train_dir")) == EXPECTED, name
    (tmp_path / "photos" / "cat" / "circle").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert rows(read_folder("photos", "train_dir")) == EXPECTED


def test_hidden_files_are_no_pictures_and_others_are_named(tmp_path, caplog):
    class_folders(tmp_path, cat=2, dog=3)
    for name in ("cat/._0.png", ".cache/x.png", "__MACOSX/cat/0.png", "cat/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"")
    assert rows(read_folder(str(tmp_path), "train_dir")) == EXPECTED and not caplog.text
    (tmp_path / "cat" / "3.heic").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert rows(read_folder(str(tmp_path), "train_dir")) == EXPECTED
    assert "{'.heic': 1, '.txt': 1}" in caplog.text


def test_sub_folders_without_pictures_are_no_classes_and_named(tmp_path, caplog):
    class_folders(tmp_path, cat=1, dog=1)
    for name in ("fox", "owl", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert read_folder(str(tmp_path), "train_dir").features["label"].names == ["cat", "dog"]
    assert "without pictures are no classes: ['fox', 'owl']." in caplog.text


def test_one_class_alone_keeps_its_name(tmp_path):
    splits = load_image_splits(
        train_dir=str(class_folders(tmp_path / "t", cat=1, dog=1)),
        validation_dir=str(class_folders(tmp_path / "v", dog=2)),
    )
    assert check_columns(splits, "image", "label") == ["cat", "dog"]
    assert splits["validation"]["label"][:] == [1, 1]


def test_no_class_in_common_is_refused(tmp_path):
    splits = load_image_splits(
        train_dir=str(class_folders(tmp_path / "t", cat=1, dog=1)),
        validation_dir=str(class_folders(tmp_path / "v", Cat=1, Dog=1)),
    )
    with pytest.raises(ValueError, match=r"No image of the validation split.*\['Cat', 'Dog'\].*\['cat', 'dog'\]"):
        check_columns(splits, "image", "label")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"There is no folder '.*x' \(`--train_dir`\); '.*' exists"),
        ([], "holds no pictures, but nothing"),
        (["a/1.txt", "a/2.txt", "b/3"], "holds no pictures, but 2 files of .txt, 1 files of no ending"),
        (["1.png", "2.png"], "2 pictures, such as '1.png', lie in .* itself and so have no class"),
        (["1.png", "a/2.png"], "1 pictures.* 1 are in sub-folders"),
        (["a/1.png", "b/c/2.png"], "at different depths, such as 'a/1.png' and 'b/c/2.png'"),
        (
            ["train/a/1.png", "val/a/1.png"],
            "'train', 'val' .*are splits.*`--train_dir .*x/train` and `--validation_dir .*x/v",
        ),
        (["Train/a/1.png", "Test/a/1.png"], "splits.*`--train_dir .*x/Train` and `--validation_dir .*x/Test`"),
        (["train_images/1.png", "val-2017/1.png"], "are splits"),
        (["train/a/1.png"], "are splits, not classes. Pass `--train_dir .*x/train`."),
        (["train/a/1.png", "validation/a/1.png", "extra/a/1.png"], "are splits"),
        (["validation/a/1.png", "test/a/1.png"], "are splits.*Pass one of them, such as `--train_dir .*/validation`"),
        (["train/metadata.csv", "train/1.png", "test/1.png"], "are splits"),
    ],
)
def test_what_is_wrong_with_a_folder(files, message, tmp_path):
    for name in files or []:
        path = tmp_path / "x" / name
        draw(path) if name.endswith(".png") else (path.parent.mkdir(parents=True, exist_ok=True), path.write_text("x"))
    if files is not None:
        (tmp_path / "x").mkdir(exist_ok=True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_folder(str(tmp_path / "x"), "train_dir")


def test_files_links_and_nothing_are_named(tmp_path):
    draw(tmp_path / "1.png")
    (tmp_path / "link").symlink_to("gone")
    for path, error, message in (
        (tmp_path / "1.png", ValueError, "takes a folder, but '.*1.png' is a file"),
        (tmp_path / "link", FileNotFoundError, "It is a link to 'gone', which is missing"),
        ("", ValueError, "`--train_dir` is empty"),
        (tmp_path / "*", FileNotFoundError, r"There is no folder '.*\*'"),
    ):
        with pytest.raises(error, match=message):
            read_folder(str(path), "train_dir")


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("VAL", "validation"), ("val-2017", "validation"), ("my_test", "test"), ("trainer", None)],
)
def test_names_of_splits(name, split):
    assert split_of_name(name) == split


def test_classes_may_be_called_like_splits(tmp_path):
    class_folders(tmp_path / "a", train=2, plane=1)
    assert read_folder(str(tmp_path / "a"), "train_dir").features["label"].names == ["plane", "train"]
    class_folders(tmp_path / "b" / "train", train=2, test=1)
    with pytest.raises(ValueError, match="are splits"):
        read_folder(str(tmp_path / "b"), "train_dir")


def test_classes_in_groups_are_named_by_the_last_folder(tmp_path):
    class_folders(tmp_path / "pets", cat=1)
    class_folders(tmp_path / "wild", wolf=2)
    assert read_folder(str(tmp_path), "train_dir").features["label"].names == ["cat", "wolf"]
