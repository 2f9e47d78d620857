"""Damaged JSON files end in one line that names the file."""

import pytest

from hf_nullspace.utils.strict_json import DamagedFileError, expect, read_json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "delimiter"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"\xff\xfe{", "utf-8"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1' + b"0" * 400 + b"}", "too large"),
        (b'{"a": 1' + b"0" * 9000 + b"}", "too large"),
        (b'{"a": 1, "a": 2}', "the name 'a' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "more than 32 deep"),
        (b'{"\x1b[31m": 1, }', "control character"),
    ],
)
def test_damage_is_named(tmp_path, content, words):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="^report.json is damaged: ") as caught:
        read_json(path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_good_files_are_read(tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"a": [1, 2.5, "x", null, true]}')
    assert read_json(path) == {"a": [1, 2.5, "x", None, True]}
    with pytest.raises(DamagedFileError, match="at most 10 are read"):
        read_json(path, max_bytes=10)
    with pytest.raises(FileNotFoundError, match="There is no file other.json"):
        read_json(tmp_path / "other.json")


def test_kinds_are_checked():
    assert expect(1, (int, float), "x") == 1
    assert expect(None, (int, type(None)), "x") is None
    for value, kind in ((True, int), ("1", (int, float)), (None, dict), (float("nan"), float)):
        with pytest.raises(DamagedFileError, match="^x "):
            expect(value, kind, "x")
