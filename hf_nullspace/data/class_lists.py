"""Where the classes of an evaluation dataset come from: ImageNet's, or any list of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .class_labels import folded, imagenet_labels, model_labels, translate_labels, with_labels
from .imagenet import NUM_CLASSES, imagenet_class_indices, imagenet_wnids


if TYPE_CHECKING:
    from datasets import Dataset


class ClassList(ABC):
    """The list of classes that the labels of a dataset are indices into."""

    @property
    @abstractmethod
    def indices(self) -> list[int]:
        """The labels that the dataset has pictures of."""

    @property
    @abstractmethod
    def folders(self) -> Sequence[str]:
        """The name of the sub-folder of each label."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Description of such names, for errors."""

    @property
    @abstractmethod
    def line_labels(self) -> dict[str, int]:
        """The label of each class that a line of a list may name."""

    @property
    @abstractmethod
    def line_kind(self) -> str:
        """Description of what a line names, for errors."""

    @abstractmethod
    def places(self, names: Sequence[str]) -> list[int]:
        """
        The label of each class name.

        Raises:
            `ValueError`: If there is no such class.
        """

    @abstractmethod
    def labels(
        self, title: str, labels: list[int], names: list[str], classes: list[int], is_subset: bool
    ) -> list[int]:
        """
        Translates labels of a dataset with its own class names to these classes; -1 outside `classes`.

        Args:
            title (`str`): The dataset, for errors.
            labels (`list[int]`): The label of each picture.
            names (`list[str]`): The name of each label.
            classes (`list[int]`): The classes that must have pictures.
            is_subset (`bool`): Whether pictures of other classes may occur; they are left out.
        """

    @abstractmethod
    def for_model(
        self, dataset: Dataset, title: str, classes: list[int], compete: bool, id2label: Mapping[int, str] | None
    ) -> tuple[Dataset, tuple[int, ...] | None]:
        """
        Translates labels to a model's logits. Also returns the logits that compete; `None` for all.

        Args:
            dataset (`datasets.Dataset`): Pictures with labels among these classes.
            title (`str`): The dataset, for errors.
            classes (`list[int]`): The classes that it has pictures of.
            compete (`bool`): Whether a prediction is one of the dataset's classes, by its published rule.
            id2label (`Mapping[int, str]` or `None`): The model's classes; `None` for these classes in their order.
        """


@dataclass(frozen=True)
class ImageNetClasses(ClassList):
    """
    ImageNet's 1000 classes, or some of them; models may name them by WordNet id or by synonyms.

    Args:
        some (`Callable[[], Sequence[int]]`, *optional*): Returns the indices of the dataset's classes. By default all.
        numbered (`bool`, *optional*, defaults to `False`): Whether sub-folders are named by place, `0` to `999`, in place of
            WordNet ids.
    """

    some: Callable[[], Sequence[int]] | None = None
    numbered: bool = False

    @property
    def indices(self) -> list[int]:
        return list(range(NUM_CLASSES) if self.some is None else self.some())

    @property
    def folders(self) -> Sequence[str]:
        return [str(index) for index in range(NUM_CLASSES)] if self.numbered else imagenet_wnids()

    @property
    def kind(self) -> str:
        return "numbers '0' to '999', unpadded" if self.numbered else "WordNet ids such as 'n01440764'"

    @property
    def line_labels(self) -> dict[str, int]:
        return {key: index for index, wnid in enumerate(imagenet_wnids()) for key in (wnid, str(index))}

    @property
    def line_kind(self) -> str:
        return "a WordNet id or as its index from 0 to 999 in the sorted list of WordNet ids"

    def places(self, names: Sequence[str]) -> list[int]:
        return imagenet_class_indices(names)

    def labels(
        self, title: str, labels: list[int], names: list[str], classes: list[int], is_subset: bool
    ) -> list[int]:
        return imagenet_labels(title, labels, names, classes, is_subset, self.numbered)

    def for_model(
        self, dataset: Dataset, title: str, classes: list[int], compete: bool, id2label: Mapping[int, str] | None
    ) -> tuple[Dataset, tuple[int, ...] | None]:
        return translate_labels(dataset, title, classes, self.indices if compete else None, id2label)


@dataclass(frozen=True)
class NamedClasses(ClassList):
    """
    Classes known by their names, which are compared with the model's without case and outer blanks.

    Args:
        names (`tuple[str, ...]`): Their names, which are also the names of the sub-folders.
    """

    names: tuple[str, ...]

    def __post_init__(self):
        keys = [folded(name) for name in self.names]
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"A class list needs names that differ, but got {list(self.names)}.")

    @property
    def indices(self) -> list[int]:
        return list(range(len(self.names)))

    @property
    def folders(self) -> Sequence[str]:
        return self.names

    @property
    def kind(self) -> str:
        return f"their names, such as {self.names[0]!r}"

    @property
    def line_labels(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @property
    def line_kind(self) -> str:
        return f"one of {list(self.names[:5])}"

    def places(self, names: Sequence[str]) -> list[int]:
        found = {folded(name): place for place, name in enumerate(self.names)}
        if unknown := [str(name) for name in names if folded(name) not in found]:
            raise ValueError(f"There is no class {unknown[:5]}, only {list(self.names[:5])} and so on.")
        return [found[folded(name)] for name in names]

    def labels(
        self, title: str, labels: list[int], names: list[str], classes: list[int], is_subset: bool
    ) -> list[int]:
        needed = sorted(set(labels))
        try:
            places = dict(zip(needed, self.places([names[label] for label in needed]), strict=True))
        except ValueError as error:
            raise ValueError(f"The class names of {title} do not fit: {error}") from error
        found = [places[label] for label in labels]
        kept = set(classes)
        outside = set(found) - kept
        missing = kept - set(found)
        if missing or (outside and not is_subset):
            raise ValueError(
                f"{title}: no picture of {[self.names[label] for label in sorted(missing)[:5]]}, and pictures of "
                f"{[self.names[label] for label in sorted(outside)[:5]]}, which are not asked for. Complete it, or name the "
                "classes that are to be evaluated with `class_subset`."
            )
        return [label if label in kept else -1 for label in found]

    def for_model(
        self, dataset: Dataset, title: str, classes: list[int], compete: bool, id2label: Mapping[int, str] | None
    ) -> tuple[Dataset, tuple[int, ...] | None]:
        if id2label is None:
            return dataset, None
        labels = list(dataset["label"])
        places = model_labels(self.names, set(labels), id2label)
        dataset = with_labels(dataset, "image", [places[label] for label in labels])
        own = {folded(name) for name in self.names}
        competing = tuple(sorted(int(place) for place, label in id2label.items() if folded(label) in own))
        return dataset, competing if compete and len(competing) < len(id2label) else None
