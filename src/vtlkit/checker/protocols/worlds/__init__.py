"""What the protocols over the code that ships are made of: its modules are imported when one of them is built."""

from __future__ import annotations

from vtlkit.checker.protocols import Sizes


def size(sizes: Sizes, name: str, low: int, high: int) -> int:
    """One of the sizes. Raises ValueError if it is not between the two, both included."""
    if not low <= sizes[name] <= high:
        raise ValueError(f"{name} is a number from {low} to {high}, not {sizes[name]}")
    return sizes[name]


def flag(sizes: Sizes, name: str) -> bool:
    """One that is 0 or 1. Raises ValueError if it is neither."""
    return bool(size(sizes, name, 0, 1))
