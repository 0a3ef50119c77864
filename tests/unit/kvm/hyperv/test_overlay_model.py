"""Overlay pages against a model: whatever is placed, moved, written and reset, each page shows what it should."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import FakeVm
from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.hvdef import msrs

ENABLE = msrs.HV_MSR_PAGE_ENABLE
REGISTERS = (
    (msrs.HV_X64_MSR_HYPERCALL, 0, False),
    (msrs.HV_X64_MSR_VP_ASSIST_PAGE, 2, True),
    (msrs.HV_X64_MSR_SIEFP, 3, True),
    (msrs.HV_X64_MSR_SIMP, 4, True),
)
"""(MSR, precedence, writable by the guest). The hypercall page is the virtual machine's, the others a vCPU's."""
FIRST_PAGE, PAGES = 3, 2
BEYOND = 99
"""A slot where no memory is."""
PLACE = 0x100
"""Offset that the tests write to: in none of the pages does the hypervisor write there."""
MARK_SIZE = 4


def gpa_of(slot: int) -> int:
    return (FIRST_PAGE + slot) * PAGE_SIZE


@dataclass
class Page:
    """One overlay of the model."""

    precedence: int
    contents: bytes
    slot: int | None = None
    claimed: int = 0


@dataclass
class Model:
    under: dict[int, bytes] = field(default_factory=lambda: {slot: bytes(MARK_SIZE) for slot in range(PAGES)})
    pages: dict[tuple[int, int], Page] = field(default_factory=dict)
    os_id: int = 1
    clock: int = 0

    def claim(self, key: tuple[int, int], slot: int | None) -> None:
        self.clock += 1
        page = self.pages[key]
        if slot != page.slot:
            page.slot, page.claimed = slot, self.clock

    def top(self, slot: int) -> Page | None:
        claims = [page for page in self.pages.values() if page.slot == slot]
        return min(claims, key=lambda page: (page.precedence, -page.claimed), default=None)


SLOTS = st.sampled_from([None, *range(PAGES), BEYOND])
PLACING = st.tuples(st.just("place"), st.integers(0, 1), st.sampled_from(range(len(REGISTERS))), SLOTS)
STEPS = st.lists(
    st.one_of(
        PLACING,
        PLACING,
        st.tuples(st.just("write"), st.sampled_from([*range(PAGES), BEYOND]), st.integers(1, 255), st.none()),
        st.tuples(st.just("identity"), st.integers(0, 1), st.none(), st.none()),
        st.tuples(st.just("reset"), st.integers(0, 1), st.booleans(), st.none()),
    ),
    max_size=40,
)


@pytest.mark.tlfs("msrs.overlay-contents", "msrs.overlay-precedence")
@settings(max_examples=150)
@given(STEPS)
def test_overlays(steps: list[tuple[str, int, int, int | None]]) -> None:
    vm, model = _begin()
    for action, first, second, slot in steps:
        if action == "place":
            _place(vm, model, first, second, slot)
        elif action == "write":
            _write(vm, model, first, bytes([second]) * MARK_SIZE)
        elif action == "identity":
            assert vm.vcpus[0].wrmsr(msrs.HV_X64_MSR_GUEST_OS_ID, first)
            model.os_id = first
            if not first:
                model.claim((0, 0), None)
        else:
            vm.vcpus[first].hv.reset(init_event=bool(second))
            for number, (_, _, writable) in enumerate(REGISTERS):
                if writable and not second:
                    model.claim((first, number), None)
                    model.pages[first, number].contents = bytes(MARK_SIZE)
        _compare(vm, model)


def _begin() -> tuple[FakeVm, Model]:
    """Every page disabled, and no two of the same contents."""
    vm, model = FakeVm(2), Model()
    vm.cpu.wrmsr(msrs.HV_X64_MSR_GUEST_OS_ID, 1)
    model.pages[0, 0] = Page(REGISTERS[0][1], b"\xcc" * MARK_SIZE)
    for vcpu in range(2):
        for number, (index, precedence, writable) in enumerate(REGISTERS):
            if writable:
                contents = bytes([0xF0 | vcpu << 3 | number]) * MARK_SIZE
                assert vm.vcpus[vcpu].wrmsr(index, gpa_of(0) | ENABLE)
                vm.memory.write(gpa_of(0) + PLACE, contents)
                assert vm.vcpus[vcpu].wrmsr(index, 0)
                model.pages[vcpu, number] = Page(precedence, contents)
    return vm, model


def _place(vm: FakeVm, model: Model, vcpu: int, number: int, slot: int | None) -> None:
    index, _, writable = REGISTERS[number]
    value = 0 if slot is None else gpa_of(slot) | ENABLE
    assert vm.vcpus[vcpu].wrmsr(index, value)
    if not writable and not model.os_id:
        slot = None
    model.claim((vcpu if writable else 0, number), slot)


def _write(vm: FakeVm, model: Model, slot: int, data: bytes) -> None:
    """A store of the guest's, if it is permitted."""
    gpa = gpa_of(slot) + PLACE
    top = model.top(slot)
    allowed = top.precedence > 0 if top is not None else slot != BEYOND
    assert vm.memory.check(gpa, MARK_SIZE, Access.WRITE) == allowed
    if not allowed:
        return
    vm.memory.write(gpa, data)
    if top is None:
        model.under[slot] = data
    else:
        top.contents = data


def _compare(vm: FakeVm, model: Model) -> None:
    for slot in (*range(PAGES), BEYOND):
        gpa = gpa_of(slot) + PLACE
        top = model.top(slot)
        if top is None and slot == BEYOND:
            assert not vm.memory.check(gpa, MARK_SIZE, Access.READ)
            continue
        assert vm.memory.read(gpa, MARK_SIZE) == (model.under[slot] if top is None else top.contents)
        # Only the hypercall page is code.
        assert vm.memory.check(gpa, 1, Access.EXECUTE) == (top is None or top.precedence == 0)


@pytest.mark.tlfs("msrs.overlay-precedence")
def test_the_reference_tsc_page_lies_between() -> None:
    """Below the hypercall page, above those of a vCPU; only to be read."""
    vm = FakeVm()
    vm.cpu.wrmsr(msrs.HV_X64_MSR_GUEST_OS_ID, 1)
    gpa = gpa_of(0)
    order = (msrs.HV_X64_MSR_SIMP, msrs.HV_X64_MSR_SIEFP, msrs.HV_X64_MSR_VP_ASSIST_PAGE)
    blocks = []
    for index in (*order, msrs.HV_X64_MSR_REFERENCE_TSC, msrs.HV_X64_MSR_HYPERCALL):
        assert vm.cpu.wrmsr(index, gpa | ENABLE)
        overlay = vm.memory.overlay_at(gpa)
        assert overlay is not None
        blocks.append(overlay.block)
    assert len({id(block) for block in blocks}) == 5
    assert vm.cpu.wrmsr(msrs.HV_X64_MSR_HYPERCALL, 0)
    overlay = vm.memory.overlay_at(gpa)
    assert overlay is not None
    assert overlay.block is blocks[3]
    assert overlay.access == Access.READ
