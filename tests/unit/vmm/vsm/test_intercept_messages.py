"""The GPA intercept message, byte by byte, for real instructions on the embedded CPU; and what becomes of these."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.vmm.vsm.instruction_rig import ALIAS, CLOSED, END_PORT, GPRS, Rig, number, program
from vtlkit.engine.api import Access
from vtlkit.testing import guest_builder as layout
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.x86.registers import RFLAGS_FIXED, RFLAGS_IF


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.factory.close()


def restore(rig: Rig) -> None:
    rig.close(Access.ALL)


@pytest.mark.tlfs("intercepts.gpa")
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("address", [CLOSED + 0x123, ALIAS + 0x123])
def test_read_and_write_in_64_bit_mode(rig: Rig, write: bool, address: int) -> None:
    rig.guest.long_mode()
    rig.close(Access.NONE)
    rig.react = [restore]

    def body(code: Assembler) -> None:
        if write:
            code.mov(Mem(None, address, size=4), "edi")
        else:
            code.mov("edi", Mem(None, address, size=4))

    code = program(rig, body)
    rig.run(code)
    (message,) = rig.messages
    assert number(message, 0, 4) == 0x80000001
    assert number(message, 4, 1) == 0xF0
    assert number(message, 8, 8) == 1
    payload = message[16:]
    length = code.at("next") - code.at("target")
    instruction = bytes(rig.ram.view[code.at("target") : code.at("target") + 16])
    assert number(payload, 0, 4) == 0
    assert number(payload, 4, 1) == length
    assert number(payload, 5, 1) == int(write)
    # CPL 0, CR0.PE, EFER.LMA, VTL 0.
    assert number(payload, 6, 2) == 1 << 2 | 1 << 4
    assert (number(payload, 8, 8), number(payload, 0x10, 4)) == (0, 0xFFFFFFFF)
    assert (number(payload, 0x14, 2), number(payload, 0x16, 2)) == (layout.KERNEL_CODE64, 0xA09B)
    assert number(payload, 0x18, 8) == code.at("target")
    assert number(payload, 0x20, 8) == RFLAGS_FIXED
    assert number(payload, 0x28, 4) == 6
    assert number(payload, 0x2C, 1) == 16
    assert payload[0x40:0x50] == instruction
    assert (number(payload, 0x2E, 1), number(payload, 0x2F, 1)) == (0, 0)
    gva_valid = number(payload, 0x2D, 1)
    assert gva_valid in (0, 1)
    assert number(payload, 0x30, 8) == (address if gva_valid else 0)
    assert number(payload, 0x38, 8) == CLOSED + 0x123
    for offset in (0x50, 0x60):
        assert (number(payload, offset, 8), number(payload, offset + 8, 4)) == (0, 0xFFFFFFFF)
        assert (number(payload, offset + 12, 2), number(payload, offset + 14, 2)) == (layout.KERNEL_DATA, 0xC093)
    (state,) = rig.states
    assert [number(payload, 0x70 + 8 * index, 8) for index in range(16)] == [state[name] for name in GPRS]
    assert state["rip"] == code.at("target")
    # The access happened after all, once.
    assert rig.guest.read(CLOSED + 0x123, 4) == (0x108 if write else 0) & ~0xF | (7 if write else 0)


@pytest.mark.tlfs("intercepts.gpa")
def test_user_mode_and_task_priority(rig: Rig) -> None:
    rig.guest.long_mode(cpl=3, rflags=RFLAGS_FIXED | 0x3000 | RFLAGS_IF)
    sregs = rig.vcpu.get_sregs()
    sregs.cr8 = 9
    rig.vcpu.set_sregs(sregs)
    rig.close(Access.READ)
    rig.react = [restore]
    code = program(rig, lambda code: code.inc(Mem(None, CLOSED, size=8)))
    rig.run(code)
    (message,) = rig.messages
    payload = message[16:]
    assert number(payload, 4, 1) == (code.at("next") - code.at("target")) | 9 << 4
    assert number(payload, 5, 1) == 1
    assert number(payload, 6, 2) == 3 | 1 << 2 | 1 << 4
    assert (number(payload, 0x14, 2), number(payload, 0x16, 2)) == (layout.USER_CODE64, 0xA0FB)
    assert number(payload, 0x20, 8) == RFLAGS_FIXED | 0x3000 | RFLAGS_IF
    assert number(payload, 0x2E, 1) == 9
    assert (number(payload, 0x6C, 2), number(payload, 0x6E, 2)) == (layout.USER_DATA, 0xC0F3)
    assert rig.guest.read(CLOSED, 8) == 1


@pytest.mark.tlfs("intercepts.gpa")
def test_protected_mode(rig: Rig) -> None:
    rig.guest.protected_mode()
    rig.close(Access.NONE)
    rig.react = [restore]
    code = program(rig, lambda code: code.mov("bl", Mem(None, CLOSED + 0xFFF, size=1)), bits=32)
    rig.run(code)
    (message,) = rig.messages
    payload = message[16:]
    assert number(payload, 6, 2) == 1 << 2
    assert (number(payload, 0x14, 2), number(payload, 0x16, 2)) == (layout.KERNEL_CODE32, 0xC09B)
    assert number(payload, 0x18, 8) == code.at("target")
    assert number(payload, 0x38, 8) == CLOSED + 0xFFF


@pytest.mark.tlfs("intercepts.gpa")
def test_instruction_fetch(rig: Rig) -> None:
    """A fetch says where, and no instruction: there is none yet."""
    rig.guest.long_mode()
    rig.guest.write(CLOSED + 0x40, b"\x90\xe6\x10")
    rig.close(Access.READ | Access.WRITE)
    rig.react = [restore]
    code = rig.guest.assembler()
    code.mov("rax", CLOSED + 0x40)
    code.jmp("rax")
    rig.run(code)
    (message,) = rig.messages
    payload = message[16:]
    assert number(payload, 4, 1) == 0
    assert number(payload, 5, 1) == 2
    assert number(payload, 0x18, 8) == CLOSED + 0x40
    assert number(payload, 0x2C, 1) == 0
    assert payload[0x40:0x50] == bytes(16)
    assert number(payload, 0x38, 8) == CLOSED + 0x40
    # NOP and OUT ran once fetching was permitted.
    assert rig.states[0]["rip"] == CLOSED + 0x40


@pytest.mark.tlfs("intercepts.gpa-restart")
def test_running_off_the_end_of_a_page_into_a_closed_one(rig: Rig) -> None:
    rig.guest.long_mode()
    before = CLOSED - 3
    rig.guest.write(before, b"\x90\x90\x90\xe6\x10")
    rig.close(Access.READ)
    rig.react = [restore]
    code = rig.guest.assembler()
    code.mov("rax", before)
    code.jmp("rax")
    rig.run(code)
    (message,) = rig.messages
    assert number(message, 16 + 0x18, 8) == CLOSED
    assert number(message, 16 + 0x38, 8) == CLOSED


@pytest.mark.tlfs("intercepts.gpa-restart")
def test_the_cpus_own_walk_of_the_page_tables_is_a_read(rig: Rig) -> None:
    """VTL0 may not read a page that holds a page table: the walk is intercepted, the instruction runs again after."""
    rig.guest.long_mode()
    table = 0x1C0000
    for page in range(512):
        rig.guest.put(table + 8 * page, 8, CLOSED & ~0x1FFFFF | page << 12 | 7)
    rig.guest.put(layout.PD + 8, 8, table | 7)
    rig.close(Access.NONE, table)

    def open_table(rig: Rig) -> None:
        rig.close(Access.ALL, table)

    rig.react = [open_table, open_table]
    rig.guest.put(CLOSED + 8, 8, 0x5A5A)
    code = program(rig, lambda code: code.mov("rbx", Mem(None, 0x200000 + (CLOSED & 0x1FFFFF) + 8, size=8)))
    rig.run(code)
    assert rig.messages
    assert number(rig.messages[0], 16 + 0x38, 8) & ~0xFFF == table
    assert number(rig.messages[0], 16 + 0x18, 8) == code.at("target")
    assert rig.vcpu.get_regs().rbx == 0x5A5A


@pytest.mark.tlfs("intercepts.gpa-restart")
def test_a_read_modify_write_is_stopped_before_it_has_read(rig: Rig) -> None:
    """The page may be read and not written: nothing of the instruction happens until it may do both."""
    rig.guest.long_mode()
    rig.guest.put(CLOSED, 8, 41)
    rig.close(Access.READ)

    def change_and_restore(rig: Rig) -> None:
        rig.guest.put(CLOSED, 8, 99)
        restore(rig)

    rig.react = [change_and_restore]
    code = program(rig, lambda code: code.add(Mem(None, CLOSED, size=8), 1))
    rig.run(code)
    assert len(rig.messages) == 1
    assert rig.guest.read(CLOSED, 8) == 100


@pytest.mark.tlfs("intercepts.gpa-restart")
def test_a_push_onto_a_closed_page(rig: Rig) -> None:
    rig.guest.long_mode()
    rig.close(Access.READ)
    rig.react = [restore]
    code = rig.guest.assembler()
    code.mov("rsp", CLOSED + 0x800)
    code.mov("rbx", 0x77)
    code.push("rbx")
    code.out(END_PORT, "al")
    rig.run(code)
    (message,) = rig.messages
    assert number(message, 16 + 0x38, 8) == CLOSED + 0x7F8
    # RSP has not moved when the message is written.
    assert number(message, 16 + 0x70 + 8 * 4, 8) == CLOSED + 0x800
    assert rig.guest.read(CLOSED + 0x7F8, 8) == 0x77
    assert rig.vcpu.get_regs().rsp == CLOSED + 0x7F8


@pytest.mark.tlfs("intercepts.gpa-restart")
def test_a_string_move_goes_on_where_it_was_stopped(rig: Rig) -> None:
    """Half of the destination is in the closed page: what was done is done once, RCX and RDI say where it stands."""
    rig.guest.long_mode()
    source, destination, count = 0x1C0000, CLOSED - 0x20, 0x40
    rig.guest.write(source, bytes(range(1, count + 1)))
    rig.close(Access.READ)
    rig.react = [restore]
    code = rig.guest.assembler()
    code.mov("rsi", source)
    code.mov("rdi", destination)
    code.mov("rcx", count)
    code.label("target")
    code.rep.movsb()
    code.out(END_PORT, "al")
    rig.run(code)
    (message,) = rig.messages
    payload = message[16:]
    assert number(payload, 0x18, 8) == code.at("target")
    assert number(payload, 0x38, 8) == CLOSED
    assert number(payload, 0x70 + 8 * 1, 8) == count - 0x20
    assert number(payload, 0x70 + 8 * 7, 8) == CLOSED
    assert bytes(rig.ram.view[destination : destination + count]) == bytes(range(1, count + 1))


@pytest.mark.tlfs("intercepts.handling")
def test_gp_is_injected_instead_of_the_access(rig: Rig) -> None:
    from vtlkit.hvdef.registers import HvRegisterName as Name
    from vtlkit.vmm.vsm import vp_registers

    def inject(rig: Rig) -> None:
        assert vp_registers.set(rig.vp, rig.vp, 0, Name.HvRegisterPendingEvent0, 1 | 1 << 8 | 13 << 16) == 0

    rig.guest.long_mode()
    handler = layout.FREE
    rig.guest.gate(13, handler)
    rig.guest.write(handler, b"\xe6\x10")
    rig.close(Access.NONE)
    rig.react = [inject]
    code = program(rig, lambda code: code.mov(Mem(None, CLOSED, size=8), "rbx"))
    rig.run(code)
    assert len(rig.messages) == 1
    frame = rig.guest.frame(6)
    assert frame[0] == 0
    assert frame[1] == code.at("target")
    assert frame[2] == layout.KERNEL_CODE64
    assert rig.guest.read(CLOSED, 8) == 0
