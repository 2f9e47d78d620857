"""Names of strangers read as names, wherever they are shown."""

import pytest

from hf_nullspace.utils.escaping import escaped_strings, markdown_text, plain_text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("gaussian_noise_3", "gaussian_noise_3"),
        ("Grün, 猫 (2.13.0+cpu) {'a': [0.5]}", "Grün, 猫 (2.13.0+cpu) {'a': [0.5]}"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("abc\u202etxt", "abc\\u202etxt"),
        ("zero\u200bwidth\u2028", "zero\\u200bwidth\\u2028"),
        (b"x", "b'x'"),
        (7, "7"),
    ],
)
def test_plain_text(value, shown):
    assert plain_text(value) == shown


def test_plain_text_is_shortened():
    assert plain_text("x" * 100, 10) == "xxxxxxx..."


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("gaussian_noise_3", "gaussian_noise_3"),
        ("{'size': [0.5, 0.5]}", "{'size': [0.5, 0.5]}"),
        ("a | b", "a \\| b"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("![x](http://y)", "![x\\](http://y)"),
        ("`code` **bold** $1$", "\\`code\\` \\*\\*bold\\*\\* \\$1\\$"),
        ("back\\|slash", "back\\\\\\|slash"),
        ("line\n# heading", "line\\\\n# heading"),
    ],
)
def test_markdown_text(value, shown):
    assert markdown_text(value) == shown


def test_all_strings_of_a_value():
    assert escaped_strings({"a|b": ["<", 1, None, {"x": "\x1b"}]}) == {"a\\|b": ["&lt;", 1, None, {"x": "\\\\x1b"}]}
