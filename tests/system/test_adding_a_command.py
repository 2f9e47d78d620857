"""A command comes from one module outside the package, and is found, helped with and refused like any other."""

import sys

import pytest

from hf_nullspace.cli.command import COMMANDS, Command, register_command
from hf_nullspace.cli.main import main


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """`plugin(module)` installs a package whose entry point names a module; commands go again after the test."""
    before = dict(COMMANDS)

    def install(module: str) -> None:
        folder = tmp_path / "site" / "added-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[hf_nullspace.plugins]\nadded = {module}\n")
        monkeypatch.syspath_prepend(folder.parent)
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield install
    COMMANDS.clear()
    COMMANDS.update(before)


def test_a_command_of_another_package_runs(plugin, tmp_path, capsys):
    plugin("added_command")
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / name).touch()
    main(["count", str(tmp_path)])
    main(["count", str(tmp_path), "--kind", "jpg"])
    assert capsys.readouterr().out == "2 pictures\n1 pictures\n"
    main(["--help"])
    assert "\n  count       Count the pictures of a folder: `count FOLDER`.\n" in capsys.readouterr().out


def test_its_help_and_its_errors_are_those_of_any_command(plugin, capsys):
    plugin("added_command")
    with pytest.raises(SystemExit, match="0"):
        main(["count", "--help"])
    out = capsys.readouterr().out
    assert "Count:\n  Which pictures are counted.\n" in out and "Folder of pictures." in out
    for argv, message in (
        (["coumt"], "hf-nullspace: error: unknown command 'coumt', did you mean count?"),
        (["count", "nowhere"], "hf-nullspace count: error: There is no folder 'nowhere' (`--folder`). Name one with"),
        (["count", "x", "--kinds", "jpg"], "hf-nullspace count: error: unknown flag --kinds, did you mean --kind?"),
        (["count", "x", "--kind", "gif"], "hf-nullspace count: error: argument --kind: invalid choice: 'gif'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(argv)
        err = capsys.readouterr().err
        assert err.startswith(message) and err.count("\n") == 1


def test_a_plugin_that_cannot_be_imported_is_named(plugin, capsys):
    plugin("no_such_module")
    with pytest.raises(SystemExit, match="2"):
        main(["--help"])
    message = "hf-nullspace: error: The plugin 'added' (no_such_module) cannot be imported: ModuleNotFoundError: "
    assert capsys.readouterr().err.startswith(message)


def test_a_name_is_given_once_and_can_be_typed():
    with pytest.raises(ValueError, match="There is already a command 'probe'.*Choose another name"):
        register_command(Command("probe", "Another.", print))
    with pytest.raises(ValueError, match="name of a new command must be letters, digits, .*, but got 'Probe it'"):
        register_command(Command("Probe it", "Another.", print))
