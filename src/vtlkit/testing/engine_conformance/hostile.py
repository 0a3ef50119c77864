"""What a guest may do to hurt: encodings that no processor has, translations older than their page, endless faults."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Intercept
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.testing.guest_builder import CODE, PT, Guest
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import PTE_P

_LOCK = b"\xf0"
_ANY_CPL = (b"\x0f\xa2", b"\x0f\x31", b"\x0f\x01\xd9", b"\x0f\x05", b"\x0f\x34")
"""CPUID, RDTSC, VMMCALL, SYSCALL, SYSENTER."""
_CPL0 = (b"\xf4", b"\x0f\x32", b"\x0f\x30", b"\x0f\x06", b"\x0f\x20\xc0", b"\x0f\x22\xc0")
"""HLT, RDMSR, WRMSR, CLTS, MOV from and to CR0."""


def _long_mode(bench: Bench, cpl: int, code: bytes) -> Guest:
    guest = bench.guest()
    guest.long_mode(cpl)
    guest.write(CODE, code)
    guest.engine.set_intercepts(Intercept.RDTSC | Intercept.CR_READ | Intercept.CR_WRITE)
    guest.engine.set_msr(0x174, 8)
    return guest


@case(Need.MACHINE_CODE)
def lock_before_what_cannot_be_locked(bench: Bench) -> None:
    """LOCK on an instruction without a locked form is #UD at it, at every CPL; never an error of the engine."""
    for cpl, opcodes in ((0, _ANY_CPL + _CPL0), (3, _ANY_CPL)):
        for opcode in opcodes:
            guest = _long_mode(bench, cpl, _LOCK + opcode)
            reason = guest.engine.run(50)
            assert isinstance(reason, api.Hlt), (opcode.hex(), reason)
            assert guest.engine.regs.rip == guest.handler(Vector.UD), opcode.hex()
            assert guest.frame(1) == (CODE,), opcode.hex()


@case(Need.MACHINE_CODE, Need.CPUID)
def code_whose_page_has_gone(bench: Bench) -> None:
    """A page unmapped without a flush: what exits there exits, or faults as a fetch does; RIP has not moved."""
    guest = _long_mode(bench, 0, b"\x90\x0f\xa2")
    engine = guest.engine
    assert isinstance(engine.run(50), bench.marker)
    engine.regs.rip = CODE
    guest.map_page(CODE, guest.read(PT + (CODE >> 12) * 8, 8) & ~PTE_P)
    reason = engine.run(50)
    if isinstance(reason, bench.marker):
        assert engine.regs.rip == CODE + 1
        return
    assert isinstance(reason, api.Hlt)
    assert engine.regs.rip == guest.handler(Vector.PF)


@case(Need.MACHINE_CODE, Need.COUNTS)
def endless_faults_use_up_the_budget(bench: Bench) -> None:
    """A guest that does nothing but fault comes back: each delivered exception counts."""
    guest = _long_mode(bench, 0, b"\x0f\x0b")
    guest.gate(Vector.UD, CODE)
    for _ in range(3):
        assert isinstance(guest.engine.run(500), api.Interrupted)
        # Every fault pushes a frame: the stack must not be what ends this.
        guest.engine.regs.rsp = 0x30000
