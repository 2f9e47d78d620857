"""Loads evaluation datasets from a folder or the Hub, with checked labels that are indices into a model's logits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .class_folders import read_class_folders, read_labelled_files
from .class_labels import describe_missing, model_labels, named_labels, with_labels
from .class_lists import ClassList, NamedClasses
from .dataset_spec import DATASETS, PREPROCESSINGS, DatasetSpec, check_preprocessing
from .imagenet import imagenet_wnids
from .imagenet_datasets import IMAGENET
from .pictures import picture_name, read_picture
from .splits import draw_images, drop_unreadable_images


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RobustnessDataset:
    """
    Pictures with labels that are indices into a model's logits.

    Attributes:
        name (`str`): Its name in reports.
        dataset (`datasets.Dataset`): Columns `image` and `label`.
        class_indices (`tuple[int, ...]` or `None`): The logits that compete; the others are to be masked with
            [`masked_logits`]. `None`, all of them, but for datasets that were published with the rule that a prediction
            is one of their own classes.
        preprocessing (`str`): One of `"resize_256_crop_224"`, `"none"` and `"image_processor"`.
    """

    name: str
    dataset: Dataset
    class_indices: tuple[int, ...] | None
    preprocessing: str

    def __str__(self) -> str:
        classes = "all classes" if self.class_indices is None else f"{len(self.class_indices)} classes, others masked"
        return f"{self.name}: {len(self.dataset)} pictures, {classes}; resizing: {PREPROCESSINGS[self.preprocessing]}"

    def prepare(self, picture: Image.Image, image_size: int = 224) -> Image.Image:
        """The picture as RGB, resized and cropped as this dataset's protocol says; see [`prepare_picture`]."""
        return prepare_picture(picture, self.preprocessing, image_size)


def prepare_picture(picture: Image.Image, preprocessing: str, image_size: int = 224) -> Image.Image:
    """
    Resizes and crops one picture.

    Args:
        picture (`PIL.Image.Image`): The picture.
        preprocessing (`str`): `"resize_256_crop_224"` resizes the shorter side to 256/224 of `image_size` (bicubic) and
            crops the centre; `"none"` expects a picture of that size; `"image_processor"` leaves it to the processor.
        image_size (`int`, *optional*, defaults to 224): Side of the result, for the first two.

    Raises:
        `ValueError`: If the preprocessing is unknown, or `"none"` meets a picture of another size.
    """
    check_preprocessing(preprocessing)
    picture = read_picture(picture)
    width, height = picture.size
    if preprocessing == "image_processor":
        return picture
    if preprocessing == "none":
        if picture.size != (image_size, image_size):
            raise ValueError(
                f"Expected a picture of {image_size}x{image_size} pixels, but {picture_name(picture) or 'one'} has "
                f"{width}x{height}. This dataset is used "
                "as published, at 224x224: unpack it again, or evaluate a model with that image size."
            )
        return picture
    shorter = round(image_size * 256 / 224)
    scale = shorter / min(width, height)
    size = [shorter if side == min(width, height) else int(side * scale) for side in (width, height)]
    left, top = (round((side - image_size) / 2) for side in size)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + image_size, top + image_size))


def load_robustness_dataset(
    name: str,
    source: str | os.PathLike,
    *,
    corruption: str | None = None,
    severity: int | None = None,
    class_subset: Sequence[str] | None = None,
    id2label: Mapping[int, str] | None = None,
    labels_file: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    max_images: int | None = None,
    seed: int = 42,
    check_images: bool = True,
    skip_bad_images: bool = False,
    **load_kwargs: Any,
) -> RobustnessDataset:
    """
    One of [`~dataset_spec.DATASETS`], with labels that are indices into its classes or into a model's.

    Accepted folders: one sub-folder for each class (of ImageNet, named by WordNet ids as `n01440764/...`, for
    ImageNet-V2 `0` to `999` as published); where the dataset has corruptions, such a folder for each of its parts
    (`gaussian_noise/1/n01440764/...`). Some may also be one flat folder of pictures with a text file that has a line
    `file_name class` for each (for ImageNet and DamageNet a WordNet id, or an index from 0 to 999).

    Args:
        name (`str`): Which dataset.
        source (`str` or `os.PathLike`): A local folder, or the id of a dataset on the Hub.
        corruption, severity (`str` and `int`, *optional*): Which part of a dataset that has corruptions; needed there and
            only there.
        class_subset (`Sequence[str]`, *optional*): Names of classes (of ImageNet's, WordNet ids), when only pictures of
            these are evaluated. What competes stays the same: a picture that is taken for a class that has none here is
            a mistake.
        id2label (`Mapping[int, str]`, *optional*): Which class each logit of the model is (`model.config.id2label`; of
            ImageNet's, by WordNet id or synonyms). Labels are translated to it by name; pictures of ImageNet classes that
            the model does not have are left out. By default the model has the dataset's classes in their order.
        labels_file (`str` or `os.PathLike`, *optional*): The list of a flat folder; by default its only `.txt` file.
        class_names (`Sequence[str]`, *optional*): For a Hub dataset that does not say what its labels are: the name of
            each, a WordNet id or synonyms. `imagenet_wnids()` if labels are ImageNet's indices already.
        image_column_name, label_column_name (`str`, *optional*): Columns of a Hub dataset.
        max_images (`int`, *optional*): Draw so many pictures.
        seed (`int`, *optional*, defaults to 42): Seed of that draw.
        check_images (`bool`, *optional*, defaults to `True`): Decode every picture once to see whether it can be read.
            [`evaluate_robustness`] does without: it names such a picture when it comes to it.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Leave out unreadable pictures, with a warning.
        load_kwargs: Passed on to `datasets.load_dataset` for a Hub dataset (`split`, `name`, `revision`, `token`, ...).

    Returns:
        [`RobustnessDataset`]

    Raises:
        `FileNotFoundError`: If a folder does not exist.
        `ValueError`: If the layout, the classes or the labels are not those of the dataset, or a picture is unreadable.

    Example:

    ```python
    >>> sketch = load_robustness_dataset("imagenet-sketch", "data/sketch")  # doctest: +SKIP
    >>> logits = masked_logits(logits, sketch.class_indices)  # doctest: +SKIP
    ```
    """
    spec = DATASETS.find(name)
    title = _part_title(spec, corruption, severity)
    if labels_file is not None and not spec.may_be_listed:
        raise ValueError(f"`labels_file` is for datasets that may be one flat folder; {title} has class folders.")
    if max_images is not None and max_images < 1:
        raise ValueError(f"`max_images` must be at least 1, but got {max_images}.")
    if not os.path.exists(source) and (os.path.isabs(source) or str(source).startswith(".")):
        raise FileNotFoundError(f"There is no folder {str(source)!r}. Name a local folder, or a dataset of the Hub.")
    if _is_folder_of_pictures(Path(source)):
        folder = Path(source, str(corruption), str(severity)) if spec.corruptions else Path(source)
        all_classes = _folder_classes(spec, folder)
        classes = _chosen_classes(title, all_classes, class_subset)
        dataset = _read_folder(spec, all_classes, folder, classes, labels_file, class_subset is not None)
    else:
        if spec.corruptions:
            load_kwargs.setdefault("data_dir", f"{corruption}/{severity}")
        dataset = _load_split(str(source), title, load_kwargs)
        labels, names = named_labels(dataset, title, image_column_name, label_column_name, class_names)
        all_classes = spec.classes or NamedClasses(tuple(names))
        classes = _chosen_classes(title, all_classes, class_subset)
        labels = all_classes.labels(title, labels, names, classes, class_subset is not None)
        dataset = with_labels(dataset, image_column_name, labels)
    dataset, class_indices = all_classes.for_model(dataset, title, classes, spec.own_classes_compete, id2label)
    dataset = draw_images(dataset, max_images, seed)
    if check_images:
        dataset = drop_unreadable_images(dataset, "image", skip_bad_images)
    return RobustnessDataset(title, dataset, class_indices, spec.preprocessing)


def load_if_imagenet(
    folder: str | os.PathLike, id2label: Mapping[int, str], max_images: int | None = None, seed: int = 42
) -> RobustnessDataset | None:
    """
    A folder whose classes are WordNet ids as ImageNet or a part of it, resized as ImageNet's pictures are; `None` for any
    other, and where the model has classes of these names.

    Args:
        folder (`str` or `os.PathLike`): One sub-folder of pictures for each class; they are not checked.
        id2label (`Mapping[int, str]`): The model's classes.
        max_images (`int`, *optional*): Draw so many pictures.
        seed (`int`, *optional*, defaults to 42): Seed of that draw.
    """
    names = sorted(entry.name for entry in Path(folder).iterdir() if entry.is_dir())
    wnids = imagenet_wnids()
    if not names or not set(names) <= set(wnids) or set(names) <= set(id2label.values()):
        return None
    subset = names if len(names) < len(wnids) else None
    options: dict[str, Any] = {"max_images": max_images, "seed": seed, "check_images": False}
    return load_robustness_dataset(IMAGENET.name, folder, class_subset=subset, id2label=id2label, **options)


def dataset_for_model(
    dataset: Dataset,
    id2label: Mapping[int, str],
    *,
    name: str = "dataset",
    image_column_name: str = "image",
    label_column_name: str = "label",
    class_names: Sequence[str] | None = None,
) -> RobustnessDataset:
    """
    Any image dataset, its labels translated to those of a model by the names of the classes.

    Args:
        dataset (`datasets.Dataset`): For instance from [`~hf_nullspace.data.load_image_splits`].
        id2label (`Mapping[int, str]`): The model's classes (`model.config.id2label`).
        name (`str`, *optional*, defaults to `"dataset"`): Its name in reports.
        image_column_name, label_column_name (`str`, *optional*): Its columns.
        class_names (`Sequence[str]`, *optional*): The name of each label, where the dataset does not say.

    Raises:
        `ValueError`: If a column or the class list is missing, or the model does not have a class by the name of one that
            pictures have, or has two.
    """
    labels, names = named_labels(dataset, name, image_column_name, label_column_name, class_names)
    indices = model_labels(names, set(labels), id2label)
    dataset = with_labels(dataset, image_column_name, [indices[label] for label in labels])
    return RobustnessDataset(name, dataset, None, "image_processor")


def _part_title(spec: DatasetSpec, corruption: str | None, severity: int | None) -> str:
    """Checks the chosen part of a dataset and returns its title."""
    if spec.corruptions:
        spec.check_part(corruption, severity, spec.name)
        return f"{spec.title} {corruption} {severity}"
    if corruption is not None or severity is not None:
        raise ValueError(f"`corruption` and `severity` choose a part of a dataset; {spec.title} has none.")
    return spec.title


def _chosen_classes(title: str, all_classes: ClassList, class_subset: Sequence[str] | None) -> list[int]:
    """The classes that must have pictures."""
    own = all_classes.indices
    if class_subset is None:
        return own
    chosen = sorted(all_classes.places(class_subset))
    known = set(own)
    outside = [all_classes.folders[index] for index in chosen if index not in known]
    if outside or not chosen:
        raise ValueError(f"`class_subset` must name classes of {title}, but got {outside[:5] or 'none'}.")
    return chosen


def _folder_classes(spec: DatasetSpec, folder: Path) -> ClassList:
    """The classes of a dataset, or those of the sub-folders in a folder."""
    if spec.classes is not None:
        return spec.classes
    names = sorted(entry.name for entry in folder.glob("[!.]*") if entry.is_dir())
    if not names:
        raise ValueError(f"{str(folder)!r} has no sub-folder of pictures for each class of {spec.title}.")
    return NamedClasses(tuple(names))


def _is_folder_of_pictures(source: Path) -> bool:
    # Hub datasets keep parquet files at the top or in one folder; looking deeper would list every picture.
    return source.is_dir() and not any(file for level in ("*", "*/*") for file in source.glob(f"{level}.parquet"))


def _read_folder(
    spec: DatasetSpec,
    all_classes: ClassList,
    folder: Path,
    classes: list[int],
    labels_file: str | os.PathLike | None,
    is_subset: bool,
) -> Dataset:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    flat = folder.is_dir() and not any(entry.is_dir() for entry in folder.iterdir())
    if spec.may_be_listed and (labels_file is not None or flat):
        paths, labels = read_labelled_files(folder, labels_file, all_classes.line_labels, all_classes.line_kind)
        kept = set(classes)
        chosen = [(path, label) for path, label in zip(paths, labels, strict=True) if label in kept]
        paths = [path for path, _ in chosen]
        labels = [label for _, label in chosen]
        if missing := kept - set(labels):
            names = [all_classes.folders[label] for label in sorted(missing)]
            raise ValueError(describe_missing(repr(str(folder)), names, len(kept)))
    else:
        published = all_classes.folders
        expected = f"{len(classes)} class folders named by {all_classes.kind}"
        folders = {published[index]: index for index in classes}
        paths, labels = read_class_folders(folder, folders, expected, published if is_subset else ())
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    return Dataset.from_dict({"image": paths, "label": labels}, features=features)


def _load_split(source: str, title: str, load_kwargs: dict[str, Any]) -> Dataset:
    from datasets import Dataset, load_dataset

    loaded = load_dataset(source, **load_kwargs)
    if isinstance(loaded, Dataset):
        return loaded
    for split in ("validation", "test"):
        if split in loaded:
            return loaded[split]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise ValueError(f"{source!r} has the splits {list(loaded)}; say which is {title} with `split`.")
