"""Rows of a comparison: in the order they can run in, and every mistake in a variant named."""

import json
from pathlib import Path

import pytest

from hf_nullspace import NullspaceTrainingArguments
from hf_nullspace.baselines import WAYS
from hf_nullspace.comparison.plan import Row, interpolated_rows, plan_rows, read_variants


def test_ways_come_first_and_every_row_after_its_start():
    variants = {
        "third": {"method": "nullspace", "start": "second"},
        "second": {"method": "nullspace", "start": "pgd", "epsilon": 0.1},
        "first": {"method": "trades", "trades_beta": 3.0, "max_steps": 5},
    }
    rows = plan_rows(["plain", "pgd"], WAYS, variants)
    assert [row.name for row in rows[:2]] == ["plain", "pgd"]
    names = [row.name for row in rows]
    assert names.index("second") < names.index("third")
    assert rows[0].to_dict() == {"name": "plain", "method": "plain", "start": "base", "arguments": {}}
    assert rows[names.index("second")] == Row("second", "nullspace", "pgd", {"epsilon": 0.1})
    recipe = {"method": "plain", "ema_decay": 0.9, "augmentation": "none", "learning_rate": 0.1}
    assert plan_rows(["plain"], WAYS, {"mine": recipe})[1] == Row(
        "mine", "plain", "base", {"learning_rate": 0.1}, {"augmentation": "none", "ema_decay": 0.9}
    )
    assert rows[names.index("first")] == Row("first", "trades", "base", {"trades_beta": 3.0, "max_steps": 5})


def test_a_start_beside_others_that_are_ready_is_waited_for():
    rows = plan_rows(["plain"], WAYS, {"b": {"method": "plain", "start": "a"}, "a": {"method": "plain"}})
    assert [row.name for row in rows] == ["plain", "a", "b"]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"x": {"method": "magic"}}, "'x' must be a JSON object with a `method` of .*'nullspace'.*magic"),
        ({"x": {"epsilon": 0.1}}, "'x' must be a JSON object with a `method`"),
        ({"x": 3}, "'x' must be a JSON object.*3"),
        ({"x": {"method": "nullspace", "epsilom": 0.1}}, r"'x' has the unknown training arguments \['epsilom'\]"),
        ({"x": {"method": "nullspace", "trades_beta": 0.1}}, r"\['trades_beta'\].*NullspaceTrainingArguments"),
        ({"x": {"method": "nullspace", "seed": 1, "output_dir": "a"}}, r"sets \['output_dir', 'seed'\]"),
        ({"x": {"method": "plain", "noise_weight": 1.0}}, r"sets \['noise_weight'\].*'plain' sets itself"),
        ({"x": {"method": "nullspace", "start": "magic"}}, r"cannot start: \{'x': 'magic'\}; \['magic'\] are no rows"),
        (
            {"x": {"method": "plain", "start": "y"}, "y": {"method": "plain", "start": "x"}},
            "cannot start: .*they start from one another",
        ),
        ({"plain": {"method": "nullspace"}}, "'plain' needs another name"),
        ({"base": {"method": "nullspace"}}, "'base' needs another name"),
        ({"x-interpolated": {"method": "plain"}}, "'x-interpolated' needs another name"),
        ({"a/b": {"method": "nullspace"}}, "letters, digits.*'a/b'"),
        ({"..": {"method": "nullspace"}}, r"letters, digits.*'\.\.'"),
    ],
)
def test_mistakes_in_variants_are_named(variants, message):
    with pytest.raises(ValueError, match=message):
        plan_rows(["plain"], WAYS, variants)


@pytest.mark.parametrize("names", [["nullspace"], ["plain", "magic"], ["plain", "plain"]])
def test_ways_are_known_and_plain_is_one(names):
    with pytest.raises(ValueError, match="`methods` must be some of .*each once, with 'plain' among them"):
        plan_rows(names, WAYS)


def test_the_variants_beside_the_example_can_be_planned():
    path = Path(__file__).parents[2] / "examples" / "compare_variants.json"
    rows = plan_rows(list(WAYS), WAYS, read_variants(path))
    epsilons = [row.arguments["epsilon"] for row in rows if row.name.startswith("epsilon-")]
    assert epsilons == [0.1, 0.3]
    assert [row.name for row in rows if row.start == "pgd"] == ["pgd+plain", "pgd+nullspace"]
    for common in ({}, {"noise_method": "boundary"}):  # photographs, and the digits
        given = NullspaceTrainingArguments("out", use_cpu=True, **common)
        common |= {"noise_ascent": given.noise_ascent}
        for row in rows:
            way = WAYS[row.way]
            way.arguments("out", use_cpu=True, **{**common, **way.fixed_arguments, **row.arguments})


def test_the_levers_beside_the_example_differ_from_its_methods_in_one_thing():
    path = Path(__file__).parents[2] / "examples" / "compare_levers.json"
    rows = plan_rows(list(WAYS), WAYS, read_variants(path))
    changed = {row.name: row.arguments for row in rows if row.name not in WAYS}
    assert changed["one-round"] == {"noise_refresh_steps": 120}
    limits = {"no-token-limit": None, "token-limit-1.5": 1.5, "token-limit-1": 1.0}
    for name, limit in limits.items():
        assert changed[name] == {**changed["boundary"], "noise_max_token_ratio": limit}
    assert [row.name for row in rows if row.start == "pgd-2"] == ["pgd-2+plain", "pgd-2+nullspace"]
    for row in rows:  # with the other flags of the command on the page
        common = {"noise_method": "sample", "noise_ascent": 3.0, "epsilon": 0.3, "noise_weight": 2.0}
        way = WAYS[row.way]
        way.arguments("out", use_cpu=True, **{**common, **way.fixed_arguments, **row.arguments})


def test_variants_are_read_from_json(tmp_path):
    assert read_variants(None) == {}
    path = tmp_path / "variants.json"
    path.write_text(json.dumps({"x": {"method": "plain"}}))
    assert read_variants(path) == {"x": {"method": "plain"}}
    for text, message in (("{", "is no JSON"), ("[1]", r"must hold a JSON object.*\[1\]")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_variants(path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_variants(tmp_path / "none.json")


def test_averages_are_of_a_row_and_its_start():
    rows = plan_rows(["plain", "pgd"], WAYS, {"after": {"method": "nullspace", "start": "pgd"}})
    found = interpolated_rows(["after", "plain"], rows)
    assert found == [
        Row("after-interpolated", "nullspace", "after", interpolated_with="pgd"),
        Row("plain-interpolated", "plain", "plain", interpolated_with="base"),
    ]
    assert found[0].to_dict()["interpolated_with"] == "pgd"
    for names in (["magic"], ["plain", "plain"]):
        with pytest.raises(ValueError, match="`interpolated` takes rows of this comparison, each once"):
            interpolated_rows(names, rows)
