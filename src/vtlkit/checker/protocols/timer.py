"""The local APIC's timer against a vCPU that blocks, and against its own next start (docs/design/interrupts.md)."""

from __future__ import annotations

from functools import partial

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.protocols.worlds import flag
from vtlkit.checker.result import ProblemKind

_ASSERTION, _DEADLOCK, _LOST = ProblemKind.ASSERTION, ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP


def _block(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        deadline, vendor = flag(sizes, "deadline"), "vmx" if flag(sizes, "vmx") else "svm"
        from vtlkit.checker.protocols.worlds import common, timer

        return common.checked(partial(timer.block, deadline=deadline, vendor=vendor, spoil=timer.SPOILS[spoil]), model)

    return build


def _again(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        deadline, cancel = flag(sizes, "deadline"), flag(sizes, "cancel")
        from vtlkit.checker.protocols.worlds import common, timer

        return common.checked(partial(timer.again, deadline=deadline, cancel=cancel, spoil=timer.SPOILS[spoil]), model)

    return build


PROTOCOLS = (
    Protocol(
        "timer.block",
        "a halted vCPU is woken by its timer, once (deadline: of its TSC; vmx: an exit when it runs)",
        _block(),
        {"deadline": 0, "vmx": 0},
        ({"deadline": 1}, {"vmx": 1}, {"deadline": 1, "vmx": 1}),
        engine="graphs",
        known_bad=(
            KnownBad(
                "forgotten",
                "a timer that was an exit is not the host's when the vCPU blocks",
                _block("forgotten"),
                in_steps(_DEADLOCK, 15, 17, 18),
                {"vmx": 1},
            ),
            KnownBad(
                "mark-last",
                "the expiry is marked behind the kick",
                _block("mark-last"),
                in_steps(_LOST, 25, 29, 32),
            ),
        ),
    ),
    Protocol(
        "timer.again",
        "a timer that is armed anew comes at its new time, one that is stopped (cancel) not at all",
        _again(),
        {"deadline": 0, "cancel": 0},
        ({"deadline": 1}, {"cancel": 1}, {"deadline": 1, "cancel": 1}),
        engine="graphs",
        known_bad=(
            KnownBad(
                "forget-first",
                "an old expiry is forgotten before the timer is stopped",
                _again("forget-first"),
                in_steps(_ASSERTION, 12, 12, 15),
                {"deadline": 1},
            ),
            KnownBad(
                "hasty-cancel",
                "to stop the host's timer does not wait for its callback",
                _again("hasty-cancel"),
                in_steps(_ASSERTION, 8, 8, 9),
                {"cancel": 1},
            ),
        ),
    ),
)
