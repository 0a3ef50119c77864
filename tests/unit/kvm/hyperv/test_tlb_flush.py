"""Flush hypercalls and cluster IPIs against an oracle of the processors they reach; and what holds a flush up."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import ALL_FEATURES, FakeVcpu, FakeVm
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import encode_vp_set
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.hyperv.flush_inhibit.waiting_on import WaitingOn
from vtlkit.kvm.kvm_run import Hyperv
from vtlkit.kvm.requests import Req

INPUT = 0x1000
VPS = [0, 1, 5, 63, 64, 130, 4095]
ALL, ALL_SPACES, NON_GLOBAL, EXTENDED, USE_VTL = 1, 2, 4, 8, 16
LARGE = 1 << 11
LARGE_RESERVED = 0xFF << 13
REPS = 32
VARIABLE = 17

MACHINE = FakeVm(len(VPS), vp_indices=VPS)
PLAIN = FakeVm(len(VPS), vp_indices=VPS, features=HvFeatures(tlbflush_ext=False))


@dataclass(frozen=True)
class Flush:
    """One call, as the test names it: which VPs, whether by mask or by set, and the list, if it has one."""

    by_set: bool
    vps: frozenset[int]
    set_format: int
    flags: int
    ranges: tuple[int, ...]
    is_list: bool
    start: int

    def control_and_data(self) -> tuple[int, bytes]:
        data = struct.pack("<QQ", 0x1234000, self.flags)
        banks = 0
        if self.by_set:
            vp_set = encode_vp_set(self.vps)
            banks = len(vp_set) // 8 - 2
            data += self.set_format.to_bytes(8, "little") + vp_set[8:]
            code = Call.HvCallFlushVirtualAddressListEx if self.is_list else Call.HvCallFlushVirtualAddressSpaceEx
        else:
            data += sum(1 << vp for vp in self.vps if vp < 64).to_bytes(8, "little")
            code = Call.HvCallFlushVirtualAddressList if self.is_list else Call.HvCallFlushVirtualAddressSpace
        control = code | banks << VARIABLE
        if self.is_list:
            control |= len(self.ranges) << REPS | self.start << 48
            data += struct.pack(f"<{len(self.ranges)}Q", *self.ranges)
        return control, data

    def expected(self, *, extended: bool) -> tuple[HvStatus, set[int], int] | None:
        """(status, VPs flushed, elements done); None: it names VTLs, and is user space's."""
        nothing: set[int] = set()
        first = self.start if self.is_list else 0
        if self.by_set and self.set_format > 1:
            return HvStatus.INVALID_PARAMETER, nothing, first
        good = {0, 1, 4, 8, 9}
        if not self.is_list:
            good.add(2)
        elif extended:
            good.add(3)
        named = self.flags >> 8 & 3
        if any(self.flags >> bit & 1 and bit not in good for bit in range(64)) or bool(named) != bool(self.flags & 16):
            return HvStatus.INVALID_PARAMETER, nothing, first
        if self.is_list and self.flags & EXTENDED:
            for index in range(self.start, len(self.ranges)):
                if self.ranges[index] & LARGE and self.ranges[index] & LARGE_RESERVED:
                    return HvStatus.INVALID_PARAMETER, nothing, index
        if named:
            return None
        by_mask = {vp for vp in self.vps if vp < 64}
        everybody = self.flags & ALL or (self.set_format == 1 if self.by_set else not by_mask)
        reached = set(VPS) if everybody else set(VPS) & (self.vps if self.by_set else by_mask)
        return HvStatus.SUCCESS, reached, len(self.ranges) if self.is_list else 0


@st.composite
def flushes(draw: st.DrawFn) -> Flush:
    """Mostly well-formed calls; each thing that can be wrong is, now and then."""
    is_list = draw(st.booleans())
    ranges = draw(
        st.lists(
            st.one_of(
                st.integers(0, (1 << 64) - 1),
                st.builds(
                    lambda page, more: page << 21 | LARGE | more, st.integers(0, (1 << 43) - 1), st.integers(0, 9)
                ),
            ),
            min_size=1,
            max_size=6,
        )
    )
    flags = draw(
        st.one_of(
            st.sampled_from([0, ALL, ALL_SPACES, ALL | ALL_SPACES]),
            st.integers(0, 31),
            st.integers(0, 63).map(lambda bit: 1 << bit),
            st.integers(1, 3).map(lambda named: USE_VTL | named << 8),
        )
    )
    return Flush(
        by_set=draw(st.booleans()),
        vps=frozenset(draw(st.lists(st.one_of(st.sampled_from(VPS), st.integers(0, 4095)), max_size=8))),
        set_format=draw(st.sampled_from([0, 0, 0, 1, 2, 1 << 40])),
        flags=flags,
        ranges=tuple(ranges),
        is_list=is_list,
        start=draw(st.integers(0, len(ranges) - 1)),
    )


@pytest.mark.tlfs("hypercalls.flush-space", "hypercalls.flush-list")
@given(flushes(), st.booleans(), st.sampled_from([64, 32]))
def test_a_flush_reaches_exactly_the_processors_it_names(flush: Flush, extended: bool, bits: int) -> None:
    vm = MACHINE if extended else PLAIN
    vm.cpu.bits = bits
    for vcpu in vm.vcpus:
        vcpu.requests.clear()
    control, data = flush.control_and_data()
    vm.memory.write(INPUT, data.ljust(64, b"\0"))
    answer = vm.cpu.call(control, INPUT)
    expected = flush.expected(extended=extended)
    flushed = {vp for vp, vcpu in zip(VPS, vm.vcpus, strict=True) if Req.TLB_FLUSH in vcpu.requests}
    if expected is None:
        assert isinstance(answer, Hyperv)
        assert not flushed
        return
    assert answer is None
    status, reached, done = expected
    assert (vm.cpu.result & 0xFFFF, vm.cpu.result >> 32) == (status, done)
    assert flushed == reached


@pytest.mark.tlfs("hypercalls.flush-space")
def test_a_flush_is_over_when_no_target_executes_under_old_translations() -> None:
    vm = FakeVm(3)
    for vcpu in vm.vcpus:
        vcpu.running_on = 100
    vm.put(INPUT, "<QQQ", 0, ALL, 0)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressSpace, INPUT) == HvStatus.SUCCESS
    assert [vcpu.running_on for vcpu in vm.vcpus[1:]] == [0, 0]


# --- inhibited TLBs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_set", [False, True])
@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("bits", [64, 32])
def test_an_inhibited_target_suspends_the_caller_on_the_instruction(by_set: bool, is_list: bool, bits: int) -> None:
    vm = FakeVm(4)
    cpu, target = vm.cpu, vm.vcpus[2]
    cpu.bits = bits
    flush = Flush(by_set, frozenset({1, 2}), 0, 0, (0x5000, 0x6000), is_list, 0)
    control, data = flush.control_and_data()
    vm.memory.write(INPUT, data)
    target.hv.set_tlb_flush_inhibit(True)
    waited_on: list[object] = []
    cpu.on_suspend = lambda: waited_on.append(cpu.hv.flush_inhibit.waits_for())
    cpu.set_parameters(control, INPUT)
    before = vars(cpu.regs).copy()
    for times in (1, 2):
        assert cpu.hv.hypercall(3) is None
        assert cpu.suspended == times
        assert vars(cpu.regs) == before
        assert cpu.skipped == 0
    assert waited_on == [target.hv] * 2
    assert cpu.hv.flush_inhibit.waits_for() is None
    assert all(Req.TLB_FLUSH not in vcpu.requests for vcpu in vm.vcpus)
    target.hv.set_tlb_flush_inhibit(False)
    assert cpu.hv.hypercall(3) is None
    assert cpu.skipped == 3
    assert cpu.result == (2 << 32 if is_list else 0)
    assert [Req.TLB_FLUSH in vcpu.requests for vcpu in vm.vcpus] == [False, True, True, False]
    assert cpu.suspended == 2


def test_an_inhibit_that_nobody_flushes_holds_nobody_up() -> None:
    vm = FakeVm(3)
    vm.vcpus[2].hv.set_tlb_flush_inhibit(True)
    vm.put(INPUT, "<QQQ", 0, 0, 0b011)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressSpace, INPUT) == HvStatus.SUCCESS


def wait_on(flusher: FakeVcpu, target: FakeVcpu) -> None:
    """As its hypercall handler says before it sleeps."""
    word = flusher.hv.flush_inhibit
    assert isinstance(word, WaitingOn)
    word.waiting_on.store(target.hv)


def test_clearing_wakes_those_who_wait_on_it_and_nobody_else() -> None:
    vm = FakeVm(4)
    first, second, third, fourth = vm.vcpus
    wait_on(first, third)
    wait_on(second, fourth)
    for inhibit in (True, False):
        third.hv.set_tlb_flush_inhibit(inhibit)
        assert [Req.UNBLOCK in vcpu.requests for vcpu in vm.vcpus] == [not inhibit, False, False, False]
        assert [vcpu.kicks > 0 for vcpu in vm.vcpus] == [not inhibit, False, False, False]


def test_reset_ends_the_inhibit_and_init_does_not() -> None:
    vm = FakeVm(2)
    target = vm.vcpus[1].hv
    wait_on(vm.cpu, vm.vcpus[1])
    target.set_tlb_flush_inhibit(True)
    target.reset(init_event=True)
    assert target.tlb_flush_inhibit.load()
    target.reset(init_event=False)
    assert not target.tlb_flush_inhibit.load()
    assert Req.UNBLOCK in vm.cpu.requests


def test_a_malformed_flush_of_an_inhibited_target_is_refused_at_once() -> None:
    vm = FakeVm(1)
    vm.cpu.hv.set_tlb_flush_inhibit(True)
    vm.put(INPUT, "<QQQ", 0, 1 << 40, 1)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressSpace, INPUT) == HvStatus.INVALID_PARAMETER
    assert vm.cpu.suspended == 0


# --- calls that are not offered -----------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.flush-gpa")
def test_second_level_flushes_and_address_space_switches_are_not_offered() -> None:
    """Without nested virtualization there is no second-level address space; CPUID recommends no switch by hypercall."""
    vm = FakeVm(1, features=ALL_FEATURES)
    vm.put(INPUT, "<QQQ", 0x1000, 0, 0)
    for control in (
        Call.HvCallFlushGuestPhysicalAddressSpace,
        Call.HvCallFlushGuestPhysicalAddressList | 1 << REPS,
        Call.HvCallSwitchVirtualAddressSpace,
    ):
        assert vm.cpu.status(control, INPUT) == HvStatus.INVALID_HYPERCALL_CODE


# --- cluster IPIs -------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.cluster-ipi")
@given(
    st.booleans(),
    st.frozensets(st.one_of(st.sampled_from(VPS), st.integers(0, 4095)), max_size=8),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.one_of(st.integers(0x10, 0xFF), st.integers(0, 0x200), st.integers(0, (1 << 32) - 1)),
    st.sampled_from([0, 0, 0, 0x10, 0x11, 0x20, 0x80]),
    st.sampled_from([0, 0, 0, 1 << 8, 1 << 31]),
)
def test_a_cluster_ipi_reaches_exactly_the_processors_it_names(
    by_set: bool, vps: frozenset[int], set_format: int, vector: int, vtl: int, reserved: int
) -> None:
    """`vtl`: HV_INPUT_VTL; the machine is VTL 0. `reserved`: in the word of HV_INPUT_VTL, above it."""
    for vcpu in MACHINE.vcpus:
        while vcpu.take() >= 0:
            pass
    MACHINE.cpu.bits = 64
    data = struct.pack("<II", vector, vtl | reserved)
    banks = 0
    if by_set:
        vp_set = encode_vp_set(vps)
        banks = len(vp_set) // 8 - 2
        data += set_format.to_bytes(8, "little") + vp_set[8:]
        code = Call.HvCallSendSyntheticClusterIpiEx
    else:
        data += sum(1 << vp for vp in vps if vp < 64).to_bytes(8, "little")
        code = Call.HvCallSendSyntheticClusterIpi
    MACHINE.memory.write(INPUT, data)
    answer = MACHINE.cpu.call(code | banks << VARIABLE, INPUT)
    taken = {vp for vp, vcpu in zip(VPS, MACHINE.vcpus, strict=True) if vcpu.take() == vector}
    bad = (by_set and set_format == 2) or vtl & 0xE0 or reserved or not 0x10 <= vector <= 0xFF
    if not bad and vtl == 0x11:
        assert isinstance(answer, Hyperv)
        assert not taken
        return
    assert answer is None
    assert MACHINE.cpu.result == (HvStatus.INVALID_PARAMETER if bad else HvStatus.SUCCESS)
    reached = set(VPS) if by_set and set_format == 1 else {vp for vp in vps & set(VPS) if by_set or vp < 64}
    assert taken == (set() if bad else reached)
