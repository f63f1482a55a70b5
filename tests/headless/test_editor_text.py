"""Choices, comments and file names' tokens, as the editor of ComfyUI v0.33.0 resolves them: each
pair was seen there."""

from __future__ import annotations

from datetime import datetime

import pytest

from prior_art.headless.editor_text import as_javascript, dynamic_prompt, filled, rounded

NOW = datetime(2024, 3, 5, 7, 8, 9)


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("{a|a} b", "a b"),
        ("{a|{a|a}}", "a"),
        ("a // c", "a "),
        ("a /* x \n y */ b", "a  b"),
        ("http://x.y/z", "http:"),
        ("{a|a}//b{c|c}\nd", "a\nd"),
        ("a\u2028// b\u2028c", "a\u2028\u2028c"),
        ("/* unclosed", "/* unclosed"),
        ("{a /*|*/}", "a "),
        ("\\{a|b\\}", "{a|b}"),
        ("{a\\|b}", "a|b"),
        ("{\\{x\\}|\\{x\\}}", "{x}"),
        ("\\\\{a}", "\\\\a"),
        ("{a|a", "a"),
        ("a}", "a}"),
        ("{}", ""),
        ("x\\", "x\\undefined"),
        ("{a\\", "a\\undefined"),
        ("(red:1.6) {(a:1.2)|(a:1.2)}", "(red:1.6) (a:1.2)"),
        ("\U0001f600{\u00e9|\u00e9}", "\U0001f600\u00e9"),
    ],
)
def test_choices_and_comments(text, resolved):
    assert dynamic_prompt(text) == resolved


def test_every_choice_comes_up():
    seen = {dynamic_prompt("{a|{b|c}|}") for _ in range(200)}
    assert seen == {"a", "b", "c", ""}
    assert dynamic_prompt("{a|b} {c|d}", lambda choices: choices[-1]) == "b d"


def look_up(node, widget):
    return {"N.w": 8.0, "N.on": True, "N.path": 'a/b\\c:d*?"<>|\n', "N.none": None}[
        f"{node}.{widget}"
    ]


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("%date:yyyy-MM-dd hh.mm%", "%date:yyyy-MM-dd hh.mm%"),  # one dot makes a node of it
        ("%date:yyyy-MM-dd_hh-mm-ss%", "2024-03-05_07-08-09"),
        ("%date:d-M-h-m-s%", "5-3-7-8-9"),
        ("%date:yy yyy y%", "24 yyy y"),
        ("%date:D Y H%", "D Y H"),
        ("%date:yyyy.MM.dd%", "2024"),  # and two dots cut it short
        ("%date%_%Date:dd%_%width%", "%date%_%Date:dd%_%width%"),
        ("%N.w%_%N.on%_%N.none%", "8_true_"),
        ("%N.path%", "a_b_c_d_______"),
        ("%n.w%_%N.W%_%M.w%", "%n.w%_%N.W%_%M.w%"),
        ("100%_%N.w%", "100%_%N.w%"),
        ("%%N.w%", "%8"),
        ("%%", "%%"),
    ],
)
def test_tokens_of_file_names(prefix, name):
    assert filled(prefix, look_up, NOW) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.0, "8"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-7, "1e-7"),
        (1e-6, "0.000001"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (-0.0, "0"),
        (-3, "-3"),
        (False, "false"),
        ([1, None, "a"], "1,,a"),
        ({"a": 1}, "[object Object]"),
    ],
)
def test_values_as_javascript_writes_them(value, text):
    assert as_javascript(value) == text


def test_whole_numbers_are_as_exact_as_the_editors():
    assert rounded(2**53) == 2**53 and rounded(2**53 + 1) == 2**53
    assert rounded(2**64 - 1) == 18446744073709552000
    assert rounded(True) is True and rounded(0.5) == 0.5
