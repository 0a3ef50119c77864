"""The PVH boot protocol's start information (Xen's public/arch-x86/hvm/start_info.h), version 1.

The plain ELF64 start passes the same structure: it says everything that a guest needs to know, and guests have code for
it. All addresses are guest-physical.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from vtlkit.vmm.loaders.memory import memory_map
from vtlkit.vmm.loaders.placement import BootData

START_MAGIC: Final = 0x336EC578
_VERSION: Final = 1
_START_INFO: Final = struct.Struct("<IIIIQQQQII")
_MODULE: Final = struct.Struct("<QQQQ")
_MAP_ENTRY: Final = struct.Struct("<QQII")


def build_start_info(
    boot: BootData, memory_size: int, command_line: bytes, modules: Sequence[tuple[int, int, bytes]], rsdp_gpa: int
) -> int:
    """Put hvm_start_info into `boot`; returns its address. `modules` are (start, end, string); `rsdp_gpa` may be 0."""
    info = boot.put(bytes(_START_INFO.size))
    line_gpa = boot.put(command_line + b"\0", 1)
    strings = [boot.put(string + b"\0", 1) for _, _, string in modules]
    module_list = b"".join(
        _MODULE.pack(start, end - start, string, 0) for (start, end, _), string in zip(modules, strings, strict=True)
    )
    modules_gpa = boot.put(module_list) if modules else 0
    entries = memory_map(memory_size)
    map_gpa = boot.put(b"".join(_MAP_ENTRY.pack(base, size, kind, 0) for base, size, kind in entries))
    boot.patch(
        info,
        _START_INFO.pack(
            START_MAGIC, _VERSION, 0, len(modules), modules_gpa, line_gpa, rsdp_gpa, map_gpa, len(entries), 0
        ),
    )
    return info
