"""The tables of `vtlkit trace` on terminals of 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vtlkit.cli.trace_tables import tables
from vtlkit.trace import events
from vtlkit.trace.events import Event
from vtlkit.trace.summary import summarise


def shown(trace: list[Event]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False, markup=False)
    for table in tables("t.jsonl", summarise(trace)):
        console.print(table)
    return out.getvalue()


@pytest.mark.parametrize("vcpus", [1, 2, 4, 5, 40])
def test_every_wake_has_its_names_and_its_count(vcpus: int) -> None:
    trace: list[Event] = [events.KvmEntry(0, "vp0", "vtl0", 0, 0, False)]
    for number in range(1, vcpus + 1):
        trace.append(events.KvmVcpuKick(number, "vp0", "vtl0", number, number, "vtl0-vcpu0"))
        trace.append(events.KvmVcpuWakeup(number, "vp1", "vtl0", number, 7, woken_by=number))
    text = shown(trace)
    assert "…" not in text
    for number in range(1, vcpus + 1):
        assert f"vtl0-vcpu{number} " in text
