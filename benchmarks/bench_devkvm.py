"""The /dev/kvm engine, against C programs that make the same exits with nothing above them.

`kvm-portout` is an OUT to a port of the VMM, answered from inside `run`: out of the guest and back. `kvm-portexit` is
the same OUT where `run` is left for it: out of the guest, through the run loop to user space and back.

`kvm-wake` is two processors that wake each other from HLT, by interrupts from the other's thread: each round has an
access to the local APIC more a processor than the rival, which has none. `kvm-vtlcall`, a VTL call and the return, is
measured against one exit to user space, of which it makes two, and copies what VTLs share from one kernel VM to the
other twice.

On a kernel that emulates guests at CPL 0 an exit takes tens of microseconds, whoever makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vtlkit.cli.bench_cases import devkvm_loop
from vtlkit.cli.bench_cases.guest_loops import GuestLoop
from vtlkit.cli.compose import CannotCompose, EngineChoice
from vtlkit.cli.measure import Case, Unavailable

PORTOUT_LIMIT: Final = 1.3
WAKE_LIMIT: Final = 2.0
VTL_CALL_LIMIT: Final = 3.0
_EXITS: Final = 20_000
_WAKES: Final = 1_000
_SWITCHES: Final = 1_000
_SOURCE: Final = Path(__file__).with_name("devkvm_wake.c")


def _ours(word: str, turns: int, cpus: int = 1, *, port_exits: bool = False) -> float:
    try:
        return GuestLoop(word, True, cpus, engine=EngineChoice.KVM, port_exits=port_exits).per_iteration(turns)
    except CannotCompose as error:
        raise Unavailable(str(error)) from error


def _rival_wake() -> float:
    return devkvm_loop.measured(_SOURCE, str(_WAKES), options=("-pthread",))


def cases() -> list[Case]:
    """The cases of this module."""
    return [
        Case(
            "kvm-portout",
            lambda: _ours("portout", _EXITS),
            "C loop over /dev/kvm",
            lambda: devkvm_loop.seconds_per_exit("out", _EXITS),
            PORTOUT_LIMIT,
        ),
        Case(
            "kvm-portexit",
            lambda: _ours("portout", _EXITS, port_exits=True),
            "C loop over /dev/kvm",
            lambda: devkvm_loop.seconds_per_exit("out", _EXITS),
        ),
        Case("kvm-wake", lambda: _ours("pingpong", _WAKES, 2), "C threads and eventfd", _rival_wake, WAKE_LIMIT),
        Case(
            "kvm-vtlcall",
            lambda: _ours("vtlcall", _SWITCHES),
            "one exit to user space",
            lambda: _ours("portout", _EXITS, port_exits=True),
            VTL_CALL_LIMIT,
        ),
    ]
