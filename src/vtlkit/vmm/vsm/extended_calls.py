"""Extended hypercalls: those from 0x8000 on (TLFS, HvExtCallQueryCapabilities, HvExtCallGetBootZeroedMemory).

Shares nothing. Memory may change while it is looked at: what is reported was zero at some moment of the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import PAGE_SIZE, Access
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HV_EXT_CAPABILITY_GET_BOOT_ZEROED_MEMORY
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HypercallParameters

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_CAPABILITIES: Final = HV_EXT_CAPABILITY_GET_BOOT_ZEROED_MEMORY
_COARSE: Final = bytes(2 << 20)
_FINE: Final = bytes(64 << 10)
"""What memory is compared with: large pieces, and where one is not all zero, small ones."""


def query_capabilities(_vp: Vp, _level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvExtCallQueryCapabilities."""
    call.write_output(_CAPABILITIES.to_bytes(8, "little"))
    return HvStatus.SUCCESS, 0


def get_boot_zeroed_memory(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvExtCallGetBootZeroedMemory: the largest ranges of RAM that the caller may read and that read as zero."""
    ranges = sorted(_merged(_zero_ranges(vp, level)), key=lambda found: (found[0] - found[1], found[0]))
    del ranges[io.HV_EXT_BOOT_ZEROED_MEMORY_MAX_RANGES :]
    output = len(ranges).to_bytes(8, "little") + b"".join(
        io.HV_EXT_OUTPUT_BOOT_ZEROED_MEMORY_RANGE(start // PAGE_SIZE, (end - start) // PAGE_SIZE).pack()
        for start, end in ranges
    )
    call.write_output(output)
    return HvStatus.SUCCESS, 0


def _zero_ranges(vp: Vp, level: int) -> Iterator[tuple[int, int]]:
    """[start, end) of readable RAM that is zero, no overlay pages; several may follow each other without a gap."""
    memory = vp.partition.vtls[level].vm.memory
    overlays = memory.space.overlays
    for ram, length in vp.partition.ram_ranges():
        for gpa, size, block, offset, access in memory.pieces(ram, length):
            if not access & Access.READ or gpa in overlays:
                continue
            for at, part in _zero_parts(block.view[offset : offset + size], _COARSE):
                yield gpa + at, gpa + at + part


def _zero_parts(view: memoryview, zeros: bytes) -> Iterator[tuple[int, int]]:
    """(offset, size) of what is zero, in steps of `zeros` from the start of `view`, smaller ones where that fails."""
    for at in range(0, len(view), len(zeros)):
        part = bytes(view[at : at + len(zeros)])
        if part == zeros[: len(part)]:
            yield at, len(part)
        elif zeros is not _FINE:
            for inside, size in _zero_parts(view[at : at + len(zeros)], _FINE):
                yield at + inside, size


def _merged(ranges: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged
