"""What is the same for every hypercall that has a layout: which status a malformed input value or parameter page gets.

Calls of user space are decoded there, others here: the status is the same, whoever answers.
"""

from __future__ import annotations

import pytest

from tests.unit.kvm.hyperv.rig import RAM_SIZE, FakeVm
from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.handlers import HANDLERS
from vtlkit.kvm.hyperv.layouts import LAYOUTS
from vtlkit.kvm.hyperv.parameters import decode_exit
from vtlkit.kvm.kvm_run import Hyperv

FAST = 1 << 16
INPUT, OUTPUT = 0x2000, 0x5000
HIDDEN, READ_ONLY = 0x8000, 0x9000
CALLS = [code for code, layout in LAYOUTS.items() if not layout.vtl_switch]
IDS = [HvCallCode(code).name for code in CALLS]
BAD_INPUT, BAD_ALIGNMENT = HvStatus.INVALID_HYPERCALL_INPUT, HvStatus.INVALID_ALIGNMENT
every_call = pytest.mark.parametrize("code", CALLS, ids=IDS)


def machine() -> FakeVm:
    vm = FakeVm()
    vm.memory.set_attributes(HIDDEN, PAGE_SIZE, Access.NONE)
    vm.memory.set_attributes(READ_ONLY, PAGE_SIZE, Access.READ)
    return vm


def status(control: int, first: int = INPUT, second: int = OUTPUT, bits: int = 64) -> int:
    """Of a call that is well-formed but for what the test changes; decoding comes before the handler."""
    vm = machine()
    vm.cpu.bits = bits
    answer = vm.cpu.call(control, first, second)
    assert not vm.cpu.exceptions
    if isinstance(answer, Hyperv):
        return decode_exit(answer, vm.memory).status
    return vm.cpu.result & 0xFFFF


def reps(code: int, count: int = 1, start: int = 0) -> int:
    """The code with reps if it takes any."""
    return code | (count << 32 | start << 48 if LAYOUTS[code].rep else 0)


def input_size(code: int, count: int = 1) -> int:
    return LAYOUTS[code].input_size + count * LAYOUTS[code].input_element


def output_size(code: int, count: int = 1) -> int:
    return LAYOUTS[code].output_size + count * LAYOUTS[code].output_element


def test_every_call_is_answered_by_somebody() -> None:
    assert set(LAYOUTS) == set(HANDLERS) | FakeVm().hv.user_space_calls


@pytest.mark.tlfs("hypercalls.input-value")
@every_call
def test_malformed_input_values(code: int) -> None:
    layout = LAYOUTS[code]
    for bit in (27, 28, 29, 30, 31, 44, 45, 46, 47, 60, 61, 62, 63):
        assert status(reps(code) | 1 << bit) == BAD_INPUT
    if layout.rep:
        for count, start in ((0, 0), (1, 1), (2, 3), (0, 1), (0xFFE, 0xFFF)):
            assert status(reps(code, count, start)) == BAD_INPUT
    else:
        for wrong in (1 << 32, 1 << 48, 0xFFF << 32):
            assert status(code | wrong) == BAD_INPUT
    if not layout.variable_header:
        assert status(reps(code) | 1 << 17) == BAD_INPUT
    too_many = 1 + 112 // layout.input_element if layout.input_element else 1
    if input_size(code, too_many) > 112:
        assert status(reps(code, too_many) | FAST) == BAD_INPUT


@pytest.mark.tlfs("hypercalls.xmm")
@every_call
@pytest.mark.parametrize("bits", [64, 32])
def test_fast_calls_take_112_bytes_of_input_and_output_together(code: int, bits: int) -> None:
    """Output begins at the next pair of registers behind the input, for 64-bit callers alone."""
    layout = LAYOUTS[code]
    for count in range(1, 30) if layout.rep else (1,):
        out = output_size(code, count)
        begin = (input_size(code, count) + 15) // 16 * 16
        fits = begin + out <= 112 and bits == 64 if out else input_size(code, count) <= 112
        # Without the variable header that it may need, a call that fits may be refused by its handler.
        refused = status(reps(code, count) | FAST, bits=bits) == BAD_INPUT
        assert refused is not fits or layout.variable_header


@pytest.mark.tlfs("hypercalls.parameters")
@every_call
def test_input_pages(code: int) -> None:
    size = input_size(code)
    if not size:
        return
    for offset in (1, 2, 4, 7):
        assert status(reps(code), INPUT + offset) == BAD_ALIGNMENT
    if size > 8:
        assert status(reps(code), INPUT + PAGE_SIZE - (size - 1) // 8 * 8) == BAD_ALIGNMENT
    for gpa in (1 << 52, 1 << 63, (1 << 64) - PAGE_SIZE):
        assert status(reps(code), gpa) == BAD_ALIGNMENT
    for gpa in (RAM_SIZE, (1 << 52) - PAGE_SIZE, HIDDEN):
        assert status(reps(code), gpa) == BAD_INPUT


@pytest.mark.tlfs("hypercalls.parameters")
@every_call
def test_output_pages(code: int) -> None:
    size = output_size(code)
    if not size:
        return
    for offset in (1, 2, 4, 7):
        assert status(reps(code), INPUT, OUTPUT + offset) == BAD_ALIGNMENT
    if size > 8:
        assert status(reps(code), INPUT, OUTPUT + PAGE_SIZE - (size - 1) // 8 * 8) == BAD_ALIGNMENT
    for gpa in (1 << 52, (1 << 64) - PAGE_SIZE):
        assert status(reps(code), INPUT, gpa) == BAD_ALIGNMENT
    for gpa in (RAM_SIZE, HIDDEN, READ_ONLY):
        assert status(reps(code), INPUT, gpa) == BAD_INPUT


@pytest.mark.tlfs("hypercalls.parameters")
@every_call
def test_pages_that_a_call_does_not_use_are_not_looked_at(code: int) -> None:
    """A page that is only read may be read-only; the output GPA of a call without output is ignored."""
    assert status(reps(code), READ_ONLY) not in (BAD_ALIGNMENT, BAD_INPUT) or LAYOUTS[code].variable_header
    if not output_size(code):
        expected = status(reps(code))
        assert status(reps(code), INPUT, 0xFFFF_FFFF_FFFF_FFFF) == expected


@pytest.mark.tlfs("hypercalls.caller")
@pytest.mark.parametrize("code", LAYOUTS, ids=[HvCallCode(code).name for code in LAYOUTS])
def test_no_call_is_made_by_user_code_or_in_real_mode(code: int) -> None:
    for level, real in ((1, False), (2, False), (3, False), (0, True)):
        vm = machine()
        vm.cpu.privilege_level, vm.cpu.real_mode = level, real
        assert vm.cpu.call(reps(code), INPUT, OUTPUT) is None
        assert vm.cpu.exceptions == [6]
        assert vm.cpu.skipped == 0


NOT_OFFERED = [
    *(code for code in HvCallCode if 0x40 <= code <= 0x4C),
    *(
        HvCallCode.HvCallCreateVp,
        HvCallCode.HvCallDeleteVp,
        HvCallCode.HvCallMapSparseGpaPages,
        HvCallCode.HvCallModifySparseGpaPages,
    ),
    *(HvCallCode.HvCallUnmapStatsPage, HvCallCode.HvCallMapStatsPage2, HvCallCode.HvCallSetPartitionPropertyEx),
    *(HvCallCode.HvCallGetVpCpuidValues, HvCallCode.HvCallInstallInterceptEx),
]


@pytest.mark.tlfs("hypercalls.not-offered")
@pytest.mark.parametrize("code", NOT_OFFERED, ids=[code.name for code in NOT_OFFERED])
def test_calls_that_serve_a_root_or_parent_are_not_offered(code: HvCallCode) -> None:
    """As a simple and as a rep call, by reference and fast."""
    for control in (code, code | 1 << 32, code | FAST, code | FAST | 1 << 32):
        assert status(control) == HvStatus.INVALID_HYPERCALL_CODE
