"""Records by name, to which any module may add its own."""

from __future__ import annotations

from typing import Protocol, TypeVar


def is_name(value: object) -> bool:
    """Whether files can be named after a value: letters, digits, `-` and `_`."""
    return isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum()


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=Named)


class Registry(dict[str, Record]):
    """
    A `dict` of records by their names, in the order in which they were added.

    Args:
        kind (`str`): What the records are, for errors: `"attack"`.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, record: Record) -> Record:
        """
        Adds a record, and returns it.

        Raises:
            `ValueError`: If its name is not made of letters, digits, `-` and `_`, or another record has it.
        """
        name = record.name
        if not is_name(name):
            raise ValueError(
                f"The name of a new {self.kind} must be letters, digits, '-' and '_', because profiles and files use it, "
                f"but got {name!r}."
            )
        if name in self:
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise ValueError(f"There is already {article} {self.kind} {name!r}: {self[name]}. Choose another name.")
        self[name] = record
        return record

    def find(self, name: str, where: str = "") -> Record:
        """
        The record of a name.

        Args:
            name (`str`): The name.
            where (`str`, *optional*): What names it, as the begin of a sentence, such as `"Column 'fog'"`.

        Raises:
            `ValueError`: If there is none.
        """
        if name not in self:
            begin = f"{where} has the unknown" if where else "Unknown"
            raise ValueError(
                f"{begin} {self.kind} {name!r}; expected one of {sorted(self)}, or import the module that adds it."
            )
        return self[name]
