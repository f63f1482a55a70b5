"""What a door lacks or has otherwise than ``host/api.py`` says; shared with places_in_process.py.

Either a running door, or its source, which needs no ComfyUI.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

ROOMS = Path(__file__).resolve().parents[2] / "host"

ATTRIBUTE = "an attribute"

Names = dict[str, str]
"""Names and their signatures: parameters, in order, with their defaults; or :data:`ATTRIBUTE`."""


def interface() -> Names:
    """The names of ``host.api.Host``."""
    tree = ast.parse((ROOMS / "api.py").read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Host")
    names = {n.name: _spelled(n, skip=1) for n in body if isinstance(n, ast.FunctionDef)}
    fields = (n.target for n in body if isinstance(n, ast.AnnAssign))
    return names | {field.id: ATTRIBUTE for field in fields if isinstance(field, ast.Name)}


def running(door: Any, wanted: Names) -> Names:
    """Those names as the imported door has them."""
    found = {}
    for name in wanted:
        if hasattr(door, name):
            value = getattr(door, name)
            found[name] = ATTRIBUTE
            if inspect.isfunction(value):
                found[name] = ", ".join(map(_shown, inspect.signature(value).parameters.values()))
    return found


def written(file: Path, wanted: Names) -> Names:
    """Those names as the source of a door, and of the modules that it takes them from, has them."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = _spelled(node)
        elif isinstance(node, ast.Assign):
            found |= {t.id: ATTRIBUTE for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            beside = file.with_name(f"{node.module}.py")
            own = written(beside, wanted) if node.level == 1 and beside.is_file() else {}
            for alias in node.names:
                found[alias.asname or alias.name] = own.get(alias.name, ATTRIBUTE)
    return {name: signature for name, signature in found.items() if name in wanted}


def differences(found: Names, wanted: Names) -> list[str]:
    """Where a door is not the interface, in words."""
    return [
        f"{name}({signature}) is {found.get(name, 'missing')}"
        for name, signature in wanted.items()
        if found.get(name) != signature
    ]


def _shown(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{stars}{parameter.name}{default}"


def _spelled(node: ast.FunctionDef, skip: int = 0) -> str:
    """As :func:`_shown` tells a running function."""
    given = [*node.args.posonlyargs, *node.args.args]
    bare = len(given) - len(node.args.defaults)
    parts = [arg.arg for arg in given[:bare]]
    parts += [
        f"{arg.arg}={ast.literal_eval(default)!r}"
        for arg, default in zip(given[bare:], node.args.defaults, strict=True)
    ]
    parts += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        parts.append(arg.arg if default is None else f"{arg.arg}={ast.literal_eval(default)!r}")
    parts += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    return ", ".join(parts[skip:])
