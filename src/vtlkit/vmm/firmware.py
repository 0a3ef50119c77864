"""What stands at the reset vector: the part of PC firmware that a guest can meet again after it has started.

Counterpart: SeaBIOS's `entry_post` and `handle_resume`. The loaders start the first boot themselves; a processor gets
here by INIT, or by a jump to F000:FFF0 or FFFF:0000. As IBM's BIOS does, it looks at the CMOS shutdown status: 05h and
0Ah go on at the address that 0040:0067 holds; anything else starts the machine over (`MachineEvents.post`).

The code is written to the top of the first MiB and, for the reset vector, to a page of its own below 4 GiB. Both are
RAM: a guest that overwrites them has lost its way back, as on a PC whose shadow RAM it overwrites.
"""

from __future__ import annotations

import struct
from typing import Final

from vtlkit.vmm.devices.events import MachineEvents

FIRMWARE_PORT: Final = 0x402
"""Written by the code below, and by nothing else."""
ROM_GPA: Final = 0xFFFFF000
ROM_SIZE: Final = 0x1000
CODE_GPA: Final = 0xFFF80
_SEGMENT: Final = 0xF000
_RESET_OFFSET: Final = 0xFFF0
_CODE_OFFSET: Final = CODE_GPA - (_SEGMENT << 4)
_CMOS_INDEX: Final = 0x70
_SHUTDOWN_STATUS: Final = 0x0F
_JUMP_WITH_EOI: Final = 0x05
_JUMP: Final = 0x0A
_RESUME_POINTER: Final = 0x467
_PIC_COMMAND: Final = 0x20
_EOI: Final = 0x20


def image() -> bytes:
    """The last bytes of the first MiB, from CODE_GPA on: 16-bit code, and the jump to it at the reset vector."""
    jump = b"\x31\xc0\x8e\xd8\xff\x2e" + struct.pack("<H", _RESUME_POINTER)  # xor ax, ax; mov ds, ax; jmp far [467h]
    eoi = bytes([0xB0, _EOI, 0xE6, _PIC_COMMAND])  # mov al, 20h; out 20h, al
    # mov dx, port; out dx, al; cli; hlt; jmp to the cli
    post = b"\xba" + struct.pack("<H", FIRMWARE_PORT) + b"\xee\xfa\xf4\xeb\xfc"
    code = bytes([0xFA, 0xB0, _SHUTDOWN_STATUS, 0xE6, _CMOS_INDEX, 0xE4, _CMOS_INDEX + 1])  # cli; AL := status
    code += bytes([0x3C, _JUMP, 0x74, 4 + len(post) + len(eoi)])  # cmp al, 0Ah; je jump
    code += bytes([0x3C, _JUMP_WITH_EOI, 0x74, len(post)])  # cmp al, 05h; je eoi
    code += post + eoi + jump
    vector = b"\xea" + struct.pack("<HH", _CODE_OFFSET, _SEGMENT)  # jmp F000:code
    room = _RESET_OFFSET - _CODE_OFFSET
    assert len(code) <= room
    return code.ljust(room, b"\xcc") + vector.ljust(0x10000 - _RESET_OFFSET, b"\xcc")


def rom() -> bytes:
    """The page that holds the reset vector."""
    return image().rjust(ROM_SIZE, b"\xcc")


class FirmwarePort:
    """How the firmware asks for a new start."""

    __slots__ = ("_events",)

    def __init__(self, events: MachineEvents) -> None:
        self._events = events

    def read(self, port: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        self._events.post()
