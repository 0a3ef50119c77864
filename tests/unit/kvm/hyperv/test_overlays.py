"""Overlay pages and the hypercall page: contents, precedence, what reappears, vCPUs that move one page at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import RAM_SIZE, FakeVm
from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import msrs
from vtlkit.kvm.hyperv.cpuid import cpuid_leaves
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.hyperv.hypercall_page import hypercall_page
from vtlkit.kvm.hyperv.overlays import OverlayPage, Overlays, Precedence

ENABLE = msrs.HV_MSR_PAGE_ENABLE
LOCKED = msrs.HV_X64_MSR_HYPERCALL_LOCKED
OS_ID, HYPERCALL = msrs.HV_X64_MSR_GUEST_OS_ID, msrs.HV_X64_MSR_HYPERCALL
INSTRUCTION = b"\x0f\x01\xd9"


@pytest.mark.tlfs("msrs.hypercall")
def test_page_contents() -> None:
    page, offsets = hypercall_page(INSTRUCTION)
    call, ret = INSTRUCTION, b"\xc3"
    assert page.startswith(call + ret)

    def at(offset: int, code: bytes) -> None:
        assert page[offset : offset + len(code)] == code

    at(offsets.call_64, b"\x48\x89\xc8\xb9\x11\0\0\0" + call + ret)
    at(offsets.return_64, b"\x48\x89\xc8\xb9\x12\0\0\0" + call + ret)
    at(offsets.call_32, b"\x89\xc1\xb8\x11\0\0\0" + call + ret)
    at(offsets.return_32, b"\x89\xc1\xb8\x12\0\0\0" + call + ret)
    assert offsets.register(is_64bit=True) == offsets.call_64 | offsets.return_64 << 12
    assert offsets.register(is_64bit=False) == offsets.call_32 | offsets.return_32 << 12
    assert len(page) == PAGE_SIZE
    assert page[-1] == 0xCC


@pytest.mark.tlfs("msrs.guest-os-id", "msrs.hypercall")
def test_the_page_needs_an_os_id_and_goes_with_it() -> None:
    vm = FakeVm()
    vm.put(0x3000, "<Q", 0x1122334455667788)
    assert vm.cpu.wrmsr(HYPERCALL, 0x3000 | ENABLE)
    assert vm.cpu.rdmsr(HYPERCALL) == 0x3000
    assert vm.memory.overlay_at(0x3000) is None
    assert vm.hv.guest_os_id == 0
    assert vm.cpu.wrmsr(OS_ID, 1)
    assert vm.cpu.hv.hypercall_enabled
    assert vm.cpu.wrmsr(HYPERCALL, 0x3000 | ENABLE)
    assert vm.cpu.rdmsr(HYPERCALL) == 0x3000 | ENABLE
    assert vm.memory.read(0x3000, 4) == INSTRUCTION + b"\xc3"
    assert vm.memory.check(0x3000, 4, Access.EXECUTE)
    assert not vm.memory.check(0x3000, 4, Access.WRITE)
    assert vm.cpu.wrmsr(HYPERCALL, 0x4000 | ENABLE)
    assert vm.memory.read(0x3000, 8) == (0x1122334455667788).to_bytes(8, "little")
    assert vm.memory.read(0x4000, 3) == INSTRUCTION
    assert vm.cpu.wrmsr(OS_ID, 0)
    assert vm.cpu.rdmsr(HYPERCALL) == 0x4000
    assert vm.memory.read(0x4000, 4) == bytes(4)


@pytest.mark.tlfs("msrs.hypercall")
def test_a_locked_page_stays() -> None:
    cpu = FakeVm().cpu
    cpu.wrmsr(OS_ID, 1)
    assert cpu.wrmsr(HYPERCALL, 0x3000 | ENABLE | LOCKED)
    assert not cpu.wrmsr(HYPERCALL, 0x4000 | ENABLE)
    assert not cpu.wrmsr(HYPERCALL, 0)
    assert cpu.rdmsr(HYPERCALL) == 0x3000 | ENABLE | LOCKED
    cpu.vm.hv.reset()
    assert cpu.rdmsr(HYPERCALL) == cpu.rdmsr(OS_ID) == 0
    assert cpu.vm.memory.overlay_at(0x3000) is None


@pytest.mark.tlfs("msrs.hypercall")
def test_a_page_beyond_the_gpa_space() -> None:
    vm = FakeVm()
    vm.cpu.hv.set_cpuid(cpuid_leaves(HvFeatures(), physical_address_bits=40))
    vm.cpu.wrmsr(OS_ID, 1)
    assert not vm.cpu.wrmsr(HYPERCALL, 1 << 40 | ENABLE)
    assert vm.cpu.wrmsr(HYPERCALL, (1 << 40) - PAGE_SIZE | ENABLE)
    # SynIC pages beyond it are only inaccessible.
    assert vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 1 << 40 | ENABLE)
    assert vm.memory.overlay_at(1 << 40) is None


@pytest.mark.tlfs("msrs.overlay-contents")
def test_contents_move_with_the_page_and_survive_disabling() -> None:
    vm = FakeVm()
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 0x5000 | ENABLE)
    vm.put(0x5008, "<Q", 77)
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 0x6000 | ENABLE)
    assert vm.memory.read(0x5008, 8) == bytes(8)
    assert vm.memory.read(0x6008, 1) == b"\x4d"
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 0)
    assert vm.memory.read(0x6008, 1) == b"\0"
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 0x7000 | ENABLE)
    assert vm.memory.read(0x7008, 1) == b"\x4d"
    vm.cpu.hv.reset(init_event=True)
    assert vm.memory.read(0x7008, 1) == b"\x4d"
    vm.cpu.hv.reset(init_event=False)
    assert vm.memory.overlay_at(0x7000) is None
    vm.cpu.wrmsr(msrs.HV_X64_MSR_SIMP, 0x7000 | ENABLE)
    assert vm.memory.read(0x7008, 1) == b"\0"


@pytest.mark.tlfs("msrs.overlay-contents")
def test_a_page_may_lie_where_no_memory_is() -> None:
    vm = FakeVm()
    vm.cpu.wrmsr(msrs.HV_X64_MSR_VP_ASSIST_PAGE, RAM_SIZE * 4 | ENABLE)
    vm.put(RAM_SIZE * 4 + 16, "<QQ", 5, 6)
    assert vm.cpu.hv.assist.return_registers_64() == (5, 6)


MOVES = st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 2))), max_size=30)


@given(MOVES)
@pytest.mark.tlfs("msrs.overlay-precedence")
def test_precedence_against_an_oracle(moves: list[tuple[int, int | None]]) -> None:
    vm = FakeVm()
    overlays = Overlays(vm.host, vm.memory, vm.hv.lock)
    kinds = [Precedence.HYPERCALL, Precedence.VP_ASSIST, Precedence.MESSAGES, Precedence.MESSAGES, Precedence.MESSAGES]
    pages = [OverlayPage(vm.memory, kind, Access.ALL) for kind in kinds]
    where: dict[int, tuple[int, int]] = {}
    for time, (number, slot) in enumerate(moves):
        overlays.move(pages[number], None if slot is None else slot << 12)
        if slot is None:
            where.pop(number, None)
        elif where.get(number, (None,))[0] != slot:
            where[number] = (slot, time)
        for candidate in range(3):
            claims = [(kinds[n], -when, n) for n, (place, when) in where.items() if place == candidate]
            overlay = vm.memory.overlay_at(candidate << 12)
            if claims:
                assert overlay is not None
                assert overlay.block is pages[min(claims)[2]].block
            else:
                assert overlay is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.tlfs("msrs.overlay-contents")
def test_two_vcpus_move_one_page(seed: int) -> None:
    """Whoever was last by the register is where the page lies, and nowhere else."""
    host = Simulator(seed=seed, instrument=True)
    vm = FakeVm(3, host=host)
    vm.cpu.wrmsr(OS_ID, 1)

    def mover(number: int) -> None:
        for step in range(4):
            gpa = (1 + number * 4 + step) << 12
            assert vm.vcpus[number].wrmsr(HYPERCALL, gpa | ENABLE)
            register = vm.vcpus[number].rdmsr(HYPERCALL)
            assert register is not None
            if register == gpa | ENABLE and vm.hv.hypercall == register:
                assert vm.memory.overlay_at(gpa) is not None

    for number in range(3):
        host.spawn(lambda number=number: mover(number), f"vcpu{number}")  # type: ignore[misc]
    host.run()
    mapped = [gpa for gpa in range(0, RAM_SIZE, PAGE_SIZE) if vm.memory.overlay_at(gpa) is not None]
    assert mapped == [vm.hv.hypercall & ~0xFFF]
