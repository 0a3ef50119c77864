"""Decoding and answering of hypercall parameters: every refusal, rep continuation, fast output, hostile input."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.kvm.hyperv.rig import RAM_SIZE
from vtlkit.engine.api import PAGE_SIZE, Access, RamBlock
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.hyperv.layouts import LAYOUTS
from vtlkit.kvm.hyperv.parameters import Hypercall, HypercallParameters, decode_exit
from vtlkit.kvm.kvm_run import Hyperv
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memslots import MemoryRegion

FAST = 1 << 16
GET = HvCallCode.HvCallGetVpRegisters
TRANSLATE = HvCallCode.HvCallTranslateVirtualAddress
IPI_EX = HvCallCode.HvCallSendSyntheticClusterIpiEx


def reps(count: int, start: int = 0) -> int:
    return count << 32 | start << 48


def make_memory() -> tuple[GuestMemory, RamBlock]:
    memory = GuestMemory(Simulator(), "test")
    ram = RamBlock(RAM_SIZE)
    memory.set_regions([MemoryRegion(0, 0, RAM_SIZE, ram)])
    return memory, ram


def make_exit(control: int, first: int = 0, second: int = 0, xmm: bytes = b"") -> Hyperv:
    return Hyperv(control & 0xFFFF, control, first, second, bool(control & FAST), xmm, 3)


def decode(control: int, first: int = 0, second: int = 0, xmm: bytes = b"") -> HypercallParameters:
    return decode_exit(make_exit(control, first, second, xmm), make_memory()[0])


@pytest.mark.parametrize(
    ("control", "first", "second", "status"),
    [
        (GET | reps(2), 0x1000, 0x2000, HvStatus.SUCCESS),
        (GET, 0x1000, 0x2000, HvStatus.INVALID_HYPERCALL_INPUT),  # a rep call without reps
        (GET | reps(2, 2), 0x1000, 0x2000, HvStatus.INVALID_HYPERCALL_INPUT),  # start not below count
        (GET | reps(2, 1), 0x1000, 0x2000, HvStatus.SUCCESS),
        (GET | reps(2) | 1 << 17, 0x1000, 0x2000, HvStatus.INVALID_HYPERCALL_INPUT),  # no variable header here
        (TRANSLATE, 0x1000, 0x2000, HvStatus.SUCCESS),
        (TRANSLATE | reps(1), 0x1000, 0x2000, HvStatus.INVALID_HYPERCALL_INPUT),  # reps for a simple call
        (TRANSLATE, 0x1004, 0x2000, HvStatus.INVALID_ALIGNMENT),
        (TRANSLATE, 0x1000, 0x2001, HvStatus.INVALID_ALIGNMENT),
        (TRANSLATE, 0x1FE8, 0x3000, HvStatus.INVALID_ALIGNMENT),  # 32 bytes of input cross the page
        (TRANSLATE, 0x1FE0, 0x3000, HvStatus.SUCCESS),
        (TRANSLATE, 0x1000, 0x2FF8, HvStatus.INVALID_ALIGNMENT),
        (TRANSLATE, RAM_SIZE, 0x2000, HvStatus.INVALID_HYPERCALL_INPUT),  # no memory there
        (TRANSLATE, 0x1000, RAM_SIZE, HvStatus.INVALID_HYPERCALL_INPUT),
        (TRANSLATE, 1 << 52, 0x2000, HvStatus.INVALID_ALIGNMENT),  # beyond the GPA space
        (TRANSLATE, (1 << 64) - PAGE_SIZE, 0x2000, HvStatus.INVALID_ALIGNMENT),
        (GET | reps(0xFF), 0x1000, 0x2000, HvStatus.SUCCESS),
        (GET | reps(0x101), 0x1000, 0x2000, HvStatus.INVALID_ALIGNMENT),  # 4112 bytes of output
        (GET | reps(0xFFF), 0x1000, 0x2000, HvStatus.INVALID_ALIGNMENT),
        (IPI_EX | 2 << 17, 0x1000, 0, HvStatus.SUCCESS),
        (IPI_EX | 0x3FF << 17, 0x1000, 0, HvStatus.INVALID_ALIGNMENT),  # 8184 bytes of header
        (IPI_EX | FAST | 11 << 17, 0, 0, HvStatus.SUCCESS),  # 24 + 88 = 112 bytes
        (IPI_EX | FAST | 12 << 17, 0, 0, HvStatus.INVALID_HYPERCALL_INPUT),
        (TRANSLATE | FAST, 0, 0, HvStatus.SUCCESS),  # 32 bytes in, 16 out
        (GET | FAST | reps(2), 0, 0, HvStatus.SUCCESS),  # 24 bytes in, 32 out
        (GET | FAST | reps(5), 0, 0, HvStatus.INVALID_HYPERCALL_INPUT),  # 48 in, 80 out
    ],
)
@pytest.mark.tlfs("hypercalls.input-value", "hypercalls.parameters")
def test_status_of_decoding(control: int, first: int, second: int, status: HvStatus) -> None:
    assert decode(control, first, second, bytes(96)).status == status


@pytest.mark.tlfs("hypercalls.parameters")
def test_attributes_guard_parameters() -> None:
    memory, _ = make_memory()
    memory.set_attributes(0x1000, PAGE_SIZE, Access.NONE)
    memory.set_attributes(0x2000, PAGE_SIZE, Access.READ)
    assert decode_exit(make_exit(TRANSLATE, 0x1000, 0x3000), memory).status == HvStatus.INVALID_HYPERCALL_INPUT
    assert decode_exit(make_exit(TRANSLATE, 0x2000, 0x2800), memory).status == HvStatus.INVALID_HYPERCALL_INPUT
    assert decode_exit(make_exit(TRANSLATE, 0x2000, 0x3000), memory).status == HvStatus.SUCCESS


def test_elements_and_partial_output() -> None:
    memory, ram = make_memory()
    memory.write(0x1000, bytes(16) + struct.pack("<3I", 7, 8, 9))
    ram.view[0x2000:0x2040] = b"\xaa" * 64
    call = decode_exit(make_exit(GET | reps(3, 1), 0x1000, 0x2000), memory)
    assert [call.element(n) for n in range(3)] == [struct.pack("<I", n) for n in (7, 8, 9)]
    call.write_element(1, b"\x11" * 16)
    assert ram.view[0x2010] == 0xAA
    call.result(HvStatus.INVALID_PARAMETER, 2)
    assert call.exit.result == HvStatus.INVALID_PARAMETER | 2 << 32
    assert not call.exit.retry
    assert bytes(ram.view[0x2000:0x2040]) == b"\xaa" * 16 + b"\x11" * 16 + b"\xaa" * 32


@pytest.mark.tlfs("hypercalls.continuation")
def test_rep_continuation_updates_the_start_index() -> None:
    call = decode(GET | reps(5, 1), 0x1000, 0x2000)
    call.result(HvStatus.SUCCESS, 3)
    assert call.exit.retry
    assert call.exit.control == GET | reps(5, 3)
    call = decode_exit(make_exit(call.exit.control, 0x1000, 0x2000), make_memory()[0])
    assert (call.rep_start, call.rep_count) == (3, 5)
    call.result(HvStatus.SUCCESS)
    assert not call.exit.retry
    assert call.exit.result == 5 << 32


@pytest.mark.tlfs("hypercalls.xmm")
def test_fast_output_follows_the_input_in_whole_pairs() -> None:
    xmm = bytes(range(96))
    call = decode(GET | FAST | reps(2), 0x1111, 0x2222, xmm)
    assert call.data == struct.pack("<QQ", 0x1111, 0x2222) + xmm[:8]
    call.write_element(0, b"A" * 16)
    call.write_element(1, b"B" * 16)
    call.result(HvStatus.SUCCESS)
    # 24 bytes of input take two pairs: RDX and R8, then XMM0; output begins in XMM1.
    assert (call.exit.input_gpa, call.exit.output_gpa) == (0x1111, 0x2222)
    assert call.exit.xmm == xmm[:16] + b"A" * 16 + b"B" * 16 + xmm[48:]


@pytest.mark.tlfs("hypercalls.xmm")
def test_no_fast_output_for_32_bit_callers() -> None:
    memory, _ = make_memory()
    call = Hypercall(TRANSLATE | FAST, 0, 0, memory, lambda: bytes(96), is_64bit=False)
    assert call.measure(LAYOUTS[TRANSLATE]) == HvStatus.INVALID_HYPERCALL_INPUT
    call = Hypercall(IPI_EX | FAST, 0, 0, memory, lambda: bytes(96), is_64bit=False)
    assert call.measure(LAYOUTS[IPI_EX]) == HvStatus.SUCCESS


@pytest.mark.tlfs("hypercalls.parameters")
def test_memory_that_vanishes_between_check_and_use_is_a_status() -> None:
    class Vanishing:
        def check(self, gpa: int, size: int, access: Access) -> bool:
            return True

        def read_for_guest(self, gpa: int, size: int) -> bytes:
            if gpa == 0x1000:
                raise GuestMemoryError(gpa, size, write=False)
            return bytes(size)

        def write_for_guest(self, gpa: int, data: bytes) -> None:
            raise GuestMemoryError(gpa, len(data), write=True)

    assert decode_exit(make_exit(TRANSLATE, 0x1000, 0x2000), Vanishing()).status == HvStatus.INVALID_HYPERCALL_INPUT
    call = decode_exit(make_exit(TRANSLATE, 0x3000, 0x2000), Vanishing())
    assert call.status == HvStatus.SUCCESS
    call.write_output(bytes(16))
    call.result(HvStatus.SUCCESS)
    assert call.exit.result == HvStatus.INVALID_HYPERCALL_INPUT


@pytest.mark.tlfs("hypercalls.parameters")
@pytest.mark.parametrize("left", [Access.NONE, Access.READ])
def test_what_is_forbidden_between_check_and_use_is_not_written(left: Access) -> None:
    """A higher VTL takes the output page away while the call waits for another processor."""
    memory, ram = make_memory()
    call = decode_exit(make_exit(TRANSLATE, 0x1000, 0x2000), memory)
    assert call.status == HvStatus.SUCCESS
    memory.set_attributes(0x2000, PAGE_SIZE, left)
    call.write_output(b"\xff" * 16)
    call.result(HvStatus.SUCCESS)
    assert call.exit.result == HvStatus.INVALID_HYPERCALL_INPUT
    assert not any(ram.view[0x2000:0x3000])


def test_what_is_forbidden_between_check_and_use_is_not_read() -> None:
    """The page is taken away, and what its new owner keeps there is not handed out."""

    class TakenAway(GuestMemory):
        taken = False

        def check(self, gpa: int, size: int, access: Access) -> bool:
            permitted = super().check(gpa, size, access)
            if permitted and checks.pop(0) and not self.taken:
                self.taken = True
                self.set_attributes(0x1000, PAGE_SIZE, Access.NONE)
                self.write(0x1000, b"secret..")
            return permitted

    for at in range(2):
        checks = [number == at for number in range(9)]
        memory = TakenAway(Simulator(), "test")
        memory.set_regions([MemoryRegion(0, 0, RAM_SIZE, RamBlock(RAM_SIZE))])
        call = Hypercall(0x7777, 0x1000, 0, memory, lambda: bytes(96))
        assert call.input(8) is HvStatus.INVALID_HYPERCALL_INPUT


def test_a_call_without_a_layout_is_read_by_size() -> None:
    memory, _ = make_memory()
    memory.write(0x1000, b"hello...")
    call = decode_exit(make_exit(0x7777, 0x1000), memory)
    assert call.input(8) == b"hello..."
    assert call.input(PAGE_SIZE + 8) is HvStatus.INVALID_ALIGNMENT
    assert decode(0x7777 | FAST, 1, 2, bytes(96)).input(113) is HvStatus.INVALID_HYPERCALL_INPUT


class Watched:
    """Memory whose pages have random rights, and that notes every access."""

    def __init__(self, rights: list[int]) -> None:
        self.rights = rights

    def check(self, gpa: int, size: int, access: Access) -> bool:
        return gpa + size <= len(self.rights) << 12 and all(
            access & ~self.rights[page] == 0 for page in range(gpa >> 12, (gpa + size - 1 >> 12) + 1)
        )

    def read_for_guest(self, gpa: int, size: int) -> bytes:
        assert self.check(gpa, size, Access.READ), "read what the caller may not read"
        return bytes(size)

    def write_for_guest(self, gpa: int, data: bytes) -> None:
        assert self.check(gpa, len(data), Access.WRITE), "wrote what the caller may not write"


GPAS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0x6000),
    st.builds(lambda page, offset: page << 12 | offset << 3, st.integers(0, 6), st.integers(0, 511)),
)
CONTROLS = st.builds(
    lambda code, fast, header, count, start: code | fast << 16 | header << 17 | count << 32 | start << 48,
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
    st.one_of(st.just(0), st.integers(0, 0x3FF)),
    st.one_of(st.integers(0, 3), st.integers(0, 0xFFF)),
    st.one_of(st.just(0), st.integers(0, 0xFFF)),
)


@given(CONTROLS, GPAS, GPAS, st.lists(st.integers(0, 7), min_size=5, max_size=5), st.booleans())
@example(0x9A | 1 << 32, 0x2000, 0, [0, 0, 1, 0, 0], False)
@pytest.mark.tlfs("hypercalls.parameters")
def test_hostile_parameters(control: int, first: int, second: int, rights: list[int], is_64bit: bool) -> None:
    memory = Watched(rights)
    layout = LAYOUTS[control & 0xFFFF]
    call = Hypercall(control, first, second, memory, lambda: bytes(96), is_64bit=is_64bit)
    status = call.measure(layout) or call.fetch()
    assert isinstance(status, HvStatus)
    if status:
        assert not call.data
        return
    assert len(call.data) == call.input_size
    assert call.input_size <= PAGE_SIZE
    if call.fast:
        assert call.input_size + call.output_size <= 112
    if layout.rep:
        call.reps_done = call.rep_count
        for index in range(call.rep_start, call.rep_count):
            assert len(call.element(index)) == layout.input_element
            if layout.output_element:
                call.write_element(index, b"\xff" * layout.output_element)
    elif call.output_size:
        call.write_output(b"\xff" * call.output_size)
    assert call.finish(HvStatus.SUCCESS) == call.reps_done << 32
