"""Lazy imports of diffusers and transformers, with words for the user where they are broken.

Real installations often hold a torchvision or torchaudio that does not match torch; importing
transformers or diffusers then raises something unrelated to its cause. The pack imports them only
when a loader needs them, through :func:`require`, so that its nodes always register.
"""

from __future__ import annotations

import importlib
from typing import Any

COMPANIONS = ("torchvision", "torchaudio", "xformers", "flash_attn", "bitsandbytes")
"""Optional packages that break the import of others when they do not match torch."""


class LibraryError(ImportError):
    """A library that a loader needs cannot be imported; the message says which and the cure."""


def require(package: str, *names: str) -> Any:
    """Import ``package``, or take ``names`` out of it.

    Args:
        package: a module name such as ``diffusers``.
        names: attributes of it. Both libraries import these only when asked for.

    Returns:
        The module without ``names``, the attribute for one name, a tuple for several.

    Raises:
        LibraryError: the import failed. Names the package at fault (which may be another one),
            the original exception and a command that mends it.
    """
    try:
        module = importlib.import_module(package)
        found = tuple(getattr(module, name) for name in names)
    except Exception as error:
        raise LibraryError(_explain(package, names, error)) from error
    if not names:
        return module
    return found[0] if len(found) == 1 else found


def _explain(package: str, names: tuple[str, ...], error: BaseException) -> str:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    root = chain[-1]
    original = f"{type(root).__name__}: {_first_line(root)}"
    text = " ".join(str(item) for item in chain)
    companion = next((name for name in COMPANIONS if name in text.lower()), None)
    missing = next((i.name for i in chain if isinstance(i, ModuleNotFoundError) and i.name), None)
    wanted = f"{package} ({', '.join(names)})" if names else package
    if companion is not None:
        return (
            f"{wanted} cannot be imported because {companion} is broken or does not match torch"
            f" ({original}). Install the {companion} that belongs to your torch version"
            f" (pip install -U {companion}, from the same index as torch), or remove it"
            f" (pip uninstall {companion})"
        )
    if missing is not None:
        top = missing.partition(".")[0]
        return (
            f"{wanted} cannot be imported because {top} is not installed or incomplete"
            f" ({original}). Install it: pip install -U {top}"
        )
    if isinstance(root, AttributeError) and names:
        return (
            f"the installed {package} is too old or too new for this pack ({original})."
            f" Install a current one: pip install -U {package}"
        )
    return (
        f"{wanted} cannot be imported; the package is broken or does not match its neighbours"
        f" ({original}). Install it again: pip install -U {package}"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
