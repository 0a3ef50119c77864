"""Register records: power-up values, copies, attribute bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vtlkit.x86.registers import CR0_ET, RFLAGS_FIXED, DescriptorTable, Regs, Segment, Sregs


def test_power_up_state_fetches_from_below_4_gib() -> None:
    regs, sregs = Regs.reset(), Sregs.reset()
    assert sregs.cs.base + regs.rip == 0xFFFFFFF0
    assert regs.rflags == RFLAGS_FIXED == 2
    assert regs.rdx == 0x600
    assert sregs.cs.selector == 0xF000
    assert sregs.cr0 == 0x60000010
    assert sregs.cr0 & CR0_ET
    assert sregs.apic_base == 0xFEE00800
    assert (sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer) == (0, 0, 0, 0, 0)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        assert (segment.base, segment.limit, segment.attributes) == (0, 0xFFFF, 0x93)
    assert sregs.tr.type == 11
    assert sregs.ldt.type == 2
    assert sregs.idt == DescriptorTable(0, 0xFFFF)


def test_copies_share_nothing() -> None:
    sregs = Sregs.reset()
    duplicate = sregs.copy()
    assert duplicate == sregs
    duplicate.cs.base = 1
    duplicate.gdt.limit = 1
    duplicate.cr3 = 1
    assert sregs == Sregs.reset()
    regs = Regs(rax=1)
    other = regs.copy()
    other.rax = 2
    assert regs == Regs(rax=1)


def test_reset_shares_no_segment() -> None:
    sregs = Sregs.reset()
    sregs.ds.base = 5
    assert sregs.es.base == 0


@given(st.integers(0, 0xFFF))
def test_attribute_properties(attributes: int) -> None:
    segment = Segment(attributes=attributes)
    rebuilt = (
        segment.type
        | segment.s << 4
        | segment.dpl << 5
        | segment.present << 7
        | segment.avl << 8
        | segment.long << 9
        | segment.db << 10
        | segment.granularity << 11
    )
    assert rebuilt == attributes
    assert segment.unusable is not segment.present
