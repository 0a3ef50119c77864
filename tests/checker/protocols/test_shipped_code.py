"""Each protocol of interrupts, timers, forced exits, inhibited flushes and memory holds at its default size under each
model, followed to the end; each known-bad variant is found as it is said to be."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.protocols import KnownBad, Protocol, apic, flush_inhibit, immediate_exit, memory, timer
from vtlkit.checker.result import Result, Verdict

PROTOCOLS: list[Protocol] = [
    protocol for module in (apic, flush_inhibit, immediate_exit, memory, timer) for protocol in module.PROTOCOLS
]
MODELS = ("sc", "tso", "rc11")
each_model = pytest.mark.parametrize("model", MODELS)


def searched(protocol: Protocol, model: str, variant: KnownBad | None = None) -> Result:
    sizes = {**protocol.sizes, **(variant.sizes if variant else {})}
    return check((variant or protocol).build(model, sizes), model, engine=protocol.engine)


@each_model
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_it_is_proved_with_nothing_left_out(protocol: Protocol, model: str) -> None:
    result = searched(protocol, model)
    assert result.verdict is Verdict.PROVED, result.counterexample
    assert not result.notes
    assert result.executions or result.blocked, "with a timer none ends: its thread waits for the next start"


@each_model
@pytest.mark.parametrize(
    ("protocol", "variant"),
    [
        pytest.param(protocol, variant, id=f"{protocol.name}!{variant.name}")
        for protocol in PROTOCOLS
        for variant in protocol.known_bad
    ],
)
def test_what_is_known_to_be_bad_is_found(protocol: Protocol, variant: KnownBad, model: str) -> None:
    found = searched(protocol, model, variant).counterexample
    expected = variant.expect[model]
    assert (found and (found.kind, len(found.steps))) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_each_has_a_variant_that_is_known_to_be_bad(protocol: Protocol) -> None:
    assert any(kind is not None for variant in protocol.known_bad for kind in variant.expect.values())


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
