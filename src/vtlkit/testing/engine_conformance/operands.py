"""Operands that the hypervisor stores for an instruction, and instructions at the end of what can be fetched."""

from __future__ import annotations

from typing import Final

from vtlkit.engine import api
from vtlkit.engine.api import Intercept
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.testing.guest_builder import CODE, FREE, PDPT, PML4, Guest
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import PTE_P, PTE_U, PTE_W

_HOLE: Final = 1 << 47
"""The first address that is not canonical."""
_PAGE: Final = 4096
_SMSW_RBX: Final = b"\x0f\x01\x23"
_SMSW_EAX: Final = b"\x0f\x01\xe0"
_SMSW_AX: Final = b"\x66\x0f\x01\xe0"
_ONES: Final = 0xFFFFFFFFFFFFFFFF


def _at_smsw(bench: Bench, code: bytes, address: int = FREE, cpl: int = 0) -> Guest:
    guest = bench.guest()
    guest.long_mode(cpl)
    guest.put(FREE, 8, _ONES)
    guest.write(CODE, code)
    engine = guest.engine
    engine.set_intercepts(Intercept.CR_READ)
    engine.regs.rbx = address
    engine.regs.rax = _ONES
    reason = engine.run(5)
    assert isinstance(reason, api.Other)
    assert (reason.mnemonic, reason.length) == ("smsw", len(code))
    return guest


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def stores_write_the_low_bytes(bench: Bench) -> None:
    """As many bytes as asked for to memory; a 32-bit register is zero-extended, a 16-bit one keeps its other bits."""
    value = 0x1234567880050033
    guest = _at_smsw(bench, _SMSW_RBX)
    assert guest.engine.store_operand(value, 2) is None
    assert guest.read(FREE, 8) == 0xFFFFFFFFFFFF0033
    for code, wanted in ((_SMSW_EAX, 0x80050033), (_SMSW_AX, 0xFFFFFFFFFFFF0033)):
        guest = _at_smsw(bench, code)
        assert guest.engine.store_operand(value, 2) is None
        assert guest.engine.regs.rax == wanted


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def stores_have_the_privilege_of_the_guest(bench: Bench) -> None:
    """A user's store to a supervisor page is the user's page fault, and stores nothing."""
    page = FREE + _PAGE
    for cpl, wanted in ((3, 7), (0, None)):
        guest = _at_smsw(bench, _SMSW_RBX, page, cpl)
        guest.map_page(page, page | PTE_P | PTE_W)
        guest.put(page, 8, _ONES)
        guest.engine.flush_tlb()
        event = guest.engine.store_operand(0x33, 2)
        assert not isinstance(event, api.MemoryFault)
        assert (event and (event.vector, event.error_code)) == (wanted and (Vector.PF, wanted))
        assert guest.read(page, 8) == (_ONES if wanted else 0xFFFFFFFFFFFF0033)


@case(Need.MACHINE_CODE, Need.CPUID)
def the_last_instruction_of_canonical_space(bench: Bench) -> None:
    """It is executed although nothing can be fetched behind it; then the fetch behind it is #GP."""
    for code, kind in ((b"\x0f\xa2", api.Cpuid), (b"\x0f\x01\xd9", api.Hypercall), (b"\x90", None)):
        guest = bench.guest()
        guest.long_mode()
        # The table of the lowest gigabytes serves the highest of the lower half, too.
        guest.put(PML4 + 255 * 8, 8, PDPT | PTE_P | PTE_W | PTE_U)
        guest.put(PDPT + 511 * 8, 8, guest.read(PDPT, 8))
        directory = guest.read(PDPT, 8) & ~0xFFF
        guest.put(directory + 511 * 8, 8, guest.read(directory, 8))
        table = guest.read(directory, 8) & ~0xFFF
        guest.put(table + 511 * 8, 8, FREE | PTE_P | PTE_W | PTE_U)
        guest.write(FREE + _PAGE - len(code), code)
        engine = guest.engine
        engine.flush_tlb()
        engine.regs.rip = _HOLE - len(code)
        if kind is not None:
            reason = engine.run(5)
            assert type(reason) is kind, reason
            assert engine.regs.rip == _HOLE - len(code)
            engine.skip(len(code))
        assert isinstance(engine.run(5), api.Hlt)
        assert engine.regs.rip == guest.handler(Vector.GP)
        assert guest.frame(2) == (0, _HOLE)
