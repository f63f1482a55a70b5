"""Values for inputs of each type: what none takes, and what some take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

NAN, INF = float("nan"), float("inf")
HALF = "half \ud83d"
ESCAPES = "\x1b[2J\x1b]0;mine\x07\u202e"


@dataclass(frozen=True)
class Value:
    """Something for an input.

    Attributes:
        given: itself; how: a word for reports.
        bad: whether no result may come of it.
    """

    given: Any
    how: str
    bad: bool = True


def widget_values(socket: Any) -> list[Value]:
    """For a widget; ``socket`` is of an embedded schema."""
    kind, limits = socket.io_type, socket.options
    odd = [Value(one, repr(one)) for one in (None, [], {}, [1, 2, 3], {"a": {}})]
    if kind == "BOOLEAN":
        words = [Value(one, repr(one)) for one in ("abc", "true", "")]
        taken = [Value(one, repr(one), False) for one in (True, False, 0, 0.0)]
        return [*odd, *words, *taken]
    if kind == "STRING":
        odd += [Value(one, repr(one)) for one in (3, 1.5, True, HALF)]
        taken = {
            "long": "a red circle " * 2000,
            "zero": "a\x00b",
            "escapes": ESCAPES,
            "braces": "{" * 3000,
            "weights": "(" * 3000 + "a" + ":1.1)" * 3000,
            "inversion": "embedding:nobody",
            "symbols": "\U0001f642\u0301\u200b" * 300,
            "path": "../../../etc/passwd",
            "percent": "%date:yyyy%%nobody.text%%",
        }
        return odd + [Value(text, how, False) for how, text in taken.items()]
    if kind == "COMBO":
        odd += [Value(one, f"{one!r:.30}") for one in (3, NAN, "", "nobody", "a" * 5000, ESCAPES)]
        return [*odd, Value("../../etc/passwd", "path")]
    odd += [Value(one, f"{one!r:.30}") for one in ("abc", "", HALF, NAN, INF, -INF, "nan")]
    odd += [Value(10**4000, "thousands of digits")]
    taken = [Value(True, "True", False), Value("3", "'3'", False), Value(1e-300, "1e-300", False)]
    for key, step in (("min", -1), ("max", 1)):
        if limits.get(key) is not None:
            odd += [Value(limits[key] + step, f"{key} and more")]
            odd += [Value(limits[key] + step * 10**13, f"{key} and much more")]
    if kind == "INT":
        return [
            *odd,
            *taken[:2],
            Value(1.5, "1.5"),
            Value(1e300, "1e300"),
            Value(2.0, "2.0", False),
        ]
    return [*odd, *taken, Value(1e308, "1e308", limits.get("max") is not None)]


def wired_values(socket: Any) -> list[Value]:
    """Of the socket's own type, through a primitive: numbers and texts that a widget would not
    let in."""
    kind, limits = socket.io_type, socket.options
    if kind == "STRING":
        texts = {"long": "a red circle " * 2000, "zero": "a\x00b", "empty": "", "escapes": ESCAPES}
        return [Value(text, how, False) for how, text in texts.items()]
    if kind not in ("INT", "FLOAT"):
        return []
    found = []
    for key, step in (("min", -1), ("max", 1)):
        if limits.get(key) is not None:
            found += [Value(limits[key] + step * much, f"{key} by {much}") for much in (1, 10**6)]
    inside = [one for one in found if abs(one.given) < 2**63]
    return inside if kind == "INT" else [Value(float(v.given), v.how) for v in inside]


def objects(kind: str) -> list[Value]:
    """For a wire of this type; every one is bad."""
    made: dict[str, Any] = {
        "None": None,
        "text": "text",
        "number": 3,
        "numpy": np.zeros((1, 4, 4, 3), np.float32),
        "list": [1],
        "empty list": [],
        "dict": {},
        "object": SimpleNamespace(),
        "tensor": torch.zeros(2, 2),
        "other dict": {"samples": None},
        "other list": [["x", {}]],
        "class": torch.nn.Linear(2, 2),
    }
    if kind in ("IMAGE", "MASK"):
        shape = (1, 8, 8, 3) if kind == "IMAGE" else (1, 8, 8)
        made |= {
            "NaN": torch.full(shape, NAN),
            "infinite": torch.full(shape, INF),
            "to 255": torch.full(shape, 255.0),
            "bytes": torch.zeros(shape, dtype=torch.uint8),
            "none": torch.zeros(0, *shape[1:]),
            "no width": torch.zeros(1, 8, 0, *shape[3:]),
            "five axes": torch.zeros(1, 1, 1, *shape),
            "complex": torch.zeros(shape, dtype=torch.complex64),
            "meta": torch.zeros(shape, device="meta"),
            "sparse": torch.zeros(8, 8).to_sparse(),
        }
    if kind == "LATENT":
        made |= {
            "NaN": {"samples": torch.full((1, 4, 8, 8), NAN)},
            "three axes": {"samples": torch.zeros(4, 8, 8)},
            "none": {"samples": torch.zeros(0, 4, 8, 8)},
            "whole numbers": {"samples": torch.zeros(1, 4, 8, 8, dtype=torch.int64)},
            "seven channels": {"samples": torch.ones(1, 7, 8, 8)},
            "numpy samples": {"samples": np.zeros((1, 4, 8, 8), np.float32)},
        }
    if kind == "CONDITIONING":
        hidden, pooled = torch.zeros(1, 77, 64), torch.zeros(1, 64)
        beside = {"pooled_output": pooled, "embedding_space": "shapes-vit-l"}
        made |= {
            "NaN": [[hidden * NAN, beside]],
            "no pooled": [[hidden, {"embedding_space": "shapes-vit-l"}]],
            "one row": [[hidden[0], beside]],
            "numpy hidden": [[hidden.numpy(), beside]],
            "odd space": [[hidden, {**beside, "embedding_space": 3}]],
            "odd mask": [[hidden, {**beside, "attention_mask": "x"}]],
            "three parts": [[hidden, beside, 1]],
            "no dict": [[hidden, None]],
        }
    if kind == "CLIP_VISION_OUTPUT":
        made |= {
            "NaN": SimpleNamespace(image_embeds=torch.full((1, 64), NAN)),
            "one row": SimpleNamespace(image_embeds=torch.zeros(64)),
            "none": SimpleNamespace(image_embeds=torch.zeros(0, 64)),
            "numpy": SimpleNamespace(image_embeds=np.zeros((1, 64))),
            "another": SimpleNamespace(image_embeds=torch.zeros(1, 7)),
            "whole": SimpleNamespace(image_embeds=torch.zeros(1, 64, dtype=torch.int64)),
        }
    if kind == "SIGMAS":
        made |= {"NaN": torch.tensor([1.0, NAN, 0.0]), "rising": torch.tensor([0.0, 1.0])}
    return [Value(given, how) for how, given in made.items()]


JSON = (None, True, -1, 10**6, 1.5, "abc", "", [], {}, [[]], [None], {"a": 1}, ESCAPES)
"""For any place of a workflow."""

CONFIG_VALUES: list[Value] = [
    Value(given, f"{given!r:.30}")
    for given in (
        *(None, True, "abc", "", [], {}, [None], ["abc"], [[1]], {"a": 1}),
        *(0, -1, 1, 3, 7, 10**5, 10**9, -(10**9), 2**70, 0.5, -0.5, 1e-30, 1e30, 1e308),
        *(NAN, INF, -INF, [NAN], [0, 0, 0], [1] * 1000, "x" * 5000, ESCAPES, HALF, "auto"),
    )
]
"""For a key of a configuration; which are bad, its table says."""


def is_finite(value: Any) -> bool:
    """Whether there is no NaN in what a node gave."""
    if value is None:
        return True
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return (
        is_finite(vars(value).get("image_embeds")) if isinstance(value, SimpleNamespace) else True
    )
