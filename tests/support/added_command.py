"""A command from outside the package: it counts the pictures of a folder."""

from dataclasses import dataclass, field
from pathlib import Path

from hf_nullspace.cli.command import Command, register_command
from hf_nullspace.cli.parser import CommandParser


@dataclass
class CountArguments:
    """Which pictures are counted."""

    folder: str = field(metadata={"help": "Folder of pictures."})
    kind: str = field(default="png", metadata={"help": "Their kind.", "choices": ["png", "jpg"]})

    def __post_init__(self):
        if not Path(self.folder).is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder!r} (`folder`). Name one with pictures.")


def count(argv: list[str]) -> None:
    (args,) = CommandParser([CountArguments], "hf-nullspace count", words=["folder"]).parse(argv)
    print(len(list(Path(args.folder).glob(f"*.{args.kind}"))), "pictures")


register_command(Command("count", "Count the pictures of a folder: `count FOLDER`.", count))
