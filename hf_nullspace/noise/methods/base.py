"""The base class of noise methods: name, defaults, the settings a method reads, and its search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from ...models.frozen import FrozenClassifier
from ..images import FrozenImages
from ..kinds import Noise, SharedNoise


class SearchSettings(Protocol):
    """What a method may read of a [`NullspaceConfig`], its own defaults filled in."""

    @property
    def epsilon(self) -> float: ...

    @property
    def learning_rate(self) -> Any: ...

    @property
    def max_token_ratio(self) -> float | None: ...

    @property
    def noise_limit(self) -> float: ...

    @property
    def max_steps(self) -> Any: ...

    @property
    def norm_weight(self) -> float: ...

    @property
    def seed(self) -> int: ...


# Settings that a method names in `settings` if it reads them; all methods read the others.
OPTIONAL_SETTINGS = ("learning_rate", "max_token_ratio", "noise_limit", "norm_weight")
# Attributes of a method that are the defaults of settings.
DEFAULTS = ("learning_rate", "max_steps", "ascent")


class SearchInputs(NamedTuple):
    """
    What a search is given.

    Args:
        classifier ([`FrozenClassifier`]): The model.
        images ([`FrozenImages`]): The images to search on.
        config ([`NullspaceConfig`]): The settings.
        generator (`torch.Generator`): A CPU generator, the source of every random choice.
        on_step (`Callable`): To be called after each of at most `config.max_steps` steps.
    """

    classifier: FrozenClassifier
    images: FrozenImages
    config: SearchSettings
    generator: torch.Generator
    on_step: Callable[[], Any]


class FoundNoise(NamedTuple):
    """
    What a search found.

    Args:
        noise ([`Noise`]): The noise, of the method's `noise_class`.
        steps (`int`): Steps it took.
    """

    noise: Noise
    steps: int


class NoiseMethod(ABC):
    """
    A method that finds noise. Its class holds everything that the package needs to know about it.

    A module outside the package adds one by deriving a class and decorating it with [`register`]. From then on its name
    is a value of `NullspaceConfig.method` and of the trainer's `noise_method`, in code and on the command line.

    Attributes:
        name (`str`): The value of `method`.
        help (`str`): What it does, in one line of help texts.
        max_steps (`int`): Default of the setting.
        learning_rate (`float`, *optional*): Default of the setting, where the method reads it.
        settings (`tuple[str, ...]`, *optional*): Which of `OPTIONAL_SETTINGS` it reads. Given on a command line to a
            method that does not, they are refused.
        noise_class (`type[Noise]`, *optional*, defaults to [`SharedNoise`]): What it finds: one noise for all images, or
            [`DrawnNoise`], another for each. Any class with the methods of [`Noise`] will do.
        ascent (`float`, *optional*, defaults to 0.0): Default of the trainer's `noise_ascent`, where noise is drawn.
        scales_up (`bool`, *optional*, defaults to `True`): Whether the noise is scaled to the boundary of epsilon, up or
            down. Otherwise it is only scaled down, and only under `on_failure="shrink"`.

    Example:

    ```python
    >>> from hf_nullspace.noise.methods import NOISE_METHODS

    >>> NOISE_METHODS["boundary"].max_steps
    24
    ```
    """

    name: ClassVar[str]
    help: ClassVar[str]
    max_steps: ClassVar[int]
    learning_rate: ClassVar[float | None] = None
    settings: ClassVar[tuple[str, ...]] = ()
    noise_class: ClassVar[type[Noise]] = SharedNoise
    ascent: ClassVar[float] = 0.0
    scales_up: ClassVar[bool] = True

    def check(self, config: SearchSettings) -> None:
        """
        Checks settings beyond the ranges that hold for every method; by default there is nothing to check.

        Args:
            config ([`NullspaceConfig`]): The settings, within their ranges.

        Raises:
            `ValueError`: If the method cannot work with them. Names of settings stand in backticks, as in
                `` `max_steps=3` ``: they are then written as the trainer's arguments, or as flags.
        """
        return

    @abstractmethod
    def search(self, inputs: SearchInputs) -> FoundNoise:
        """
        Finds a noise. It may exceed epsilon: the caller measures and scales it afterwards.

        Args:
            inputs ([`SearchInputs`]): Model, images and settings.
        """


# The methods by name.
NOISE_METHODS: dict[str, NoiseMethod] = {}
# Metadata of fields that are about methods, with the setting and the text each begins with; see `method_metadata`.
_FIELDS: list[tuple[dict[str, Any], str, str]] = []


def register(method_class: type[NoiseMethod]) -> type[NoiseMethod]:
    """
    Makes a method known by its name; a decorator of its class.

    Raises:
        `TypeError`: If it is no class of [`NoiseMethod`], or lacks a part of one.
        `ValueError`: If another method has the name, or it names settings that there are not.
    """
    if not (isinstance(method_class, type) and issubclass(method_class, NoiseMethod)):
        raise TypeError(f"`register` takes a class derived from `NoiseMethod`, but got {method_class!r}.")
    missing = [part for part in ("name", "help", "max_steps") if not hasattr(method_class, part)]
    if missing:
        raise TypeError(f"`{method_class.__name__}` has no {missing}; see `NoiseMethod` for what a method needs.")
    known = NOISE_METHODS.get(method_class.name)
    if known is not None and _place(type(known)) != _place(method_class):  # the same again when reloaded
        raise ValueError(
            f"The name {method_class.name!r} of `{method_class.__name__}` is that of `{type(known).__name__}` already. "
            "Give the method another one."
        )
    unknown = sorted(set(method_class.settings) - set(OPTIONAL_SETTINGS))
    if unknown:
        raise ValueError(
            f"`{method_class.__name__}` reads the settings {unknown}, which `NullspaceConfig` has not; it may read "
            f"{list(OPTIONAL_SETTINGS)}, and every method reads the others."
        )
    NOISE_METHODS[method_class.name] = method_class()
    for field in _FIELDS:
        _write_metadata(*field)
    return method_class


def methods_reading(setting: str) -> tuple[str, ...]:
    """The methods that read one of `OPTIONAL_SETTINGS`."""
    return tuple(name for name, method in NOISE_METHODS.items() if setting in method.settings)


def method_metadata(setting: str, text: str) -> dict[str, Any]:
    """
    Metadata of a dataclass field whose help and choices follow from the registered methods, also from later ones.

    Args:
        setting (`str`): `"method"`, or one of `DEFAULTS` or `OPTIONAL_SETTINGS`.
        text (`str`): What the help begins with.
    """
    metadata: dict[str, Any] = {}
    _FIELDS.append((metadata, setting, text))
    _write_metadata(metadata, setting, text)
    return metadata


def _write_metadata(metadata: dict[str, Any], setting: str, text: str) -> None:
    if setting == "method":
        metadata["choices"] = list(NOISE_METHODS)
        added = "; ".join(f"`{name}` {method.help}" for name, method in NOISE_METHODS.items())
    elif setting in DEFAULTS:
        defaults = {name: getattr(method, setting) for name, method in NOISE_METHODS.items()}
        added = "By default " + ", ".join(f"{value:g} for `{name}`" for name, value in defaults.items() if value)
    else:
        added = "Read by " + " and ".join(f"`{name}`" for name in methods_reading(setting))
    metadata["help"] = f"{text} {added}.".replace("%", "%%")


def _place(method_class: type[NoiseMethod]) -> tuple[str, str]:
    return method_class.__module__, method_class.__qualname__
