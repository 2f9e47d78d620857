"""Evaluation profiles: JSON round trip, a hash of what changes a number, and refusals before anything runs."""

import json
from pathlib import Path

import pytest

from hf_nullspace.data.imagenet import IMAGENET_C_CORRUPTIONS as CORRUPTIONS
from hf_nullspace.robustness.metrics import PAPER_COLUMNS
from hf_nullspace.robustness.profiles import PROFILES, Column, Profile, resolve_profile


@pytest.mark.parametrize("name", PROFILES)
def test_json_round_trip_keeps_profile_and_hash(name):
    again = Profile.from_dict(json.loads(json.dumps(PROFILES[name].to_dict())))
    assert again == PROFILES[name] and again.hash == PROFILES[name].hash


def test_hash_is_of_what_changes_a_number():
    profile = Profile("mine", (Column("clean"), Column("fgsm", attack="fgsm", settings={"epsilon": "8/255"})))
    assert (
        profile.hash == "e7a3d53ea8edebb90ff274c63df92ea00af388b01243e135784b2ef3fc2599a3"
    )  # the same in every version that measures the same
    assert Profile("other", profile.columns, note="words").hash == profile.hash
    changes = [
        Profile("mine", profile.columns, seed=43),
        Profile("mine", profile.columns[:1]),
        Profile("mine", (profile.columns[0], Column("fgsm", attack="fgsm", settings={"epsilon": "4/255"}))),
        Profile("mine", (Column("clean", calibration=True), profile.columns[1])),
    ]
    assert len({profile.hash, *(change.hash for change in changes)}) == 5


def test_named_profiles_have_the_promised_columns():
    paper = [column.name for column in PROFILES["paper"].columns if column.corruption is None]
    assert paper == [name for name in PAPER_COLUMNS if name != "imagenet-c"]
    for name, dataset in (("standard", "evaluation"), ("paper", "imagenet-c")):
        corrupted = [column for column in PROFILES[name].columns if column.corruption]
        assert {column.dataset for column in corrupted} == {dataset}
        assert [(column.corruption, column.severity) for column in corrupted] == [
            (corruption, severity) for corruption in CORRUPTIONS for severity in range(1, 6)
        ]
    assert PROFILES["released"].columns[1].settings == {"epsilon": "8/225"}
    assert "no eps-ball" in PROFILES["released"].note


def test_a_profile_is_found_by_name_and_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine", "seed": 7, "columns": [{"name": "fog", "corruption": "fog", "severity": 2}]}')
    assert resolve_profile(path) == Profile("mine", (Column("fog", corruption="fog", severity=2),), seed=7)
    assert resolve_profile("quick") is PROFILES["quick"]
    assert resolve_profile(PROFILES["paper"]) is PROFILES["paper"]
    with pytest.raises(ValueError, match="Unknown profile 'fast'.*'quick'"):
        resolve_profile("fast")
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        resolve_profile(path)


def test_profile_of_the_page_is_one():
    text = (Path(__file__).parents[2] / "hf_nullspace" / "robustness" / "README.md").read_text(encoding="utf-8")
    profile = Profile.from_dict(json.loads(text.split("<!-- own profile -->\n```json")[1].split("```")[0]))
    assert [column.attack for column in profile.columns] == [None, None, "pgd_linf", "patchfool", "autoattack"]
    assert [name for name in PROFILES if f"| `{name}` |" in text] == list(PROFILES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "mine"}, "list of columns"),
        ({"name": "mine", "columns": []}, "needs columns"),
        ({"name": "mine", "columns": [{"name": "a"}, {"name": "a"}]}, "different names"),
        ({"name": "mine", "columns": [{"name": "a", "epsilon": 1}]}, r"column must .* Remove \['epsilon'\]"),
        ({"columns": [{"name": "a"}]}, "profile must have a name"),
        ({"name": "mine", "columns": [{"name": "a/b"}]}, "files are named after it.*'a/b'"),
        ({"name": "mine", "columns": [{"name": "a", "corruption": "fog"}]}, "both a corruption and a severity"),
        ({"name": "mine", "columns": [{"name": "a", "corruption": "rain", "severity": 1}]}, "unknown.*'rain'"),
        ({"name": "mine", "columns": [{"name": "a", "corruption": "fog", "severity": 6}]}, "1 to 5.*6"),
        ({"name": "mine", "columns": [{"name": "a", "attack": "bfgs"}]}, "unknown attack 'bfgs'.*'fgsm'"),
        ({"name": "mine", "columns": [{"name": "a", "settings": {"steps": 3}}]}, r"no attack.*\['steps'\]"),
        ({"name": "mine", "columns": [{"name": "a", "attack": "fgsm", "settings": {"steps": 3}}]}, "'steps'"),
        ({"name": "mine", "columns": [{"name": "a", "attack": "fgsm", "settings": {"epsilon": "x"}}]}, "'x'"),
        ({"name": "mine", "columns": [{"name": "a", "max_images": 0}]}, "`max_images`.*0"),
        ({"name": "mine", "columns": [{"name": "a", "dataset": "imagenet-c"}]}, "which needs a `corruption`"),
    ],
)
def test_bad_profiles_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Profile.from_dict(values)


def test_the_profile_beside_the_comparison_has_all_corruptions_and_three_radii():
    profile = resolve_profile(Path(__file__).parents[2] / "examples" / "compare_profile.json")
    assert [column.corruption for column in profile.columns if column.corruption] == list(CORRUPTIONS)
    assert {column.severity for column in profile.columns if column.corruption} == {3}
    radii = [column.settings["epsilon"] for column in profile.columns if column.attack]
    assert radii == ["1/255", "2/255", "8/255", "1/255"]
