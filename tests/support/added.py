"""A module from outside the package whose attack, corruption or dataset is added for one test, and evaluated."""

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from hf_nullspace import RobustnessReport
from hf_nullspace.cli.main import main
from hf_nullspace.robustness.shards import ShardRunner


@contextmanager
def added(module: str, registry: dict) -> Iterator[ModuleType]:
    """Imports a module that adds to a registry, which is as before in the end."""
    before = dict(registry)
    try:
        yield importlib.import_module(module)
    finally:
        sys.modules.pop(module, None)
        registry.clear()
        registry.update(before)


class Evaluations:
    """
    Evaluations of the model of the fixture `photos` by `hf-nullspace evaluate`.

    Args:
        photos (`Path`): Its folder.
        folder (`Path`): Where profile and reports are written.
        columns (`list[dict]`): The columns of the profile.
        options (`Sequence[str]`, *optional*): More flags.
    """

    def __init__(self, photos: Path, folder: Path, columns: list[dict], options: Sequence[str] = ()):
        self.photos, self.folder, self.columns, self.options = photos, folder, columns, options

    def run(self, name: str = "out") -> RobustnessReport:
        """The report that the command writes to a folder of this name."""
        profile = self.folder / "profile.json"
        profile.write_text(json.dumps({"name": "mine", "columns": self.columns}), encoding="utf-8")
        words = ["evaluate", str(self.photos / "model"), "--images", str(self.photos / "images"), "--disable_tqdm"]
        flags = {"--profile": profile, "--output_dir": self.folder / name, "--batch_size": 4}
        main([*words, *(str(word) for flag in flags.items() for word in flag), *self.options])
        return RobustnessReport.load(self.folder / name)

    def run_interrupted(self, name: str = "interrupted") -> tuple[RobustnessReport, set[str]]:
        """The report of a run that was stopped at its last column and went on, and the columns measured in the end."""
        last, measure, measured = self.columns[-1]["name"], ShardRunner.measure, set()

        def stop(self, column, *args):
            if column.name == last:
                raise KeyboardInterrupt
            return measure(self, column, *args)

        def note(self, column, *args):
            measured.add(column.name)
            return measure(self, column, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShardRunner, "measure", stop)
            with pytest.raises(SystemExit):
                self.run(name)
            patch.setattr(ShardRunner, "measure", note)
            return self.run(name), measured

    def error(self, capsys) -> str:
        """The line with which the command refuses."""
        with pytest.raises(SystemExit) as stopped:
            self.run("refused")
        assert stopped.value.code == 2
        return capsys.readouterr().err


def help_text(capsys) -> str:
    """What `hf-nullspace evaluate --help` prints, on one line."""
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    return " ".join(capsys.readouterr().out.split())
