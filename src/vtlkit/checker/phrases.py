"""How steps are told, whichever search found them: short, as a table has a column for each task."""

from __future__ import annotations

from typing import Final

from vtlkit.checker.ops import Location, Order, Rmw, Value

_ORDERS: Final = {
    Order.PLAIN: " (plain)",
    Order.RELAXED: "",
    Order.ACQUIRE: " (acq)",
    Order.RELEASE: " (rel)",
    Order.ACQ_REL: " (acq+rel)",
    Order.SEQ_CST: " (sc)",
}
WRITING: Final = ("writes ", "rmw ", "hands on ")
"""How steps begin by which others see a new value, be it None."""
READING: Final = ("reads ", "finds ", "rmw ")
"""How steps begin that look at a value."""


def location_name(location: Location) -> str:
    """("a", 1) is a[1]."""
    if isinstance(location, tuple) and location and isinstance(location[0], str):
        return location[0] + "".join(f"[{part}]" for part in location[1:])
    return str(location)


def reads(location: Location, value: Value, order: Order) -> str:
    """A load."""
    return f"reads {location_name(location)} = {value!r}{_ORDERS[order]}"


def finds(location: Location, value: Value, order: Order) -> str:
    """The end of a wait."""
    return f"finds {location_name(location)} = {value!r}{_ORDERS[order]}"


def writes(location: Location, value: Value, order: Order) -> str:
    """A store that others see at once."""
    return f"writes {location_name(location)} = {value!r}{_ORDERS[order]}"


def buffers(location: Location, value: Value, order: Order) -> str:
    """A store into the store buffer."""
    return f"stores {location_name(location)} = {value!r}{_ORDERS[order]} into its store buffer"


def hands_on(location: Location, value: Value) -> str:
    """A store buffer's oldest entry becomes visible."""
    return f"hands on {location_name(location)} = {value!r} to memory"


def changes(op: Rmw, old: Value, new: Value) -> str:
    """A read-modify-write that writes."""
    # What an addition adds is seen.
    label = "" if op.label == "rmw" or op.label.startswith("+=") else f" [{op.label}]"
    return f"rmw {location_name(op.location)}: {old!r} -> {new!r}{label}{_ORDERS[op.order]}"


def fence(order: Order) -> str:
    """A barrier."""
    return f"fence{_ORDERS[order]}"
