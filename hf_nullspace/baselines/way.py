"""The description of a way of finetuning, and the registry of all ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..training.arguments import NullspaceTrainingArguments
from ..training.trainer import NullspaceTrainer
from ..utils.registry import Registry


@dataclass(frozen=True)
class Way:
    """
    A way of finetuning: a trainer, and the arguments that make it this way.

    Args:
        name (`str`): Its name in tables, files and folders.
        summary (`str`): What it trains on, as the end of a line of help.
        cost (`float`):
            Cost of a training step with the default arguments, relative to a step of plain finetuning: forward and
            backward passes per image, without the search for noise.
        trainer_class (`type[NullspaceTrainer]`): The trainer.
        args_class (`type[NullspaceTrainingArguments]`, *optional*): Its arguments.
        fixed_arguments (`Mapping[str, Any]`, *optional*): Arguments with a fixed value; other values are refused.

    Raises:
        `TypeError`: If trainer or arguments are of another kind.
        `ValueError`: If the cost is no positive number, or a fixed argument is none of its arguments.
    """

    name: str
    summary: str
    cost: float
    trainer_class: type[NullspaceTrainer]
    args_class: type[NullspaceTrainingArguments] = NullspaceTrainingArguments
    fixed_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for part, base in (("trainer_class", NullspaceTrainer), ("args_class", NullspaceTrainingArguments)):
            given = getattr(self, part)
            if not (isinstance(given, type) and issubclass(given, base)):
                raise TypeError(
                    f"`{part}` of the way {self.name!r} must be derived from `{base.__name__}`, so that all ways train "
                    f"alike but for one thing; but got {given!r}."
                )
        if not self.cost > 0:
            raise ValueError(f"`cost` of the way {self.name!r} must be a positive number, but got {self.cost!r}.")
        unknown = sorted(set(self.fixed_arguments) - self.argument_names)
        if unknown:
            raise ValueError(
                f"The way {self.name!r} fixes {unknown}, which are no arguments of {self.args_class.__name__}."
            )

    @property
    def argument_names(self) -> set[str]:
        """The training arguments that it takes."""
        return {item.name for item in fields(self.args_class) if item.init}

    def arguments(self, output_dir: str, **settings: Any) -> NullspaceTrainingArguments:
        """
        Its training arguments.

        Args:
            output_dir (`str`): Folder of the run.
            settings: Arguments that differ from the defaults.

        Raises:
            `ValueError`: If a setting lies outside its range, or is one of the fixed arguments with another value.
        """
        for name, value in self.fixed_arguments.items():
            if settings.get(name, value) != value:
                raise ValueError(f"`{name}` is {value!r} in the way {self.name!r}, but got {settings[name]!r}.")
        return self.args_class(output_dir, **{**settings, **self.fixed_arguments})


WAYS: Registry[Way] = Registry("way of finetuning")


def register_way(way: Way) -> Way:
    """
    Makes a way of finetuning known to comparisons.

    Raises:
        `ValueError`: If another way has its name, or it cannot be a name.
    """
    return WAYS.register(way)
