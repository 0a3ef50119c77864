"""Hypercalls from the instruction to the answer: modes, dispatch, exits and their completion, calls answered here."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import ALL_FEATURES, CALL_LENGTH, RAM_SIZE, FakeVm
from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import encode_vp_set
from vtlkit.kvm.hyperv import handlers
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.hyperv.parameters import Hypercall, decode_exit
from vtlkit.kvm.kvm_run import Hyperv
from vtlkit.kvm.requests import Req
from vtlkit.x86.exceptions import Vector

FAST = 1 << 16
INPUT, OUTPUT = 0x1000, 0x2000
FLUSH_ALL, FLUSH_ALL_SPACES, FLUSH_NON_GLOBAL, FLUSH_EXTENDED, FLUSH_TARGET_VTL = 1, 2, 4, 8, 16


def reps(count: int, start: int = 0) -> int:
    return count << 32 | start << 48


def header_words(count: int) -> int:
    return count << 17


@pytest.fixture(params=[64, 32])
def vm(request: pytest.FixtureRequest) -> FakeVm:
    machine = FakeVm(4)
    machine.cpu.bits = request.param
    return machine


# --- modes and the input value ------------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.caller")
def test_ud_outside_cpl_0_of_protected_mode(vm: FakeVm) -> None:
    vm.cpu.privilege_level = 3
    assert vm.cpu.call(Call.HvCallNotifyLongSpinWait | FAST) is None
    vm.cpu.privilege_level, vm.cpu.real_mode = 0, True
    assert vm.cpu.call(Call.HvCallVtlCall) is None
    assert vm.cpu.exceptions == [Vector.UD, Vector.UD]
    assert vm.cpu.skipped == 0


@pytest.mark.parametrize("bit", [27, 28, 29, 30, 31, 44, 47, 60, 63])
@pytest.mark.tlfs("hypercalls.input-value")
def test_reserved_bits_and_nested_calls(vm: FakeVm, bit: int) -> None:
    assert vm.cpu.status(Call.HvCallNotifyLongSpinWait | FAST | 1 << bit) == HvStatus.INVALID_HYPERCALL_INPUT


@pytest.mark.parametrize("code", [0, 0x7777, 0x8000, 0x8003, 0x8004, 0x8006, 0x8FFF, 0xFFFF])
@pytest.mark.tlfs("hypercalls.input-value")
@pytest.mark.tlfs("hypercalls.extended")
def test_codes_that_nobody_answers(vm: FakeVm, code: int) -> None:
    assert vm.cpu.status(code) == HvStatus.INVALID_HYPERCALL_CODE


@pytest.mark.tlfs("hypercalls.long-spin-wait")
def test_long_spin_wait(vm: FakeVm) -> None:
    assert vm.cpu.status(Call.HvCallNotifyLongSpinWait | FAST, 1000) == HvStatus.SUCCESS
    vm.put(INPUT, "<Q", 1000)
    assert vm.cpu.status(Call.HvCallNotifyLongSpinWait, INPUT) == HvStatus.SUCCESS
    assert vm.cpu.status(Call.HvCallNotifyLongSpinWait, INPUT + 4) == HvStatus.INVALID_ALIGNMENT
    assert vm.cpu.status(Call.HvCallNotifyLongSpinWait | reps(1), INPUT) == HvStatus.INVALID_HYPERCALL_INPUT


@pytest.mark.tlfs("hypercalls.input-value")
def test_the_result_of_a_32_bit_caller_is_in_edx_eax() -> None:
    vm = FakeVm()
    vm.cpu.bits = 32
    vm.put(INPUT, "<QQQ", 0, 0, 1)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressList | reps(2), INPUT) == HvStatus.SUCCESS
    assert (vm.cpu.regs.rdx, vm.cpu.regs.rax) == (2, 0)


# --- what needs a privilege ---------------------------------------------------------------------------------------


def test_privileges() -> None:
    cpu = FakeVm(features=HvFeatures(vsm=False, start_vp=False)).cpu
    assert cpu.status(Call.HvCallEnablePartitionVtl, INPUT) == HvStatus.ACCESS_DENIED
    assert cpu.status(Call.HvCallGetVpRegisters | reps(1), INPUT, OUTPUT) == HvStatus.ACCESS_DENIED
    assert cpu.status(Call.HvCallStartVirtualProcessor, INPUT) == HvStatus.ACCESS_DENIED
    assert cpu.call(Call.HvCallVtlCall) is None
    assert cpu.exceptions == [Vector.UD]


@pytest.mark.tlfs("hypercalls.xmm")
def test_xmm_parameters_are_ud_where_they_are_not_offered() -> None:
    cpu = FakeVm(features=HvFeatures(xmm_input=False, xmm_output=False)).cpu
    assert cpu.status(Call.HvCallSendSyntheticClusterIpi | FAST, 0x40, 1) == HvStatus.SUCCESS
    assert cpu.call(Call.HvCallFlushVirtualAddressSpace | FAST, 0, FLUSH_ALL) is None
    assert cpu.call(Call.HvCallTranslateVirtualAddress | FAST) is None
    assert cpu.exceptions == [Vector.UD, Vector.UD]


# --- exits to user space ------------------------------------------------------------------------------------------


def exit_of(vm: FakeVm, control: int, first: int = 0, second: int = 0) -> Hyperv:
    answer = vm.cpu.call(control, first, second)
    assert isinstance(answer, Hyperv)
    assert vm.cpu.skipped == 0
    return answer


def test_a_call_of_user_space_exits_and_is_completed(vm: FakeVm) -> None:
    control = Call.HvCallSetVpRegisters | reps(2)
    answer = exit_of(vm, control, INPUT, OUTPUT)
    assert answer == Hyperv(0x51, control, INPUT, OUTPUT, False, b"", CALL_LENGTH)
    call = decode_exit(answer, vm.memory)
    call.result(HvStatus.INVALID_PARAMETER, 1)
    vm.cpu.hv.complete(answer)
    assert vm.cpu.result == HvStatus.INVALID_PARAMETER | 1 << 32
    assert vm.cpu.skipped == CALL_LENGTH


def test_a_malformed_call_of_user_space_does_not_exit(vm: FakeVm) -> None:
    assert vm.cpu.status(Call.HvCallSetVpRegisters, INPUT) == HvStatus.INVALID_HYPERCALL_INPUT


def test_user_space_decides_which_calls_are_its_own(vm: FakeVm) -> None:
    vm.hv.user_space_calls = {0x7777, Call.HvCallNotifyLongSpinWait}
    assert exit_of(vm, 0x7777, INPUT).code == 0x7777
    assert exit_of(vm, Call.HvCallNotifyLongSpinWait | FAST, 5).input_gpa == 5
    assert vm.cpu.status(Call.HvCallGetVpRegisters | reps(1)) == HvStatus.INVALID_HYPERCALL_CODE


@pytest.mark.tlfs("hypercalls.continuation")
def test_retry_leaves_rip_and_takes_over_the_start_index(vm: FakeVm) -> None:
    control = Call.HvCallSetVpRegisters | reps(3)
    answer = exit_of(vm, control, INPUT)
    decode_exit(answer, vm.memory).result(HvStatus.SUCCESS, 2)
    vm.cpu.hv.complete(answer)
    assert vm.cpu.skipped == 0
    again = vm.cpu.hv.hypercall(CALL_LENGTH)
    assert isinstance(again, Hyperv)
    assert again.control == Call.HvCallSetVpRegisters | reps(3, 2)


def test_incomplete_answers_touch_no_register(vm: FakeVm) -> None:
    answer = exit_of(vm, Call.HvCallVtlCall)
    before = dict(vars(vm.cpu.regs))
    answer.complete, answer.result = False, 0x1234
    vm.cpu.hv.complete(answer)
    assert vars(vm.cpu.regs) == before
    assert vm.cpu.skipped == CALL_LENGTH


@pytest.mark.tlfs("hypercalls.xmm")
def test_fast_output_of_user_space_reaches_the_registers() -> None:
    vm = FakeVm()
    vm.cpu.fake_engine.xmm = b"x" * 96
    answer = exit_of(vm, Call.HvCallGetVpRegisters | FAST | reps(2), 0x11, 0x22)
    assert answer.xmm == b"x" * 96
    call = decode_exit(answer, vm.memory)
    call.write_element(0, b"A" * 16)
    call.write_element(1, b"B" * 16)
    call.result(HvStatus.SUCCESS)
    vm.cpu.hv.complete(answer)
    assert vm.cpu.fake_engine.xmm == b"x" * 16 + b"A" * 16 + b"B" * 16 + b"x" * 48
    assert (vm.cpu.regs.rdx, vm.cpu.regs.r8, vm.cpu.regs.rax) == (0x11, 0x22, 2 << 32)


@pytest.mark.tlfs("hypercalls.xmm")
def test_a_call_without_output_leaves_its_fast_input_to_the_guest() -> None:
    """SetVpRegisters may change RDX of the caller itself: completion must not put the old value back."""
    vm = FakeVm()
    answer = exit_of(vm, Call.HvCallSetVpRegisters | FAST | reps(1), 0x11, 0x22)
    vm.cpu.regs.rdx = 0x99
    decode_exit(answer, vm.memory).result(HvStatus.SUCCESS)
    vm.cpu.hv.complete(answer)
    assert vm.cpu.regs.rdx == 0x99


@pytest.mark.parametrize("code", [Call.HvCallVtlCall, Call.HvCallVtlReturn])
@pytest.mark.tlfs("vsm.call", "vsm.return")
def test_vtl_switches_carry_their_control_input(code: Call) -> None:
    vm = FakeVm()
    vm.cpu.set_parameters(code)
    vm.cpu.regs.rax = 1
    answer = vm.cpu.hv.hypercall(CALL_LENGTH)
    assert isinstance(answer, Hyperv)
    assert (answer.code, answer.input_gpa) == (code, 1)
    vm.cpu.bits = 32
    vm.cpu.regs.rax, vm.cpu.regs.rcx, vm.cpu.regs.rdx = code, 0x1_0000_0001, 2
    answer = vm.cpu.hv.hypercall(CALL_LENGTH)
    assert isinstance(answer, Hyperv)
    assert (answer.code, answer.input_gpa) == (code, 2 << 32 | 1)
    vm.cpu.regs.rax = code | FAST
    assert vm.cpu.hv.hypercall(CALL_LENGTH) is None
    vm.hv.user_space_calls.clear()
    vm.cpu.regs.rax = code
    assert vm.cpu.hv.hypercall(CALL_LENGTH) is None
    assert vm.cpu.exceptions == [Vector.UD, Vector.UD]


# --- rep calls in the hypervisor ----------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.continuation")
def test_a_handler_that_stops_early_is_called_again(vm: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def two_at_a_time(_hv: object, call: Hypercall) -> HvStatus:
        seen.append(call.rep_start)
        call.reps_done = min(call.rep_start + 2, call.rep_count)
        return HvStatus.SUCCESS

    table = {**handlers.HANDLERS, Call.HvCallFlushVirtualAddressList: two_at_a_time}
    monkeypatch.setattr("vtlkit.kvm.hyperv.hypercall.HANDLERS", table)
    vm.cpu.set_parameters(Call.HvCallFlushVirtualAddressList | reps(5), INPUT)
    vm.cpu.skipped = 0
    for _ in range(2):
        assert vm.cpu.hv.hypercall(CALL_LENGTH) is None
        assert vm.cpu.skipped == 0
    assert vm.cpu.hv.hypercall(CALL_LENGTH) is None
    assert seen == [0, 2, 4]
    assert vm.cpu.result == 5 << 32
    assert vm.cpu.skipped == CALL_LENGTH


def test_a_handler_that_must_wait_leaves_everything_as_it_is(vm: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(_hv: object, call: Hypercall) -> None:
        call.reissue = True

    table = {**handlers.HANDLERS, Call.HvCallFlushVirtualAddressSpace: wait}
    monkeypatch.setattr("vtlkit.kvm.hyperv.hypercall.HANDLERS", table)
    vm.cpu.set_parameters(Call.HvCallFlushVirtualAddressSpace, INPUT)
    before = dict(vars(vm.cpu.regs))
    assert vm.cpu.hv.hypercall(CALL_LENGTH) is None
    assert vars(vm.cpu.regs) == before
    assert vm.cpu.skipped == 0


# --- interrupts ---------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("hypercalls.cluster-ipi")
def test_cluster_ipi(vm: FakeVm) -> None:
    assert vm.cpu.status(Call.HvCallSendSyntheticClusterIpi | FAST, 0x41, 0b1011_0101) == HvStatus.SUCCESS
    assert [cpu.take() for cpu in vm.vcpus] == [0x41, -1, 0x41, -1]
    vm.put(INPUT, "<IBBHQ", 0x42, 0, 0, 0, 0b10)
    assert vm.cpu.status(Call.HvCallSendSyntheticClusterIpi, INPUT) == HvStatus.SUCCESS
    assert [cpu.take() for cpu in vm.vcpus] == [-1, 0x42, -1, -1]


@pytest.mark.parametrize("word", [0xF, 0x100, 0x41 | 1 << 40, 0x41 | 1 << 48, 0x41 | 0x20 << 32, 0x41 | 0x80 << 32])
@pytest.mark.tlfs("hypercalls.cluster-ipi")
def test_bad_cluster_ipi(vm: FakeVm, word: int) -> None:
    assert vm.cpu.status(Call.HvCallSendSyntheticClusterIpi | FAST, word, 1) == HvStatus.INVALID_PARAMETER


def test_an_ipi_to_another_vtl_exits(vm: FakeVm) -> None:
    vm.hv.vtl = 1
    own, other = 0x41 | 0x11 << 32, 0x41 | 0x10 << 32
    assert vm.cpu.status(Call.HvCallSendSyntheticClusterIpi | FAST, own, 1) == HvStatus.SUCCESS
    assert exit_of(vm, Call.HvCallSendSyntheticClusterIpi | FAST, other, 1).input_gpa == other


def sparse_ipi(vm: FakeVm, vps: list[int], set_format: int = 0) -> HvStatus:
    vp_set = encode_vp_set(vps)
    vm.memory.write(INPUT, struct.pack("<II", 0x55, 0) + set_format.to_bytes(8, "little") + vp_set[8:])
    return vm.cpu.status(Call.HvCallSendSyntheticClusterIpiEx | header_words(len(vp_set) // 8 - 2), INPUT)


@pytest.mark.tlfs("hypercalls.cluster-ipi")
def test_sparse_sets_name_vp_indices() -> None:
    vm = FakeVm(4, vp_indices=[0, 5, 130, 4095])
    assert sparse_ipi(vm, [5, 6, 4095, 200]) == HvStatus.SUCCESS
    assert [cpu.take() for cpu in vm.vcpus] == [-1, 0x55, -1, 0x55]
    assert sparse_ipi(vm, [], set_format=1) == HvStatus.SUCCESS
    assert [cpu.take() for cpu in vm.vcpus] == [0x55] * 4
    assert sparse_ipi(vm, []) == HvStatus.SUCCESS
    assert sparse_ipi(vm, [0], set_format=2) == HvStatus.INVALID_PARAMETER
    assert [cpu.take() for cpu in vm.vcpus] == [-1] * 4


@pytest.mark.tlfs("hypercalls.cluster-ipi")
def test_banks_and_variable_header_must_agree(vm: FakeVm) -> None:
    vm.put(INPUT, "<IIQQQ", 0x55, 0, 0, 0b101, 1)
    for words in (0, 1, 3):
        control = Call.HvCallSendSyntheticClusterIpiEx | header_words(words)
        assert vm.cpu.status(control, INPUT) == HvStatus.INVALID_HYPERCALL_INPUT


# --- TLB flushes --------------------------------------------------------------------------------------------------


def flushed(vm: FakeVm) -> list[bool]:
    result = [Req.TLB_FLUSH in cpu.requests for cpu in vm.vcpus]
    assert [cpu.kicks > 0 for cpu in vm.vcpus[1:]] == result[1:]
    for cpu in vm.vcpus:
        cpu.requests.clear()
        cpu.kicks = 0
    return result


@pytest.mark.tlfs("hypercalls.flush-space", "hypercalls.flush-list")
def test_flush_by_mask(vm: FakeVm) -> None:
    vm.put(INPUT, "<QQQ", 0x1234000, FLUSH_NON_GLOBAL, 0b110)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressSpace, INPUT) == HvStatus.SUCCESS
    assert flushed(vm) == [False, True, True, False]
    vm.put(INPUT, "<QQQQ", 0, FLUSH_ALL | FLUSH_ALL_SPACES, 0b1, 0x5001)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressList | reps(1), INPUT) == HvStatus.SUCCESS
    assert vm.cpu.result == 1 << 32
    assert flushed(vm) == [True] * 4


@pytest.mark.tlfs("hypercalls.xmm")
def test_fast_flush_by_mask_takes_the_mask_from_xmm0(vm: FakeVm) -> None:
    vm.cpu.fake_engine.xmm = struct.pack("<Q", 0b1000)
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressSpace | FAST, 0, FLUSH_ALL_SPACES) == HvStatus.SUCCESS
    assert flushed(vm) == [False, False, False, True]


@pytest.mark.tlfs("hypercalls.flush-space", "hypercalls.flush-list")
def test_flush_by_set(vm: FakeVm) -> None:
    vm.memory.write(INPUT, struct.pack("<QQ", 0, FLUSH_ALL_SPACES) + encode_vp_set([1, 3]))
    assert vm.cpu.status(Call.HvCallFlushVirtualAddressSpaceEx | header_words(1), INPUT) == HvStatus.SUCCESS
    assert flushed(vm) == [False, True, False, True]
    vm.memory.write(INPUT, struct.pack("<QQ", 0, 0) + encode_vp_set([2]) + struct.pack("<QQ", 0x1000, 0x2000))
    control = Call.HvCallFlushVirtualAddressListEx | header_words(1) | reps(2)
    assert vm.cpu.status(control, INPUT) == HvStatus.SUCCESS
    assert vm.cpu.result == 2 << 32
    assert flushed(vm) == [False, False, True, False]


@pytest.mark.tlfs("hypercalls.flush-space", "hypercalls.flush-list")
def test_flush_flags(vm: FakeVm) -> None:
    def status(code: Call, flags: int, extra: int = 0) -> HvStatus:
        vm.put(INPUT, "<QQQQ", 0, flags, 1, 0)
        return vm.cpu.status(code | extra, INPUT)

    assert status(Call.HvCallFlushVirtualAddressSpace, FLUSH_EXTENDED) == HvStatus.INVALID_PARAMETER
    assert status(Call.HvCallFlushVirtualAddressSpace, 1 << 63) == HvStatus.INVALID_PARAMETER
    assert status(Call.HvCallFlushVirtualAddressList, FLUSH_EXTENDED, reps(1)) == HvStatus.SUCCESS
    assert status(Call.HvCallFlushVirtualAddressList, FLUSH_NON_GLOBAL, reps(1)) == HvStatus.INVALID_PARAMETER
    named = FLUSH_TARGET_VTL | 1 << 8
    vm.cpu.fake_engine.xmm = bytes(16)
    assert exit_of(vm, Call.HvCallFlushVirtualAddressSpace | FAST, 0, named).output_gpa == named


# --- hostile guests -----------------------------------------------------------------------------------------------

HOSTILE = FakeVm(3, features=ALL_FEATURES)
HOSTILE.memory.set_attributes(0x3000, PAGE_SIZE, Access.NONE)
WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda page, offset: page << 12 | offset << 3, st.integers(0, RAM_SIZE >> 12), st.integers(0, 511)),
)
CODES = st.one_of(st.sampled_from([int(code) for code in Call]), st.integers(0, 0xFFFF))
CONTROLS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(
        lambda code, rest, mask: code | rest & mask, CODES, WORDS, st.sampled_from([0, FAST, 0x00FF_00FF_03FF_0000])
    ),
)


@given(CONTROLS, WORDS, WORDS, st.binary(max_size=96), st.sampled_from([32, 64]), st.binary(min_size=64, max_size=64))
@pytest.mark.tlfs("hypercalls.input-value", "hypercalls.parameters")
def test_hostile_hypercalls(control: int, first: int, second: int, xmm: bytes, bits: int, memory: bytes) -> None:
    vm, cpu = HOSTILE, HOSTILE.cpu
    cpu.bits = bits
    cpu.exceptions.clear()
    cpu.fake_engine.xmm = xmm
    for page in range(RAM_SIZE >> 12):
        vm.ram.view[page << 12 : (page << 12) + 64] = memory
    before = bytes(vm.ram.view)
    answer = cpu.call(control, first, second)
    if isinstance(answer, Hyperv):
        call = decode_exit(answer, vm.memory)
        call.result(call.status or HvStatus.ACCESS_DENIED)
        cpu.skipped = 0
        cpu.hv.complete(answer)
    if cpu.exceptions:
        assert cpu.exceptions == [Vector.UD]
    else:
        assert cpu.skipped == CALL_LENGTH
        HvStatus(cpu.result & 0xFFFF)
        assert cpu.result >> 32 <= 0xFFF
    assert bytes(vm.ram.view) == before
