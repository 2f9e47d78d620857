"""What commands share: errors, help, and the JSON files and first words that fill their flags."""

import json
import logging
import re
import sys
from dataclasses import dataclass, field, fields

import pytest
from example_scripts import EXAMPLES, load_example
from transformers import HfArgumentParser, TrainingArguments

import hf_nullspace
from hf_nullspace import NullspaceConfig, NullspaceTrainingArguments
from hf_nullspace.cli.command import COMMANDS
from hf_nullspace.cli.command_line import run_command
from hf_nullspace.cli.field_help import field_descriptions
from hf_nullspace.cli.main import main as cli
from hf_nullspace.cli.parser import CommandParser


@dataclass
class Settings:
    """
    Settings of a test.

    Args:
        rate (`float`, *optional*, defaults to 0.5):
            A share,
            such as 50 %.
        first, last (`int`, *optional*): Places.

    Raises:
        `ValueError`: Never.
    """

    model: str | None = None
    rate: float = 0.5
    first: int | None = None
    last: int = 3
    kind: str = field(default="a", metadata={"choices": ["a", "b"], "help": "Its kind."})
    flag: bool = False
    names: list[str] = field(default_factory=list)
    options: dict | str | None = None


def parse(*argv, **kwargs):
    (settings,) = CommandParser([Settings], "test", **kwargs).parse(list(argv))
    return settings


def error_of(capsys, *argv, **kwargs):
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv, **kwargs)
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("test: error: ")
    return err.removeprefix("test: error: ").removesuffix(" (`--help` lists all flags)\n")


def test_help_is_that_of_the_docstring():
    assert field_descriptions(Settings) == {"rate": "A share, such as 50 %.", "first": "Places.", "last": "Places."}
    assert "A share, such as 50 %. (default: 0.5)" in " ".join(CommandParser([Settings], "test").format_help().split())


def every_parser():
    """Command or example -> the flags that its `--help` lists."""
    for name, command in COMMANDS.items():
        yield f"hf-nullspace {name}", lambda command=command: command.run(["--help"])
    for path in sorted(EXAMPLES.glob("*.py")):
        if "run_command" in path.read_text():
            yield path.name, lambda path=path: load_example(path.stem).main(["--help"])


@pytest.mark.parametrize(
    ("name", "show_help"), list(every_parser()), ids=lambda value: value if type(value) is str else ""
)
def test_every_flag_of_every_command_has_help(name, show_help, monkeypatch, capsys):
    from argparse import ArgumentParser

    parsers, print_help = [], ArgumentParser.print_help
    monkeypatch.setattr(ArgumentParser, "print_help", lambda self: (parsers.append(self), print_help(self)))
    with pytest.raises(SystemExit) as exit_info:
        show_help()
    assert exit_info.value.code == 0
    (parser,) = parsers
    assert parser.prog == name
    assert [action.dest for action in parser._actions if not action.help] == []
    out = capsys.readouterr().out
    assert len(out) > 200
    if not isinstance(parser, CommandParser):
        return
    titles = re.findall(r"^([A-Z][\w ]+):$", out, re.MULTILINE)
    assert len(titles) == len(set(titles)) >= 1
    # Only what belongs to no dataclass stands under "options".
    general = out[out.index("\noptions:") :].partition("\n\n")[0]
    assert set(re.findall(r"^  (?:-h, )?(--\w+)", general, re.MULTILINE)) == {"--help", "--version"}
    if "--warmup_steps" in out:
        assert titles[-1] == "Trainer" and "Training on noise" in titles


def test_flags_with_few_values_name_them(capsys):
    for command, flag in (
        ("synthesize", "--method"),
        ("synthesize", "--on_failure"),
        ("finetune", "--noise_method"),
        ("finetune", "--noise_on_failure"),
        ("finetune", "--noise_ascent_gradient"),
        ("finetune", "--lr_scheduler_type"),
        ("compare", "--methods"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli([command, flag, "none-of-them"])
        message = (
            f"hf-nullspace {command}: error: argument {flag}(/[-a-z]+)?: invalid choice: 'none-of-them' .choose from "
        )
        assert re.match(message, capsys.readouterr().err)


def test_the_arguments_are_flags_of_any_parser_too():
    """Their groups are no metadata that Transformers' own parser would not know."""
    (args,) = HfArgumentParser(NullspaceTrainingArguments).parse_args_into_dataclasses(
        ["--epsilon", "0.1", "--use_cpu"]
    )
    grouped = [name for names in args.argument_groups.values() for name in names]
    own = {item.name for item in fields(NullspaceTrainingArguments)} - {
        item.name for item in fields(TrainingArguments)
    }
    assert args.epsilon == 0.1 and len(grouped) == len(set(grouped)) and set(grouped) == own


def test_every_field_of_the_config_is_in_its_docstring():
    described = field_descriptions(NullspaceConfig)
    assert set(NullspaceConfig().to_dict()) <= set(described)
    assert described["num_images"] == "Images that the noise is optimised on."


def test_flags_after_a_json_file_go_before_it(tmp_path):
    path = tmp_path / "settings of mine.json"
    path.write_text(json.dumps({"rate": 1, "names": ["x", "y"], "flag": True, "options": {"a": 1}, "first": None}))
    settings = parse(str(path), "--rate", "0.25", "--last", "7")
    assert settings == Settings(None, 0.25, None, 7, "a", True, ["x", "y"], {"a": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rates": 1}', "has an unknown setting 'rates', did you mean 'rate'?"),
        ('{"rate": "high"}', "'rate' in the file {path!r} must be a number, but is the text \"high\""),
        ('{"rate": true}', "'rate' in the file {path!r} must be a number, but is the truth value true"),
        ('{"rate": null}', "'rate' in the file {path!r} must be a number, but is the null null"),
        ('{"first": 1.5}', "'first' in the file {path!r} must be an integer or null, but is the number 1.5"),
        ('{"flag": "yes"}', "'flag' in the file {path!r} must be true or false, but is the text \"yes\""),
        ('{"names": "x"}', "'names' in the file {path!r} must be a list, but is the text \"x\""),
        ('{"names": [1]}', "'names' in the file {path!r} must be a list, but is the list [1]"),
        ('{"kind": "c"}', "'kind' in the file {path!r} must be one of ['a', 'b'], but is 'c'"),
        ('{"rate": 1, "last": 2, "rate": 3}', "the file {path!r} cannot be read: it has the name 'rate' twice"),
        ('{"rate": 1', "the file {path!r} is not JSON: Expecting ',' delimiter"),
        ("[1]", "the file {path!r} must hold one object of settings by name, but holds a list"),
        (None, "there is no file {path!r}"),
    ],
)
def test_a_bad_json_file_is_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_text(text)
    assert message.format(path=str(path)) in error_of(capsys, str(path))


def test_a_json_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"last": 7}', encoding="utf-8-sig")
    assert parse(str(path)).last == 7


def test_a_flag_that_is_given_twice_is_named(capsys, caplog):
    message = "--names is given more than once; give it once, with all of its values"
    assert error_of(capsys, "--names", "a", "--flag", "--names", "b") == message
    assert parse("--last=1", "--rate", "2", "--last", "3") == Settings(rate=2, last=3)
    assert [record.message for record in caplog.records] == ["`--last` is given more than once; the last one counts."]


def test_first_words_fill_their_flags(capsys):
    assert parse("m", "--last", "1", words=["model"]) == Settings("m", last=1)
    assert parse("m", "x", "y", "--last", "1", words=["model", "names"]) == Settings("m", last=1, names=["x", "y"])
    assert parse("--model", "m", words=["model"]).model == "m"
    expected = "unexpected 'm', which no flag takes; only model may be given without a flag, first"
    assert error_of(capsys, "--last", "1", "m", words=["model"]) == expected
    assert (
        error_of(capsys, "m", "--model", "n", words=["model"])
        == "'m' and --model are the same setting; give one of them"
    )


def test_defaults_depend_on_what_is_given(tmp_path):
    (tmp_path / "settings.json").write_text('{"last": 5}')
    seen = []
    kwargs = {"words": ["model"], "defaults": lambda given: seen.append(given) or {"rate": 0.1, "last": 9}}
    for argv, expected, given in (
        ([], Settings(rate=0.1, last=9), set()),
        ([str(tmp_path / "settings.json"), "--rate=2", "--flag"], Settings(rate=2, last=5, flag=True), None),
        (["m"], Settings("m", rate=0.1, last=9), {"model"}),
    ):
        assert parse(*argv, **kwargs) == expected
        assert seen[-1] == ({"rate", "last", "flag"} if given is None else given)


def test_help_tells_both_defaults():
    text = CommandParser([Settings], "test", defaults=lambda given: {} if given else {"last": 9}).format_help()
    assert "Places. For the digits model: 9. (default: 3)" in " ".join(text.split())


def test_each_command_tells_the_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--version")
    assert (exit_info.value.code, capsys.readouterr().out) == (0, f"hf_nullspace {hf_nullspace.__version__}\n")


def test_flags_are_not_abbreviated(capsys):
    assert error_of(capsys, "--rat", "1") == "unknown flag --rat, did you mean --rate?"
    assert error_of(capsys, "--opt", "1") == "unknown flag --opt, did you mean --options?"
    assert error_of(capsys, "--colour") == "unknown flag --colour"


def fail_with(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("first\n  second"), 2, "prog: error: first second"),
        (FileNotFoundError(2, "No such file", "x"), 2, "prog: error: [Errno 2] No such file: 'x'"),
        (RuntimeError(), 2, "prog: error: RuntimeError (`--debug` shows where)"),
        (KeyError("image"), 2, "prog: error: KeyError: 'image' (`--debug` shows where)"),
        (KeyboardInterrupt(), 130, "prog: interrupted"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(error, code, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_command("prog", fail_with(error), [])
    assert (exit_info.value.code, capsys.readouterr()) == (code, ("", f"{line}\n"))


def test_an_exit_of_the_command_is_kept():
    with pytest.raises(SystemExit) as exit_info:
        run_command("prog", fail_with(SystemExit(1)), [])
    assert exit_info.value.code == 1


def test_debug_is_the_wrappers_or_that_of_the_training_arguments():
    seen = []
    run_command("prog", seen.append, ["--debug", "a"])
    run_command("prog", seen.append, ["a", "--debug", "underflow_overflow"])
    assert seen == [["a"], ["a", "--debug", "underflow_overflow"]]


def test_a_reader_that_leaves_is_no_error(tmp_path):
    import subprocess

    code = "from hf_nullspace.cli.command_line import run_command\nrun_command('p', lambda a: print('x' * 10**6), [])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_an_output_that_was_closed_from_the_start_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    ran = []
    run_command("test", ran.append, ["x"])
    assert ran == [["x"]]


def test_messages_name_settings_as_flags(capsys, caplog):
    def command(argv):
        parse(*argv)
        logging.getLogger("hf_nullspace.noise.synthesis").warning(
            "Lower `rate` (0.5); `noise` is none of its settings."
        )
        raise ValueError("`kind='b'` needs `first`")

    with pytest.raises(SystemExit):
        run_command("test", command, [])
    assert capsys.readouterr().err == "test: error: `--kind b` needs `--first`\n"
    assert caplog.messages == ["Lower `--rate` (0.5); `noise` is none of its settings."]


def test_synthesis_speaks_of_its_flags(capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli(["synthesize", "--epsilon", "0", "--output_dir", str(tmp_path / "out")])
    assert "`--epsilon` must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
