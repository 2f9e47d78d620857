"""The record of an attack: all that a profile, an evaluation, a report and the command line need of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch

from ...models.pixel_model import PixelModel
from ...utils.registry import Registry
from ..outcomes import KINDS, LABEL, SECONDS, TABLE
from .epsilon import parse_epsilon
from .search import watched_gradients


# What every attack is called with beside its own settings.
GIVEN = ("model", "pixels", "labels", "seed", "indices")
# The outcome that says of an image that the attack found no gradient for it.
ZERO_GRADIENTS = "has_zero_gradients"
# Names that a file of outcomes has already.
RESERVED = (*KINDS, LABEL, TABLE, "indices", SECONDS, ZERO_GRADIENTS)


@dataclass(frozen=True)
class Attack:
    """
    An attack that a column of a profile may name. It is called as its function is.

    Args:
        name (`str`):
            Its name.
        function (`Callable`):
            Called with a [`PixelModel`], clean pixels in [0, 1] of shape `(batch_size, channels, height, width)`, labels of
            shape `(batch_size,)`, the settings of the column, and `seed` and `indices` by name, which its random numbers
            must be drawn from; see [`~search.attack_correct`]. Returns the attacked pixels, and if the attack `reports`
            numbers, a pair of these and a `dict` of tensors of shape `(batch_size,)`.
        help (`str`):
            What it does, in a line.
        radii (`Mapping[str, float]`, *optional*):
            The default radius in pixel units of each ball that it knows, by norm (`"Linf"` or `"L2"`). With several, its
            setting `norm` chooses, the first by default. Empty where no ball bounds it.
        steps (`int`, *optional*):
            Forward and backward passes that it takes at most for an image, where it has no setting `steps`.
        reports (`Mapping[str, str]`, *optional*):
            Numbers that its function returns of each image, by name, each with the title of its mean in the report.
        packages (`Mapping[str, str]`, *optional*):
            Packages that it needs beyond those of `hf_nullspace`, each with what to install.
        min_classes (`int`, *optional*, defaults to 2):
            Among how many classes a prediction must be.
        rehearsal (`Mapping[str, Any]` or `None`, *optional*, defaults to `{"steps": 1}`):
            Settings with which it is tried on two pictures before anything is measured, as far as it has them. `None` for an
            attack that takes long however it is set: then only its settings are checked.
    """

    name: str
    function: Callable[..., Any]
    help: str
    radii: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    reports: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    min_classes: int = 2
    rehearsal: Mapping[str, Any] | None = field(default_factory=lambda: {"steps": 1})

    def __call__(
        self, model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, *args, **settings
    ) -> torch.Tensor:
        """The attacked pixels."""
        found = self.function(model, pixels, labels, *args, **settings)
        return found[0] if self.reports else found

    @property
    def settings(self) -> list[str]:
        """The settings that a column may give."""
        return [name for name in signature(self.function).parameters if name not in GIVEN]

    @property
    def description(self) -> str:
        """Name, help and balls, for the command line."""
        balls = " or ".join(f"the {norm} ball of radius {radius:.3g}" for norm, radius in self.radii.items())
        return f"{self.name}: {self.help}" + (f" By default in {balls}." if balls else "")

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the outcomes, true or false of each image, with which it warns."""
        return (ZERO_GRADIENTS,)

    def check(self, settings: Mapping[str, Any], where: str) -> None:
        """
        Raises for settings that are wrong whatever the model.

        Args:
            settings (`Mapping[str, Any]`): Those of a column.
            where (`str`): The column, as the begin of a sentence.

        Raises:
            `ValueError`, `TypeError`: If a setting is unknown, or norm or radius make no sense.
        """
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            raise ValueError(
                f"{where} has the unknown attack settings {unknown}; {self.name!r} takes {self.settings}."
            )
        if "norm" in self.settings and settings.get("norm", next(iter(self.radii))) not in self.radii:
            raise ValueError(f"{where} must have a norm of {list(self.radii)}, but got {settings['norm']!r}.")
        if "epsilon" in settings:
            norm = settings.get("norm", next(iter(self.radii), None))
            parse_epsilon(settings["epsilon"], largest=math.inf if norm == "L2" else 1.0)

    def passes(self, settings: Mapping[str, Any]) -> int:
        """Forward passes that an image takes at most, a backward pass counted as two."""
        parameter = signature(self.function).parameters.get("steps")
        default = self.steps or (1 if parameter is None else parameter.default)
        return 2 + 3 * settings.get("steps", default)

    def measure(
        self, model: PixelModel, pixels: torch.Tensor, labels: torch.Tensor, settings: Mapping[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The attacked pixels, and what is to be known of each image: its flags and the numbers that the attack reports.

        Args:
            model ([`PixelModel`]): The classifier.
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Clean pictures in [0, 1].
            labels (`torch.Tensor` of shape `(batch_size,)`): Their classes.
            settings (`Mapping[str, Any]`): Those of the column, with `seed` and `indices`.
        """
        with watched_gradients() as without:
            found = self.function(model, pixels, labels, **settings)
        attacked, numbers = found if self.reports else (found, {})
        if set(numbers) != set(self.reports):
            raise ValueError(
                f"The attack {self.name!r} must report {list(self.reports)} of each image, but gave {list(numbers)}."
            )
        flags = torch.tensor([place in without for place in range(len(pixels))], dtype=torch.bool)
        return attacked.detach(), {ZERO_GRADIENTS: flags, **numbers}

    def rehearse(
        self, model: PixelModel, pixels: torch.Tensor, logits: torch.Tensor, settings: Mapping[str, Any]
    ) -> None:
        """
        Tries the attack with all settings of a column, in as few passes as it can be.

        Args:
            model ([`PixelModel`]): The classifier.
            pixels (`torch.Tensor` of shape `(batch_size, channels, height, width)`): A few pictures in [0, 1].
            logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The model's, of these pictures.
            settings (`Mapping[str, Any]`): Those of the column, with `seed` and `indices`.

        Raises:
            `ValueError`: If the model has too few classes, or the function refuses the model or a setting.
        """
        num_classes = logits.shape[1]
        predicted = logits.argmax(-1)
        if num_classes < self.min_classes:
            raise ValueError(
                f"The attack {self.name!r} needs at least {self.min_classes} classes, but the model has {num_classes}. "
                "Leave the column out, or choose another attack."
            )
        # Pictures that are misclassified already are left alone, at no cost; every setting is checked.
        self(model, pixels, (predicted + 1) % num_classes, **settings)
        if self.rehearsal is not None:
            short = {name: value for name, value in self.rehearsal.items() if name in self.settings}
            self(model, pixels, predicted, **{**settings, **short})

    def row(self, settings: Mapping[str, Any], outcomes: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """
        The fields that the attack adds to the row of a column in a report, beside accuracy, success and distances.

        Args:
            settings (`Mapping[str, Any]`): Those of the column.
            outcomes (`Mapping[str, torch.Tensor]`): What [`Attack.measure`] gave for all images.
        """
        row: dict[str, Any] = {}
        if kinds := self.warned(outcomes):
            row["warnings"] = kinds
            row["zero_gradients"] = int(outcomes[ZERO_GRADIENTS].sum())
        means = {f"mean_{name}": outcomes[name].double().mean().item() for name in self.reports if name in outcomes}
        return row | {name: value if math.isfinite(value) else None for name, value in means.items()}

    def warned(self, outcomes: Mapping[str, torch.Tensor]) -> list[str]:
        """The flags that some image has."""
        return [name for name in self.flags if name in outcomes and bool(outcomes[name].any())]

    def cells(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The cells of a row of a report that only this attack has, by title."""
        means = {title: row.get(f"mean_{name}") for name, title in self.reports.items()}
        return {title: f"{value:.4f}" for title, value in means.items() if value is not None}

    def warnings(self, name: str, row: Mapping[str, Any]) -> list[str]:
        """Reasons to trust the number of a column less, in sentences; `name` is the column's."""
        if not row.get("zero_gradients"):
            return []
        return [
            f"{name}: the attack found no gradient (zero or not finite) for {row['zero_gradients']} of {row['count']} "
            "images, so it says little of them; the model may look more robust than it is."
        ]


class _Attacks(Registry[Attack]):
    def register(self, record: Attack) -> Attack:
        parameters = list(signature(record.function).parameters)
        if parameters[:3] != list(GIVEN[:3]) or not set(GIVEN) <= set(parameters):
            raise ValueError(
                f"The function of the attack {record.name!r} must take model, pixels and labels first, and seed and "
                f"indices by name, but takes {parameters}."
            )
        if taken := sorted(set(record.reports) & set(RESERVED)):
            raise ValueError(f"The attack {record.name!r} cannot report {taken}, which every column has. Rename them.")
        return super().register(record)


ATTACKS = _Attacks("attack")


def register_attack(attack: Attack) -> Attack:
    """
    Adds an attack, which profiles may then name; returns it.

    Args:
        attack ([`Attack`]): The attack. [`Attack.row`], [`Attack.cells`], [`Attack.warnings`], [`Attack.measure`] and
            [`Attack.flags`] may be overridden where it has more to say than numbers of each image.

    Raises:
        `ValueError`: If there is an attack of this name already, or its function takes other arguments.

    Example:

    ```python
    >>> from hf_nullspace.robustness.attacks import Attack, register_attack

    >>> register_attack(Attack("darken", darken, "Dims the picture."))  # doctest: +SKIP
    ```
    """
    return ATTACKS.register(attack)
