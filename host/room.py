"""Whether there is memory for what was asked for: said before it is taken."""

from __future__ import annotations

from pathlib import Path

from ..edges import EdgeError


def main_memory() -> int | None:
    """Bytes of main memory that are free or can be made free, by swapping too; ``None`` where the
    system does not tell."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(said.split()[0]) for name, said in (x.split(":") for x in told)}
        return 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])
    except (OSError, KeyError, ValueError, IndexError):
        return None


def refuse_larger(needed: int, there: int | None, what: str, cure: str) -> None:
    """Refuse what there is no memory for.

    Args:
        needed: bytes that it takes at the least.
        there: bytes that it may have at the most; ``None``, which nobody knows, is enough.
        what: was asked for, such as "64 pictures of 4096x4096".
        cure: names the inputs that would make it less.

    Raises:
        EdgeError: says how much is needed, how much there is, and what to do.
    """
    if there is not None and needed > there:
        raise EdgeError(
            f"{what} would take at least {needed / 1e9:,.1f} GB of memory, of which there are"
            f" {there / 1e9:,.1f}; {cure}, or free what else takes memory"
        )


def check_main_memory(numbers: int, what: str, cure: str) -> None:
    """:func:`refuse_larger` for so many numbers of 4 bytes in main memory."""
    refuse_larger(4 * numbers, main_memory(), what, cure)
