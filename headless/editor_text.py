"""Text that ComfyUI's editor changes when it queues a prompt: choices and comments in prompts,
tokens in file names. Facts of comfyui-frontend-package 1.49.6, the same in 1.27.10."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from .errors import WorkflowError

# JavaScript's "." ends at each of these.
_COMMENTS = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_TOKEN = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


DEEPEST = 100
"""Choices of a prompt within each other."""


def dynamic_prompt(
    text: str, choose: Callable[[list[str]], str] = random.choice, depth: int = 0
) -> str:
    r"""Resolve ``{a|b}`` (nested too), ``//`` and ``/* */`` as the editor does.

    ``\{``, ``\|`` and ``\}`` stay as characters. A brace that is never closed reaches to the
    end, and a single backslash at the end becomes ``\undefined``: so it is in the editor.

    Args:
        depth: how many braces are around it.

    Raises:
        WorkflowError: more than :data:`DEEPEST` of them.
    """
    if depth > DEEPEST:
        raise WorkflowError(
            f"a prompt has choices {{a|b}} within each other more than {DEEPEST} deep; take some"
            " out or write \\{ for a brace"
        )
    text = _COMMENTS.sub("", text)
    out, at = [], 0

    def escaped(at: int) -> str:
        return "\\" + (text[at] if at < len(text) else "undefined")

    while at < len(text):
        letter, at = text[at], at + 1
        if letter == "\\":
            out.append(escaped(at))
            at += 1
        elif letter == "{":
            options, choice, open_braces = [], "", 0
            while at < len(text):
                letter, at = text[at], at + 1
                if letter == "\\":
                    choice += escaped(at)
                    at += 1
                    continue
                if letter == "}" and not open_braces:
                    break
                if letter == "|" and not open_braces:
                    options.append(choice)
                    choice = ""
                    continue
                open_braces += {"{": 1, "}": -1}.get(letter, 0)
                choice += letter
            out.append(dynamic_prompt(choose([*options, choice]), choose, depth + 1))
        else:
            out.append(letter)
    return re.sub(r"\\([{}|])", r"\1", "".join(out))


def filled(text: str, look_up: Callable[[str, str], Any], now: datetime) -> str:
    """Fill in a file name's ``%date:...%`` and ``%node.widget%``; other tokens stay.

    Args:
        text: the widget's value.
        look_up: a widget's value by its node's and its own name; KeyError if there is none.
        now: for dates: d, M, h, m, s (twice for two digits), yy, yyyy; case counts.
    """

    def token(found: re.Match) -> str:
        parts = found[1].split(".")
        if len(parts) != 2:
            if parts[0].startswith("date:"):
                return _DATE.sub(lambda code: _date(code[0], now), parts[0][5:])
            return found[0]
        try:
            value = look_up(*parts)
        except KeyError:
            return found[0]
        return _NOT_IN_NAMES.sub("_", "" if value is None else as_javascript(value))

    return _TOKEN.sub(token, text)


def _date(code: str, now: datetime) -> str:
    if code[0] == "y":
        return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(code, code)
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}
    return f"{parts[code[0]]}".zfill(len(code))


def as_javascript(value: Any) -> str:
    """A JSON value as JavaScript's ``String()`` writes it: 8.0 is "8"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _number(float(value))
    if isinstance(value, (list, tuple)):
        return ",".join("" if part is None else as_javascript(part) for part in value)
    return "[object Object]" if isinstance(value, Mapping) else str(value)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        digits = f"{Decimal(repr(value)):f}"
        return digits.removesuffix(".0")
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"


def rounded(value: Any) -> Any:
    """A number as the editor holds it: whole numbers beyond 2^53 lose their last digits."""
    if isinstance(value, int) and not isinstance(value, bool) and 2**53 < abs(value) < 2**1023:
        return int(Decimal(repr(float(value))))
    return value
