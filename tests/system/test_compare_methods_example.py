"""`examples/compare_methods.py` is the command `hf-nullspace compare`."""

from example_scripts import load_example

from hf_nullspace.cli.commands.compare import main


def test_it_is_the_command():
    assert load_example("compare_methods").main is main
