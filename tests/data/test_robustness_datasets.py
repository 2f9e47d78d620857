"""A mini replica of every dataset's layout loads with the right labels; other layouts are refused, never mislabelled."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_nullspace.data.imagenet import imagenet_a_indices, imagenet_classes, imagenet_r_indices, imagenet_wnids
from hf_nullspace.data.robustness_datasets import (
    RobustnessDataset,
    dataset_for_model,
    load_robustness_dataset,
    prepare_picture,
)


WNIDS = imagenet_wnids()
SUBSET = list(WNIDS[::100])


def picture_of(label):
    """A flat picture whose colour says its class."""
    return PILImage.new("RGB", (8, 8), (25 * (label // 100), 25 * (label // 10 % 10), 25 * (label % 10)))


def class_of(picture):
    digits = np.asarray(picture, dtype=float).mean((0, 1)) / 25
    return int(digits.round() @ [100, 10, 1])


def write_classes(folder, names, suffix="JPEG"):
    """One picture for each class folder: `names` maps indices to names."""
    for index, name in names.items():
        (folder / name).mkdir(parents=True)
        picture_of(index).save(folder / name / f"picture.{suffix}", quality=95)
    return folder


def by_wnid(indices):
    return {index: WNIDS[index] for index in indices}


def assert_labels_are_right(loaded, indices):
    assert sorted(loaded.dataset["label"]) == sorted(indices)
    assert [class_of(picture) for picture in loaded.dataset["image"]] == loaded.dataset["label"][:]


@pytest.fixture(scope="module")
def wnid_folder(tmp_path_factory):
    """All 1000 classes."""
    return write_classes(tmp_path_factory.mktemp("imagenet"), by_wnid(range(1000)))


@pytest.fixture
def small_folder(tmp_path):
    """The classes of `SUBSET`."""
    return write_classes(tmp_path / "small", by_wnid(range(0, 1000, 100)))


@pytest.mark.parametrize(
    "name, preprocessing",
    [("imagenet", "resize_256_crop_224"), ("imagenet-sketch", "resize_256_crop_224"), ("imagenet-stylized", "none")],
)
def test_folders_of_all_classes(wnid_folder, name, preprocessing):
    loaded = load_robustness_dataset(name, wnid_folder)
    assert_labels_are_right(loaded, range(1000))
    assert (loaded.class_indices, loaded.preprocessing) == (None, preprocessing)


@pytest.mark.parametrize("name, indices", [("imagenet-a", imagenet_a_indices()), ("imagenet-r", imagenet_r_indices())])
def test_folders_of_200_classes(tmp_path, name, indices):
    write_classes(tmp_path, by_wnid(indices), "jpg")
    (tmp_path / "README.txt").write_text("about")
    loaded = load_robustness_dataset(name, tmp_path)
    assert_labels_are_right(loaded, indices)
    assert loaded.class_indices == indices
    other = {"imagenet-a": "imagenet-r", "imagenet-r": "imagenet-a"}[name]
    with pytest.raises(ValueError, match="114 other folders.*114 of 200 classes are missing"):
        load_robustness_dataset(other, tmp_path)


def test_v2_folders_are_numbers_and_not_their_order(tmp_path):
    write_classes(tmp_path, {index: str(index) for index in range(1000)}, "jpeg")
    loaded = load_robustness_dataset("imagenet-v2", tmp_path)
    assert_labels_are_right(loaded, range(1000))
    assert loaded.preprocessing == "resize_256_crop_224"
    with pytest.raises(ValueError, match="1000 other folders"):
        load_robustness_dataset("imagenet", tmp_path)


@pytest.mark.parametrize(
    "names, message",
    [
        ({index: f"{index:03d}" for index in range(1000)}, "Folders such as '000' were padded"),
        ({index: f"{index:04d}" for index in range(1000)}, "Folders such as '0000' were padded"),
        (
            {index: str(index + 1) for index in range(1000)},
            r"other folders, such as \['1000'\].*missing, such as \['0'\]",
        ),
        (by_wnid(range(1000)), "1000 other folders, such as .*n01440764"),
    ],
)
def test_other_names_of_v2_folders_are_refused(tmp_path, names, message):
    for name in names.values():
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=message):
        load_robustness_dataset("imagenet-v2", tmp_path)


def test_imagenet_c_by_part(wnid_folder, tmp_path):
    (tmp_path / "fog" / "3").mkdir(parents=True)
    (tmp_path / "fog" / "4").symlink_to(wnid_folder)
    loaded = load_robustness_dataset("imagenet-c", tmp_path, corruption="fog", severity=4)
    assert_labels_are_right(loaded, range(1000))
    assert str(loaded) == "ImageNet-C fog 4: 1000 pictures, all classes; resizing: none, the pictures are 224x224"
    with pytest.raises(ValueError, match="1000 of 1000 classes are missing"):
        load_robustness_dataset("imagenet-c", tmp_path, corruption="fog", severity=3)


@pytest.mark.parametrize("part", [{}, {"corruption": "fog"}, {"corruption": "rain", "severity": 1}])
def test_imagenet_c_needs_its_part(tmp_path, part):
    with pytest.raises(ValueError, match="needs a `corruption` of"):
        load_robustness_dataset("imagenet-c", tmp_path, **part)


def test_a_part_of_another_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ImageNet-A has none"):
        load_robustness_dataset("imagenet-a", tmp_path, corruption="fog", severity=1)


@pytest.fixture
def damagenet(tmp_path):
    """Flat validation pictures and a list in another order, classes by index and by WordNet id."""
    order = np.random.default_rng(0).permutation(1000)
    lines = []
    for number, index in enumerate(order):
        name = f"ILSVRC2012_val_{number:08d}.png"
        picture_of(index).save(tmp_path / name)
        lines.append(f"{name} {index if number % 2 else WNIDS[index]}")
    (tmp_path / "val_damagenet.txt").write_text("\n".join(lines[::-1]) + "\n")
    return tmp_path


def test_damagenet_has_a_list(damagenet):
    loaded = load_robustness_dataset("damagenet", damagenet)
    assert_labels_are_right(loaded, range(1000))
    assert loaded.preprocessing == "none"
    subset = load_robustness_dataset("damagenet", damagenet, class_subset=SUBSET)
    assert_labels_are_right(subset, range(0, 1000, 100))


def test_lists_that_do_not_match_are_refused(damagenet):
    path = damagenet / "val_damagenet.txt"
    lines = path.read_text().splitlines()
    cases = [
        (lines[1:], "no line for .*00000999.png"),
        ([*lines, "other.png 3"], "no picture for .*other.png"),
        ([*lines[1:], "ILSVRC2012_val_00000999.png 1000"], "Line 1000 of .*index from 0 to 999"),
        ([*lines, "ILSVRC2012_val_00000001.png 7", "ILSVRC2012_val_00000001.png 8"], "two classes for"),
    ]
    for changed, message in cases:
        path.write_text("\n".join(changed))
        with pytest.raises(ValueError, match=message):
            load_robustness_dataset("damagenet", damagenet)
    path.unlink()
    with pytest.raises(ValueError, match="0 text files, so nothing says the classes"):
        load_robustness_dataset("damagenet", damagenet)


def test_missing_empty_and_loose_are_refused(small_folder):
    with pytest.raises(ValueError, match="990 of 1000 classes are missing.*class_subset"):
        load_robustness_dataset("imagenet", small_folder)
    with pytest.raises(ValueError, match=f"Name the folder inside it: '{small_folder}'"):
        load_robustness_dataset("imagenet", small_folder.parent)
    picture_of(3).save(small_folder / "loose.png")
    with pytest.raises(ValueError, match=r"1 pictures outside its class folders, such as \['loose.png'\]"):
        load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET)
    (small_folder / "loose.png").unlink()
    (small_folder / SUBSET[2] / "picture.JPEG").unlink()
    with pytest.raises(ValueError, match=f"{SUBSET[2]}.*holds no picture"):
        load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET)
    with pytest.raises(FileNotFoundError, match="no folder '/nowhere/val'"):
        load_robustness_dataset("imagenet", "/nowhere/val")


def test_a_subset_of_the_pictures_leaves_all_logits_in_the_race(wnid_folder, small_folder):
    for folder in (wnid_folder, small_folder):
        loaded = load_robustness_dataset("imagenet", folder, class_subset=SUBSET)
        assert_labels_are_right(loaded, range(0, 1000, 100))
        assert loaded.class_indices is None
    with pytest.raises(ValueError, match="must name classes of ImageNet-A, but got .*n01440764"):
        load_robustness_dataset("imagenet-a", small_folder, class_subset=SUBSET)


def test_unreadable_picture_is_named_or_left_out(small_folder):
    bad = small_folder / SUBSET[1] / "bad.jpg"
    bad.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=f"1 of 11 images cannot be read: {bad}"):
        load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET)
    loaded = load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET, skip_bad_images=True)
    assert_labels_are_right(loaded, range(0, 1000, 100))


def test_draw_is_seeded(wnid_folder):
    first, again, other = (
        load_robustness_dataset("imagenet", wnid_folder, max_images=30, seed=seed).dataset["label"][:]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(first) == 30


def test_head_in_another_order(small_folder):
    id2label = dict(enumerate(reversed(SUBSET)))
    loaded = load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET, id2label=id2label)
    assert [WNIDS[class_of(picture)] for picture in loaded.dataset["image"]] == [
        id2label[label] for label in loaded.dataset["label"]
    ]
    assert loaded.class_indices is None


def test_head_with_fewer_classes(small_folder, caplog):
    id2label = {0: SUBSET[3], 7: "tench, Tinca tinca"}
    loaded = load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET, id2label=id2label)
    assert "pictures of classes the model has not" in caplog.text
    assert sorted(loaded.dataset["label"]) == [0, 7]
    classes = {label: class_of(loaded.dataset["image"][place]) for place, label in enumerate(loaded.dataset["label"])}
    assert classes == {0: 300, 7: 0}
    assert loaded.class_indices is None
    with pytest.raises(ValueError, match="none of the 10 classes"):
        load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET, id2label={0: WNIDS[1]})


def test_unnamed_head_needs_1000_classes(wnid_folder, small_folder):
    unnamed = {index: f"LABEL_{index}" for index in range(1000)}
    assert_labels_are_right(load_robustness_dataset("imagenet", wnid_folder, id2label=unnamed), range(1000))
    with pytest.raises(ValueError, match="class names are not ImageNet's"):
        load_robustness_dataset("imagenet", small_folder, class_subset=SUBSET, id2label={0: "LABEL_0", 1: "LABEL_1"})


@pytest.fixture
def save_parquet(tmp_path):
    """`save_parquet(indices, label_feature, labels)` writes a dataset as one is stored on the Hub; gives its folder."""

    def save(indices, feature, labels, columns=("image", "label")):
        features = Features({columns[0]: Image(), columns[1]: feature})
        rows = {columns[0]: [picture_of(index) for index in indices], columns[1]: labels}
        folder = tmp_path / "hub" / "data"
        folder.mkdir(parents=True)
        Dataset.from_dict(rows, features=features).to_parquet(folder / "test-00000-of-00001.parquet")
        return str(folder.parent)

    return save


def load(name, source, tmp_path, **options):
    return load_robustness_dataset(name, source, cache_dir=str(tmp_path / "cache"), **options)


def test_hub_dataset_with_wnids(save_parquet, tmp_path):
    indices = imagenet_a_indices()
    source = save_parquet(
        indices, ClassLabel(names=[WNIDS[index] for index in indices]), list(range(200)), ("picture", "wnid")
    )
    columns = {"image_column_name": "picture", "label_column_name": "wnid"}
    loaded = load("imagenet-a", source, tmp_path, **columns)
    assert_labels_are_right(loaded, indices)
    assert loaded.dataset.column_names == ["image", "label"]
    with pytest.raises(ValueError, match="has no column 'image', only .*image_column_name"):
        load("imagenet-a", source, tmp_path)
    with pytest.raises(ValueError, match="ImageNet-R has 200 classes, but the dataset also has pictures of"):
        load("imagenet-r", source, tmp_path, **columns)
    with pytest.raises(ValueError, match="no picture of 800 of 1000 classes"):
        load("imagenet", source, tmp_path, **columns)


def test_hub_v2_whose_classes_are_sorted_as_text(save_parquet, tmp_path):
    names = sorted(str(index) for index in range(1000))
    source = save_parquet([int(name) for name in names], ClassLabel(names=names), list(range(1000)))
    assert_labels_are_right(load("imagenet-v2", source, tmp_path), range(1000))
    with pytest.raises(ValueError, match="1000 of 1000 class names are not ImageNet's"):
        load("imagenet", source, tmp_path)


def test_hub_v2_with_padded_classes_is_refused(save_parquet, tmp_path):
    names = [f"{index:03d}" for index in range(1000)]
    source = save_parquet(range(1000), ClassLabel(names=names), list(range(1000)))
    with pytest.raises(ValueError, match=r"'0' to '999', unpadded, but got \['000'"):
        load("imagenet-v2", source, tmp_path)


def test_hub_dataset_without_a_class_list(save_parquet, tmp_path):
    source = save_parquet(range(1000), Value("int64"), list(range(1000)))
    with pytest.raises(ValueError, match="ImageNet-Sketch has no class list.*class_names"):
        load("imagenet-sketch", source, tmp_path)
    assert_labels_are_right(load("imagenet-sketch", source, tmp_path, class_names=WNIDS), range(1000))
    with pytest.raises(ValueError, match=r"labels \[2, 3, 4, 5, 6\], but there are 2 class names"):
        load("imagenet-sketch", source, tmp_path, class_names=WNIDS[:2])


def test_hub_dataset_with_text_labels_and_a_subset(save_parquet, tmp_path):
    indices = list(range(0, 1000, 50))
    source = save_parquet(indices, Value("string"), [WNIDS[index] for index in indices])
    loaded = load("imagenet-sketch", source, tmp_path, class_subset=SUBSET)
    assert_labels_are_right(loaded, range(0, 1000, 100))


def test_hub_folder_of_imagenet_c(tmp_path, monkeypatch):
    write_classes(tmp_path / "fog" / "4", by_wnid(range(0, 1000, 100)))
    write_classes(tmp_path / "fog" / "5", {0: WNIDS[0]})
    load_dataset = datasets.load_dataset
    hub = {"user/imagenet-c": str(tmp_path)}
    monkeypatch.setattr(datasets, "load_dataset", lambda source, **options: load_dataset(hub[source], **options))
    options = {"corruption": "fog", "severity": 4, "class_subset": SUBSET}
    assert_labels_are_right(load("imagenet-c", "user/imagenet-c", tmp_path, **options), range(0, 1000, 100))


def test_split_is_chosen_or_asked_for(small_folder, tmp_path, monkeypatch):
    def load_dataset(source, split=None, cache_dir=None):
        splits = {name: make_dataset(SUBSET[:1], [0]) for name in source.split("+")}
        return splits[split] if split else datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = {"class_subset": SUBSET[:1]}
    for source in ("train+test+validation", "train"):
        assert_labels_are_right(load("imagenet", source, tmp_path, **options), [0])
    assert_labels_are_right(load("imagenet", "train+extra", tmp_path, split="extra", **options), [0])
    with pytest.raises(ValueError, match=r"splits \['train', 'extra'\]; say which"):
        load("imagenet", "train+extra", tmp_path, **options)


def make_dataset(names, labels):
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": [picture_of(label) for label in labels], "label": labels}, features=features)


def test_own_dataset_is_matched_by_name():
    id2label = {0: "Dog", 1: "bird", 2: "cat"}
    loaded = dataset_for_model(make_dataset(["cat", "dog"], [0, 1, 1]), id2label, name="pets")
    assert loaded.dataset["label"][:] == [2, 0, 0]
    assert (loaded.class_indices, loaded.preprocessing) == (None, "image_processor")
    assert [class_of(picture) for picture in loaded.dataset["image"]] == [0, 1, 1]
    full = dataset_for_model(make_dataset(["cat", "dog", "bird"], [0, 1, 2]), id2label)
    assert (full.dataset["label"][:], full.class_indices) == ([2, 0, 1], None)
    renamed = dataset_for_model(make_dataset(["Katze", "Hund"], [0, 1]), id2label, class_names=["cat", "dog"])
    assert renamed.dataset["label"][:] == [2, 0]


def test_own_dataset_with_other_names_is_refused():
    with pytest.raises(ValueError, match=r"The model has no class \['cow'\], only \['dog'\]"):
        dataset_for_model(make_dataset(["cow", "dog"], [0, 1]), {0: "dog"})


def test_an_ambiguous_name_refuses_only_the_pictures_that_need_it():
    id2label = {0: "cat", 1: "crane", 2: "dog", 3: "crane"}
    loaded = dataset_for_model(make_dataset(["dog", "cat"], [0, 1]), id2label)
    assert loaded.dataset["label"][:] == [2, 0]
    unused = dataset_for_model(make_dataset(["cow", "crane", "dog"], [2, 2]), id2label)
    assert unused.dataset["label"][:] == [2, 2]
    with pytest.raises(ValueError, match=r"pictures of \['crane'\].*two classes.*'crane' \(logits \[1, 3\]\)"):
        dataset_for_model(make_dataset(["dog", "crane"], [0, 1]), id2label)
    same_list = make_dataset(["cat", "a", "dog", "b"], [3, 1]), id2label
    assert dataset_for_model(*same_list, class_names=list(id2label.values())).dataset["label"][:] == [3, 1]


def test_letter_case_tells_classes_apart_where_it_has_to():
    id2label = {0: "dog", 1: "DOG"}
    assert dataset_for_model(make_dataset(["DOG"], [0]), id2label).dataset["label"][:] == [1]
    with pytest.raises(ValueError, match=r"pictures of \['Dog'\].*two classes by the name 'dog'"):
        dataset_for_model(make_dataset(["Dog"], [0]), id2label)
    assert dataset_for_model(make_dataset(["Cat", "cat"], [1]), {0: "dog", 1: "cat"}).dataset["label"][:] == [1]
    with pytest.raises(ValueError, match=r"Several classes of the pictures, \['Cat', 'cat'\], are one class"):
        dataset_for_model(make_dataset(["Cat", "cat"], [0, 1]), {0: "dog", 1: "cat"})


def imagenet_names():
    """`id2label` of the usual ImageNet classifier: first synonyms, of which "crane" is there twice."""
    return {index: synonyms.split(",")[0] for index, synonyms in enumerate(imagenet_classes()["classes"].values())}


def test_a_standard_classifier_takes_pictures_of_any_class_but_crane_by_name():
    id2label = imagenet_names()
    assert sorted(index for index, name in id2label.items() if name == "crane") == [134, 517]
    loaded = dataset_for_model(make_dataset(["goldfish", "tench"], [0, 1]), id2label)
    assert (loaded.dataset["label"][:], loaded.class_indices) == ([1, 0], None)
    by_id = dataset_for_model(make_dataset([WNIDS[517], WNIDS[3]], [0, 1]), id2label)
    assert by_id.dataset["label"][:] == [517, 3]
    with pytest.raises(ValueError, match="two classes by the name 'crane'"):
        dataset_for_model(make_dataset(["crane", "tench"], [0, 1]), id2label)


def test_an_ambiguous_name_of_a_smaller_head_is_no_matter_for_other_classes(tmp_path):
    for wnid in (WNIDS[0], WNIDS[134]):
        (tmp_path / wnid).mkdir()
        picture_of(0).save(tmp_path / wnid / "picture.png")
    id2label = {0: "tench", 1: "crane"}
    loaded = load_robustness_dataset("imagenet", tmp_path, class_subset=[WNIDS[0]], id2label=id2label)
    assert loaded.dataset["label"][:] == [0]
    with pytest.raises(ValueError, match=rf"pictures of \['{WNIDS[134]}'\].*'crane'"):
        load_robustness_dataset("imagenet", tmp_path, class_subset=[WNIDS[0], WNIDS[134]], id2label=id2label)


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_the_published_rule_of_200_classes_stays_whatever_the_pictures_are(name, tmp_path):
    rule = imagenet_a_indices() if name == "imagenet-a" else imagenet_r_indices()
    (tmp_path / WNIDS[rule[5]]).mkdir()
    picture_of(0).save(tmp_path / WNIDS[rule[5]] / "picture.png")
    loaded = load_robustness_dataset(name, tmp_path, class_subset=[WNIDS[rule[5]]])
    assert loaded.class_indices == tuple(rule)
    assert loaded.dataset["label"][:] == [rule[5]]


def test_resize_and_crop_keep_the_centre():
    rows, columns = np.mgrid[0:300, 0:600]
    picture = PILImage.fromarray(np.stack([columns * 255 // 600, rows * 255 // 300, 0 * rows], -1).astype(np.uint8))
    result = np.asarray(prepare_picture(picture, "resize_256_crop_224"), dtype=float)
    assert result.shape == (224, 224, 3)
    # 600x300 becomes 512x256; the crop begins at (144, 16).
    assert result[:, 0, 0].mean() == pytest.approx(144 / 512 * 255, abs=1.5)
    assert result[:, -1, 0].mean() == pytest.approx(368 / 512 * 255, abs=1.5)
    assert result[0, :, 1].mean() == pytest.approx(16 / 256 * 255, abs=1.5)
    assert prepare_picture(picture, "resize_256_crop_224", 32).size == (32, 32)
    assert prepare_picture(picture, "image_processor").size == (600, 300)


def test_prepared_sets_are_not_resized():
    dataset = RobustnessDataset("C", make_dataset(["a"], [0]), None, "none")
    picture = PILImage.new("L", (224, 224))
    assert (dataset.prepare(picture).size, dataset.prepare(picture).mode) == ((224, 224), "RGB")
    with pytest.raises(ValueError, match="Expected a picture of 224x224 pixels, but one has 300x224"):
        dataset.prepare(PILImage.new("RGB", (300, 224)))
    with pytest.raises(ValueError, match="must be one of .*'squash'"):
        prepare_picture(picture, "squash")


def test_options_that_do_not_apply_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ImageNet-A has class folders"):
        load_robustness_dataset("imagenet-a", tmp_path, labels_file="labels.txt")
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        load_robustness_dataset("imagenet", tmp_path, max_images=0)


def test_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="Unknown dataset 'imagenet-b'.*'imagenet-a'"):
        load_robustness_dataset("imagenet-b", "x")
