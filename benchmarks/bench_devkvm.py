"""The /dev/kvm engine, against C programs that make the same exits with nothing above them.

`kvm-portout` is an OUT to a device of the VMM: out of the guest, through the run loop to user space and back.
`kvm-wake` is two processors that wake each other from HLT, by interrupts from the other's thread: each round has an
access to the local APIC more a processor than the rival, which has none. `kvm-vtlcall`, a VTL call and the return, is
measured against one exit, of which it makes two, and copies what VTLs share from one kernel VM to the other twice.

On a kernel that emulates guests at CPL 0 an exit takes tens of microseconds, whoever makes it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from vtlkit.cli.bench_cases import devkvm_loop
from vtlkit.cli.bench_cases.guest_loops import GuestLoop
from vtlkit.cli.compose import CannotCompose, EngineChoice
from vtlkit.cli.measure import Case, Unavailable

PORTOUT_LIMIT: Final = 1.3
_EXITS: Final = 20_000
_WAKES: Final = 1_000
_SWITCHES: Final = 1_000
_SOURCE: Final = Path(__file__).with_name("devkvm_wake.c")
_LIMIT_SECONDS: Final = 120
_kept: Final[list[tempfile.TemporaryDirectory[str]]] = []
"""Removed when the process ends."""


def _ours(word: str, turns: int, cpus: int = 1) -> float:
    try:
        return GuestLoop(word, True, cpus, engine=EngineChoice.KVM).per_iteration(turns)
    except CannotCompose as error:
        raise Unavailable(str(error)) from error


@cache
def _program() -> str:
    compiler = next(filter(None, map(shutil.which, devkvm_loop.COMPILERS)), None)
    if compiler is None:
        raise Unavailable("there is no C compiler to build the rival with")
    directory = tempfile.TemporaryDirectory(prefix="vtlkit-bench-")
    _kept.append(directory)
    program = str(Path(directory.name) / _SOURCE.stem)
    command = [compiler, "-O2", "-pthread", "-o", program, str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the rival does not compile: {(done.stderr.splitlines() or [''])[0]}")
    return program


def _rival_wake() -> float:
    command = [_program(), str(_WAKES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the rival did not end within {_LIMIT_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(f"the rival cannot run: {done.stderr.strip() or f'status {done.returncode}'}")
    return float(done.stdout) / 1e9


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
        Case("kvm-wake", lambda: _ours("pingpong", _WAKES, 2), "C threads and eventfd", _rival_wake),
        Case("kvm-vtlcall", lambda: _ours("vtlcall", _SWITCHES), "one port exit", lambda: _ours("portout", _EXITS)),
    ]
