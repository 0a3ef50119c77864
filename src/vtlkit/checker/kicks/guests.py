"""Guests of a few instructions of 32-bit code without paging, each with a piece of RAM of its own.

Every guest counts its turns in memory, and its handlers count the interrupts that they were entered for: what a guest
has done is read there, from any thread, without asking the guest.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vtlkit.engine.api import RamBlock
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.apic import APIC_EOI, APIC_SPIV, APIC_SPIV_APIC_ENABLED
from vtlkit.x86.registers import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    RFLAGS_FIXED,
    RFLAGS_IF,
    DescriptorTable,
    Regs,
    Segment,
)

SIZE: Final = 0x10000
"""Bytes of RAM a guest; that of number n begins at (n + 1) times as many."""
VECTORS: Final = range(0x41, 0x44)
"""Those that have handlers."""
PORT: Final = 0x80
"""Written by guests that exit to user space; nothing is there."""
FAILED: Final = 0x81
"""Written by a guest that finds something wrong."""
_APIC: Final = 0xFEE00000
_IDT, _CODE, _HANDLERS, _WORDS, _INPUT, _STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x8000
_CODE_SELECTOR, _DATA_SELECTOR = 8, 16
_DESCRIPTORS: Final = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
_INTERRUPT_GATE: Final = 0x8E00
_LOOPS: Final = 100

_CPUID: Final = b"\x0f\xa2"
_HLT: Final = b"\xf4"
_OUT: Final = b"\xe6"
_IRET: Final = b"\xcf"


class Kind(enum.Enum):
    """What a guest does all the time. All have interrupts on."""

    SPIN = "spins"
    HALT = "halts"
    PORTS = "writes to a port"
    MIX = "executes CPUID, spins for a while, writes to a port"
    REST = "spins for a while, writes to a port, halts"
    FLUSH = "flushes the next processor's TLB by a hypercall"


class Guest:
    """One vCPU's guest."""

    def __init__(self, vcpu: Vcpu, number: int, kind: Kind, ram: RamBlock) -> None:
        self.vcpu = vcpu
        self.number = number
        self.kind = kind
        self._base = base = (number + 1) * SIZE
        self._words = ram.words(4)[(base + _WORDS) // 4 : (base + _WORDS) // 4 + 1 + len(VECTORS)]
        view = ram.view
        view[base : base + 24] = struct.pack("<3Q", *_DESCRIPTORS)
        for place, vector in enumerate(VECTORS, 1):
            at = base + _HANDLERS + 0x40 * place
            handler = _count(self._word(place)) + _store(_APIC + APIC_EOI, 0) + _IRET
            view[at : at + len(handler)] = handler
            gate = struct.pack("<4H", at & 0xFFFF, _CODE_SELECTOR, _INTERRUPT_GATE, at >> 16)
            view[base + _IDT + 8 * vector : base + _IDT + 8 * vector + 8] = gate
        view[base + _INPUT : base + _INPUT + 24] = struct.pack("<3Q", 0, 0, 1 << (number + 1))
        code = self._code()
        view[base + _CODE : base + _CODE + len(code)] = code
        self._start()

    def turns(self) -> int:
        """How often it has gone round, modulo 2^32. From any task."""
        return self._words[0]

    def handled(self, vector: int) -> int:
        """How many interrupts of this vector it has taken, modulo 2^32. From any task."""
        return self._words[1 + vector - VECTORS.start]

    def _word(self, place: int) -> int:
        return self._base + _WORDS + 4 * place

    def _code(self) -> bytes:
        out = _OUT + bytes((PORT,))
        spin = b"\xb9" + _LOOPS.to_bytes(4, "little") + b"\x49\x75\xfd"
        body = {
            Kind.SPIN: b"",
            Kind.HALT: _HLT,
            Kind.PORTS: out,
            Kind.MIX: _CPUID + spin + out,
            Kind.REST: spin + out + _HLT,
            Kind.FLUSH: self._flush(),
        }[self.kind]
        body += _count(self._word(0))
        return body + b"\xe9" + struct.pack("<i", -len(body) - 5)

    def _flush(self) -> bytes:
        """The call's input value in EDX:EAX, its input's address in EBX:ECX (TLFS, "Hypercall Inputs"); its result
        comes in EDX:EAX."""
        call = b"\xb8" + HvCallCode.HvCallFlushVirtualAddressSpace.to_bytes(4, "little")
        call += b"\x31\xd2\x31\xdb\x31\xff\x31\xf6" + b"\xb9" + (self._base + _INPUT).to_bytes(4, "little")
        call += self.vcpu.engine.hypercall_instruction
        return call + b"\x85\xc0\x74\x02" + _OUT + bytes((FAILED,))

    def _start(self) -> None:
        vcpu = self.vcpu
        sregs = vcpu.get_sregs()
        sregs.cs = Segment(_CODE_SELECTOR, 0, 0xFFFFFFFF, 0xC9B)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, Segment(_DATA_SELECTOR, 0, 0xFFFFFFFF, 0xC93))
        sregs.gdt = DescriptorTable(self._base, 8 * len(_DESCRIPTORS) - 1)
        sregs.idt = DescriptorTable(self._base + _IDT, 0x7FF)
        sregs.cr0 = CR0_PE | CR0_ET | CR0_NE
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=self._base + _CODE, rsp=self._base + _STACK, rflags=RFLAGS_FIXED | RFLAGS_IF))
        vcpu.apic.mmio_write(APIC_SPIV, 4, APIC_SPIV_APIC_ENABLED | 0xFF)
        vcpu.start_runnable()


def _count(address: int) -> bytes:
    """INC of a word of memory."""
    return b"\xff\x05" + address.to_bytes(4, "little")


def _store(address: int, value: int) -> bytes:
    return b"\xc7\x05" + address.to_bytes(4, "little") + value.to_bytes(4, "little")
