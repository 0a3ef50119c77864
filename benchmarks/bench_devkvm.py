"""The /dev/kvm engine, against C programs that make the same exits with nothing above them.

`kvm-portout` is an OUT answered from inside `run`: out of the guest and back. `kvm-portexit` is the same OUT where
`run` is left for it: out of the guest, through the run loop to user space and back. `kvm-wake` is two processors that
wake each other from HLT, by interrupts from the other's thread. In these three the guest is the rival's (with an
OUT and an EOI a wake more).

`kvm-pingpong` is that in long mode, by interrupts between processors: what the guest executes meanwhile is in the
figure. `kvm-vtlcall`, a VTL call and the return, is measured against one exit to user space of the same guest, of which
it makes two, and copies what VTLs share from one kernel VM to the other twice.

On a kernel that emulates guests at CPL 0 an exit takes tens of microseconds, whoever makes it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from vtlkit.cli.bench_cases import devkvm_loop
from vtlkit.cli.bench_cases.devkvm_guests import seconds_per_round, seconds_per_write
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


def _written(*, exits: bool) -> float:
    return seconds_per_write(_EXITS, exits=exits)


def _rival_exit() -> float:
    return devkvm_loop.seconds_per_exit("out", _EXITS)


def _rival_wake() -> float:
    return devkvm_loop.measured(_SOURCE, str(_WAKES), options=("-pthread",))


def cases() -> list[Case]:
    """The cases of this module."""
    return [
        Case("kvm-portout", partial(_written, exits=False), "C loop over /dev/kvm", _rival_exit, PORTOUT_LIMIT),
        Case("kvm-portexit", partial(_written, exits=True), "C loop over /dev/kvm", _rival_exit),
        Case("kvm-wake", partial(seconds_per_round, _WAKES), "C threads and eventfd", _rival_wake, WAKE_LIMIT),
        Case("kvm-pingpong", lambda: _ours("pingpong", _WAKES, 2), "C threads and eventfd", _rival_wake),
        Case(
            "kvm-vtlcall",
            lambda: _ours("vtlcall", _SWITCHES),
            "one exit to user space",
            lambda: _ours("portout", _EXITS, port_exits=True),
            VTL_CALL_LIMIT,
        ),
    ]
