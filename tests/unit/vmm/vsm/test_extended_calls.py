"""Extended hypercalls: what there is, and which memory is zero."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, RAM_SIZE, Guest, Script, VsmRig, input_vtl
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus

PIECE = 0x10000


def zeroed(guest: Guest) -> Generator[Op, int, list[tuple[int, int]]]:
    """[start, end) of what HvExtCallGetBootZeroedMemory reports, in its order."""
    assert not (yield from guest.call(Call.HvExtCallGetBootZeroedMemory))
    count = guest.rig.read(guest.output, 8)
    words = struct.unpack(f"<{2 * count}Q", guest.rig.read(guest.output + 8, 16 * count).to_bytes(16 * count, "little"))
    return [(page * PAGE, (page + pages) * PAGE) for page, pages in zip(words[::2], words[1::2], strict=True)]


def covers(ranges: list[tuple[int, int]], gpa: int) -> bool:
    return any(start <= gpa < end for start, end in ranges)


@pytest.mark.tlfs("hypercalls.extended")
def test_what_there_is() -> None:
    seen: list[Any] = []

    def guest(guest: Guest) -> Script:
        seen.append((yield from guest.call(Call.HvExtCallQueryCapabilities)))
        seen.append(guest.rig.read(guest.output, 8))
        yield ops.Set(Call.HvExtCallQueryCapabilities | 1 << 16, "rcx")
        yield ops.Vmmcall()
        seen.append(guest.regs.rdx)
        for code in (0x8000, Call.HvExtCallMemoryHeatHint, Call.HvExtCallEpfSetup, 0x8005, 0x8006, 0x8FFF):
            seen.append((yield from guest.call(code)))
        yield from guest.end()

    VsmRig({(0, 0): guest}).run()
    assert seen == [0, 1, 1, *[HvStatus.INVALID_HYPERCALL_CODE] * 6]


@pytest.mark.tlfs("hypercalls.extended")
def test_what_is_reported_is_zero_and_largest_first() -> None:
    """Every range reads as zero, no piece of 64 KiB that does is left out, and a piece with one byte is."""
    last = RAM_SIZE - PIECE

    def guest(guest: Guest) -> Script:
        guest.rig.write(last + PIECE - 1, b"\1")
        ranges = yield from zeroed(guest)
        sizes = [end - start for start, end in ranges]
        assert sizes == sorted(sizes, reverse=True)
        # The output itself was zero when memory was looked at.
        guest.rig.write(guest.output, bytes(PAGE))
        memory = guest.rig.partition.vtls[0].vm.memory
        pieces = {gpa for gpa in range(0, RAM_SIZE, PIECE) if not any(memory.read(gpa, PIECE))}
        assert {gpa for gpa in range(0, RAM_SIZE, PIECE) if covers(ranges, gpa)} == pieces
        assert not covers(ranges, last)
        assert covers(ranges, last - PIECE)
        guest.rig.write(last + PIECE - 1, b"\0")
        assert covers((yield from zeroed(guest)), last)
        guest.note("done")
        yield from guest.end()

    assert VsmRig({(0, 0): guest}).run().log == ["done"]


@pytest.mark.tlfs("hypercalls.extended")
def test_what_a_higher_vtl_protects_and_overlays_are_no_part_of_it() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(0xD0007, 0x1 | 0xF << 1)
        assert not (yield from guest.protect([FREE], 0, vtl=input_vtl(0))) & 0xFFFF
        seen.append(covers((yield from zeroed(guest)), FREE))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.wrmsr(msrs.HV_X64_MSR_SIMP, FREE + 0x20000 | 1)
        ranges = yield from zeroed(guest)
        for gpa in (FREE, FREE + PAGE, FREE + 0x20000, FREE + 0x21000):
            seen.append(covers(ranges, gpa))
        yield from guest.end()

    VsmRig({(0, 0): vtl0, (0, 1): vtl1}).run()
    assert seen == [True, False, True, False, True]


@pytest.mark.tlfs("hypercalls.extended")
def test_at_most_255_ranges() -> None:
    """Every other piece of memory has a byte in it."""

    def guest(guest: Guest) -> Script:
        for gpa in range(0, 64 << 20, 2 * PIECE):
            memory = guest.rig.partition.vtls[0].vm.memory
            memory.write(gpa + 0x8000, b"\1" if gpa >= RAM_SIZE else b"\0")
        ranges = yield from zeroed(guest)
        assert len(ranges) == 255
        assert all(end - start >= PIECE for start, end in ranges)
        guest.note("done")
        yield from guest.end()

    assert VsmRig({(0, 0): guest}, ram=64 << 20).run().log == ["done"]
