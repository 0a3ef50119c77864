"""Protocols of interrupts, timers, forced exits, inhibited flushes and memory: what is followed, and sizes."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.protocols import Protocol, apic, flush_inhibit, immediate_exit, memory, timer

PROTOCOLS: list[Protocol] = [
    protocol for module in (apic, flush_inhibit, immediate_exit, memory, timer) for protocol in module.PROTOCOLS
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_nothing_is_left_out(protocol: Protocol) -> None:
    assert not check(protocol.build("tso", protocol.sizes), "tso", engine=protocol.engine).notes


@pytest.mark.parametrize(
    ("protocol", "sizes", "said"),
    [
        (apic.PROTOCOLS[0], {"interrupts": 9}, "interrupts is a number from 0 to 3, not 9"),
        (apic.PROTOCOLS[0], {"interrupts": 0}, "nothing to wait for"),
        (apic.PROTOCOLS[1], {"running": 1}, "give --inits 1"),
        (flush_inhibit.PROTOCOLS[0], {"look": 2, "flushers": 2}, "a single flusher"),
        (timer.PROTOCOLS[0], {"vmx": 2}, "vmx is a number from 0 to 1, not 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(protocol: Protocol, sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        protocol.build("sc", {**protocol.sizes, **sizes})
