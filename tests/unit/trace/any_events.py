"""Events of every kind, with any values that their fields take."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vtlkit.trace.events import CLASSES, FIELDS, KINDS, NO_VCPU, Event, from_values

_WORD = st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True)
_CONTEXT = st.one_of(_WORD, st.just("timer 'vcpu0-apic-timer'"), st.just("vtl0-vcpu1"))
_U64 = st.integers(0, (1 << 64) - 1)
_OWN = {
    "vcpu": st.integers(NO_VCPU, 1023),
    "vm": st.sampled_from(["vtl0", "vtl1", "vm0"]),
    "task": _CONTEXT,
    "source": _CONTEXT,
    "time_ns": st.integers(0, 1 << 62),
}


def _values(name: str, field: str) -> st.SearchStrategy[Any]:
    kind = KINDS[name][field]
    if field in _OWN and not (field == "source" and kind is int):
        return _OWN[field]
    return {bool: st.booleans(), str: _WORD, int: _U64}[kind]


def any_event(name: str) -> st.SearchStrategy[Event]:
    """An event of this name."""
    fields = st.fixed_dictionaries({field: _values(name, field) for field in FIELDS[name]})
    return fields.map(lambda values: from_values(name, values))


NAMES = sorted(CLASSES)
ANY_EVENT = st.sampled_from(NAMES).flatmap(any_event)
