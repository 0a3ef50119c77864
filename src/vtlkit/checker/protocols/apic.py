"""Interrupts of the local APIC, NMIs, INIT and SIPI against a vCPU that blocks or runs (docs/design/interrupts.md)."""

from __future__ import annotations

from functools import partial

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.protocols.worlds import flag, size
from vtlkit.checker.result import ProblemKind

_ASSERTION, _DEADLOCK, _LOST = ProblemKind.ASSERTION, ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP


def _delivery(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        interrupts, nmis = size(sizes, "interrupts", 0, 3), size(sizes, "nmis", 0, 1)
        if not interrupts + nmis:
            raise ValueError("without interrupts or nmis the vCPU has nothing to wait for")
        running = flag(sizes, "running")
        from vtlkit.checker.protocols.worlds import apic, common

        return common.checked(
            partial(apic.delivery, interrupts=interrupts, nmis=nmis, running=running, spoil=apic.SPOILS[spoil]), model
        )

    return build


def _startup(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        inits, sipis, running = size(sizes, "inits", 0, 1), size(sizes, "sipis", 1, 2), flag(sizes, "running")
        if running and not inits:
            raise ValueError("a vCPU that runs ignores a SIPI without an INIT before it: give --inits 1")
        from vtlkit.checker.protocols.worlds import apic, common

        return common.checked(
            partial(apic.startup, inits=inits, sipis=sipis, running=running, spoil=apic.SPOILS[spoil]), model
        )

    return build


PROTOCOLS = (
    Protocol(
        "apic.delivery",
        "a vCPU that halts (or computes: running) takes each interrupt and NMI once",
        _delivery(),
        {"interrupts": 1, "nmis": 0, "running": 0},
        ({"interrupts": 1, "nmis": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "kick-first",
                "the bit is set in IRR behind the kick",
                _delivery("kick-first"),
                in_steps(_LOST, 12, 14, 19),
            ),
            KnownBad(
                "wake-without-look",
                "a halted vCPU that sees an interrupt enters the guest before the request for it",
                _delivery("wake-without-look"),
                in_steps(_ASSERTION, 15, 17, 17),
            ),
            KnownBad(
                "no-request",
                "a kick without a request",
                _delivery("no-request"),
                in_steps(_DEADLOCK, 3, 4, 5),
                {"running": 1},
            ),
            KnownBad(
                "request-first",
                "the request is made before the bit is set",
                _delivery("request-first"),
                in_steps(_DEADLOCK, 12, 13, 17),
                {"running": 1},
            ),
            KnownBad(
                "no-wake",
                "an NMI is requested, and a vCPU that blocks is not woken",
                _delivery("no-wake"),
                in_steps(_LOST, 10, 12, 16),
                {"interrupts": 0, "nmis": 1},
            ),
        ),
    ),
    Protocol(
        "apic.startup",
        "INIT and SIPI start a vCPU at the SIPI's page, once",
        _startup(),
        {"inits": 0, "sipis": 1, "running": 0},
        ({"inits": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "vector-last",
                "the latch says SIPI before the vector is there",
                _startup("vector-last"),
                in_steps(_ASSERTION, 21, 25, 27),
            ),
        ),
    ),
)
