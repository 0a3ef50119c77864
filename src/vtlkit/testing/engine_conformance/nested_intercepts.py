"""Intercepts that a hypervisor wants for its guests' guests only: register by register, flags, software interrupts."""

from __future__ import annotations

from typing import Final

from vtlkit.engine import api
from vtlkit.engine.api import NO_REGISTERS, Intercept, RegisterIntercepts
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.testing.guest_builder import CODE

_MOVES: Final = (
    (b"\x0f\x20\xd0", RegisterIntercepts(cr_read=1 << 2), 2, False),
    (b"\x0f\x22\xd0", RegisterIntercepts(cr_write=1 << 2), 2, True),
    (b"\x0f\x20\xd8", RegisterIntercepts(cr_read=1 << 3), 3, False),
    (b"\x0f\x22\xd8", RegisterIntercepts(cr_write=1 << 3), 3, True),
    (b"\x0f\x20\xe0", RegisterIntercepts(cr_read=1 << 4), 4, False),
    (b"\x0f\x21\xd0", RegisterIntercepts(dr_read=1 << 2), 16 + 2, False),
    (b"\x0f\x23\xf8", RegisterIntercepts(dr_write=1 << 7), 16 + 7, True),
)
"""(code, intercepts, `ControlRegister.register`, write)"""
_OTHERS: Final = (
    (b"\x9c", Intercept.PUSHF, "pushf"),
    (b"\x9d", Intercept.POPF, "popf"),
    (b"\xcd\x40", Intercept.SOFTWARE_INTERRUPT, "int"),
    (b"\x0f\x08", Intercept.INVALIDATE_CACHES, "invd"),
    (b"\x0f\x09", Intercept.INVALIDATE_CACHES, "wbinvd"),
)
_ELSEWHERE: Final = RegisterIntercepts(cr_read=1 << 5, dr_read=1 << 1, dr_write=1 << 1)
_HLT: Final = b"\xf4"


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def each_register_by_itself(bench: Bench) -> None:
    for code, moves, register, write in _MOVES:
        guest = bench.guest()
        guest.long_mode()
        engine = guest.engine
        guest.write(CODE, code + _HLT)
        engine.regs.rip = CODE
        engine.regs.rax = engine.get_sregs().cr3 if register == 3 else 0x400
        engine.set_intercepts(Intercept.NONE, 0, moves)
        for _ in range(2):
            reason = engine.run(10)
            assert isinstance(reason, api.ControlRegister), reason
            assert (reason.register, reason.write, reason.gpr, reason.length) == (register, write, 0, len(code))
            assert engine.regs.rip == CODE
        engine.set_intercepts(Intercept.NONE, 0, _ELSEWHERE)
        assert isinstance(engine.run(10), api.Hlt)


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def flags_software_interrupts_and_caches(bench: Bench) -> None:
    for code, flag, name in _OTHERS:
        guest = bench.guest()
        guest.long_mode()
        engine = guest.engine
        guest.write(CODE, code + _HLT)
        guest.write(guest.handler(0x40), _HLT)
        engine.regs.rip = CODE
        engine.set_intercepts(flag)
        for _ in range(2):
            reason = engine.run(10)
            assert isinstance(reason, api.Other), reason
            assert reason.mnemonic.startswith(name)
            assert reason.length == len(code)
            assert engine.regs.rip == CODE
        engine.set_intercepts(Intercept.NONE, 0, NO_REGISTERS)
        assert isinstance(engine.run(10), api.Hlt)
