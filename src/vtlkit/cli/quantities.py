"""Numbers as users write them: counts, sizes with binary suffixes, seconds; and sizes as they are shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import typer

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE_SIZE: Final = 4096
MEMORY_MINIMUM: Final = MIB
MEMORY_MAXIMUM: Final = (1 << 40) - GIB
"""What 40 bits of guest-physical address reach, without the gigabyte below 4 GiB where devices are."""
SEED_MAXIMUM: Final = (1 << 64) - 1
SECONDS_MAXIMUM: Final = 1e8
"""About three years: far below what the kernel's timers take."""

_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_ANY_NUMBER: Final = re.compile(r"0x[0-9a-f]{1,16}|[0-9]{1,20}", re.IGNORECASE)
_SIZE: Final = re.compile(r"([0-9]{1,20})(?:([KMGT])(?:iB)?)?", re.IGNORECASE)
_SHIFT: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SECONDS: Final = re.compile(r"[0-9]{0,12}(?:\.[0-9]{0,12})?")


def count_parser(low: int, high: int) -> Callable[[str | int], int]:
    """A parser of whole numbers from `low` to `high`, which raises typer.BadParameter for anything else.

    As every parser here it gets the option's default, too, which is a number already.
    """

    def parse_count(given: str | int) -> int:
        text = str(given)
        number = int(text) if _NUMBER.fullmatch(text) else -1
        if not low <= number <= high:
            raise typer.BadParameter(f"'{text}' is no whole number from {low} to {high}")
        return number

    return parse_count


def parse_number(text: str) -> int | None:
    """A whole number in decimal, or in hexadecimal after 0x; None for anything else."""
    return int(text, 16 if text[:2] in ("0x", "0X") else 10) if _ANY_NUMBER.fullmatch(text) else None


def parse_memory(given: str | int) -> int:
    """Bytes of guest memory in `256M`, `262144K`, `1G` or `268435456`. Raises typer.BadParameter for what cannot be."""
    text = str(given)
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"'{text}' is no size: write 256M, 1G or a number of bytes")
    size = int(found[1]) << _SHIFT[(found[2] or "").upper()]
    if size < MEMORY_MINIMUM:
        hint = f"; mebibytes are written {found[1]}M" if not found[2] else ""
        raise typer.BadParameter(f"{text} is less than 1M, the least that a machine has{hint}")
    if size > MEMORY_MAXIMUM:
        raise typer.BadParameter(f"{text} is more than {show_size(MEMORY_MAXIMUM)}, the most that guests can address")
    if size % PAGE_SIZE:
        raise typer.BadParameter(f"{text} is not a multiple of 4K, the size of a page")
    return size


def parse_bytes(given: str | int) -> int:
    """Bytes of the host's memory, written as a guest's are. Raises typer.BadParameter for what is none."""
    text = str(given)
    found = _SIZE.fullmatch(text)
    size = int(found[1]) << _SHIFT[(found[2] or "").upper()] if found is not None else 0
    if size < MEMORY_MINIMUM:
        raise typer.BadParameter(f"'{text}' is no size of 1M or more: write 512M or 4G")
    return size


def parse_seconds(given: str | float) -> float:
    """A positive number of seconds, decimals allowed. Raises typer.BadParameter for anything else."""
    text = str(given)
    seconds = float(text) if _SECONDS.fullmatch(text) and text not in ("", ".") else 0.0
    if not 0 < seconds <= SECONDS_MAXIMUM:
        raise typer.BadParameter(f"'{text}' is no time: write a positive number of seconds, such as 10 or 0.5")
    return max(seconds, 1e-6)


def show_size(size: int) -> str:
    """The shortest exact spelling that `parse_memory` takes: `256M`."""
    for suffix in ("T", "G", "M", "K"):
        if size and not size % (1 << _SHIFT[suffix]):
            return f"{size >> _SHIFT[suffix]}{suffix}"
    return str(size)
