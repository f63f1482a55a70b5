"""Lazy imports of diffusers and transformers, with words for the user where they are broken.

Real installations often hold a torchvision or torchaudio that does not match torch; importing
transformers or diffusers then raises something unrelated to its cause. The pack imports them only
when a loader needs them, through :func:`require`, so that its nodes always register, and goes on
without a companion that nobody can import anyway.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

from ...edges import UserError

logger = logging.getLogger("prior_art")

COMPANIONS = ("torchvision", "torchaudio", "xformers", "flash_attn", "bitsandbytes")
"""Optional packages that break the import of others when they do not match torch."""


class LibraryError(UserError, ImportError):
    """A library that a loader needs cannot be imported; the message says which and the cure."""


def require(package: str, *names: str) -> Any:
    """Import ``package``, or take ``names`` out of it.

    A broken companion (a torchaudio of another CUDA, say) is hidden from this process and the
    import tried again: none of our networks needs it, and whoever does cannot import it either.

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
        return _import(package, names)
    except Exception as error:
        companion = _companion(_chain(error))
        if companion is not None and _hide_if_broken(companion):
            logger.warning(
                "%s is broken or does not match torch; going on without it. Cure: pip install -U"
                " %s, from the same index as torch",
                companion,
                companion,
            )
            return require(package, *names)
        raise LibraryError(_explain(package, names, error)) from error


def _import(package: str, names: tuple[str, ...]) -> Any:
    module = importlib.import_module(package)
    if not names:
        return module
    found = tuple(getattr(module, name) for name in names)
    return found[0] if len(found) == 1 else found


def _hide_if_broken(companion: str) -> bool:
    """Make ``companion`` look uninstalled if importing it fails; false if it is not at fault."""
    if sys.modules.get(companion, "") is None:
        return False
    try:
        importlib.import_module(companion)
        return False
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == companion]:
            del sys.modules[name]
    sys.modules[companion] = None  # type: ignore[assignment]  # Python's own mark for "absent"
    # transformers remembers what it believed to be installed.
    known = sys.modules.get("transformers.utils.import_utils")
    forget = getattr(getattr(known, f"is_{companion}_available", None), "cache_clear", None)
    if forget is not None:
        forget()
    return True


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _companion(chain: list[BaseException]) -> str | None:
    text = " ".join(str(item) for item in chain).lower()
    return next((name for name in COMPANIONS if name in text), None)


def _explain(package: str, names: tuple[str, ...], error: BaseException) -> str:
    chain = _chain(error)
    root = chain[-1]
    original = f"{type(root).__name__}: {_first_line(root)}"
    companion = _companion(chain)
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
