"""The arguments of training stand in groups: in the docstring, in the fields and for `--help`, each once and with help."""

import inspect
import re
from dataclasses import fields

from transformers import TrainingArguments

from hf_nullspace import NullspaceTrainingArguments


GROUPS = NullspaceTrainingArguments.argument_groups
OWN = [item for item in fields(NullspaceTrainingArguments) if item.name not in TrainingArguments.__dataclass_fields__]


def test_fields_stand_in_the_order_of_their_groups():
    assert [item.name for item in OWN] == [name for names in GROUPS.values() for name in names]


def test_the_docstring_has_the_same_groups_in_the_same_order():
    text = inspect.cleandoc(NullspaceTrainingArguments.__doc__)
    found = re.findall(r"^    (?:> (.+)|(\w+) \(`.*`.*\):)$", text, re.MULTILINE)
    expected = [each for title, names in GROUPS.items() for each in [(title, ""), *(("", name) for name in names)]]
    assert found == expected


def test_each_has_help_and_the_choices_that_it_takes():
    assert all(item.metadata["help"].endswith(".") for item in OWN)
    chosen = {item.name: item.metadata["choices"] for item in OWN if "choices" in item.metadata}
    assert chosen.keys() == {"noise_method", "noise_on_failure", "noise_ascent_gradient"}
    for name, choices in chosen.items():
        for choice in choices:
            assert getattr(NullspaceTrainingArguments("out", use_cpu=True, **{name: choice}), name) == choice
