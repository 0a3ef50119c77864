"""Guests of a few instructions of 64-bit code, each with a piece of RAM of its own. Addresses are physical ones.

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
from vtlkit.x86.paging import PTE_P, PTE_PS, PTE_W
from vtlkit.x86.registers import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
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
DEVICE: Final = 0x88
"""Of a device of the hypervisor's, which engines that can ask without an exit."""
FAILED: Final = 0x81
"""Written by a guest that finds something wrong."""
_APIC: Final = 0xFEE00000
_PML4, _PDPT, _LOW, _HIGH = 0x1000, 0x2000, 0x3000, 0x4000
"""Page tables, below all guests: the first gigabyte, and the one with the local APIC, in large pages."""
_IDT, _CODE, _HANDLERS, _WORDS, _INPUT, _STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x8000
_CODE_SELECTOR, _DATA_SELECTOR = 8, 16
_DESCRIPTORS: Final = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_INTERRUPT_GATE: Final = 0x8E00
_LOOPS: Final = 100

_CPUID: Final = b"\x0f\xa2"
_HLT: Final = b"\xf4"
_OUT: Final = b"\xe6"
_NEXT: Final = b"\xeb\x00"
"""A jump to what follows: where the embedded CPU finishes an OUT it may go on as far as this, and no further."""
_IRET: Final = b"\x48\xcf"
_PUSH_RAX, _POP_RAX = b"\x50", b"\x58"


class Kind(enum.Enum):
    """What a guest does all the time. All have interrupts on."""

    SPIN = "spins"
    HALT = "halts"
    PORTS = "exits by a port"
    DEVICE = "writes to a device"
    MIX = "executes CPUID, spins for a while, writes to a device, exits by a port"
    REST = "spins for a while, exits by a port, halts"
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
            handler = _count(self._word(place)) + _PUSH_RAX + _store(_APIC + APIC_EOI) + _POP_RAX + _IRET
            view[at : at + len(handler)] = handler
            gate = struct.pack("<4HQ", at & 0xFFFF, _CODE_SELECTOR, _INTERRUPT_GATE, at >> 16, 0)
            view[base + _IDT + 16 * vector : base + _IDT + 16 * vector + 16] = gate
        if kind is Kind.FLUSH:
            # Address space, flags, and of the processors the next one.
            view[base + _INPUT : base + _INPUT + 24] = struct.pack("<3Q", 0, 0, 1 << number + 1)
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
        out, device = (_OUT + bytes((port,)) + _NEXT for port in (PORT, DEVICE))
        spin = b"\xb9" + _LOOPS.to_bytes(4, "little") + b"\xff\xc9\x75\xfc"
        body = {
            Kind.SPIN: b"",
            Kind.HALT: _HLT,
            Kind.PORTS: out,
            Kind.DEVICE: device,
            Kind.MIX: _CPUID + spin + device + out,
            Kind.REST: spin + out + _HLT,
            Kind.FLUSH: self._flush(),
        }[self.kind]
        body += _count(self._word(0))
        return body + b"\xe9" + struct.pack("<i", -len(body) - 5)

    def _flush(self) -> bytes:
        """The call's input value in RCX, its input's address in RDX (TLFS, "Hypercall Inputs"); its result in RAX."""
        call = b"\xb9" + HvCallCode.HvCallFlushVirtualAddressSpace.to_bytes(4, "little")
        call += b"\xba" + (self._base + _INPUT).to_bytes(4, "little") + b"\x45\x31\xc0"
        call += self.vcpu.engine.hypercall_instruction
        return call + b"\x48\x85\xc0\x74\x02" + _OUT + bytes((FAILED,))

    def _start(self) -> None:
        vcpu = self.vcpu
        sregs = vcpu.get_sregs()
        sregs.cs = Segment(_CODE_SELECTOR, 0, 0xFFFFFFFF, 0xA9B)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, Segment(_DATA_SELECTOR, 0, 0xFFFFFFFF, 0xC93))
        sregs.gdt = DescriptorTable(self._base, 8 * len(_DESCRIPTORS) - 1)
        sregs.idt = DescriptorTable(self._base + _IDT, 0xFFF)
        sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG
        sregs.cr3, sregs.cr4, sregs.efer = _PML4, CR4_PAE, EFER_LME | EFER_LMA
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=self._base + _CODE, rsp=self._base + _STACK, rflags=RFLAGS_FIXED | RFLAGS_IF))
        vcpu.apic.mmio_write(APIC_SPIV, 4, APIC_SPIV_APIC_ENABLED | 0xFF)
        vcpu.start_runnable()


def write_tables(ram: RamBlock) -> None:
    """The page tables of all guests."""
    words, pages = ram.words(8), PTE_P | PTE_W
    words[_PML4 // 8] = _PDPT | pages
    for gigabyte, directory in ((0, _LOW), (_APIC >> 30, _HIGH)):
        words[_PDPT // 8 + gigabyte] = directory | pages
        for number in range(512):
            words[directory // 8 + number] = gigabyte << 30 | number << 21 | PTE_PS | pages


def _count(address: int) -> bytes:
    """INC of a word of memory."""
    return b"\xff\x04\x25" + address.to_bytes(4, "little")


def _store(address: int) -> bytes:
    """0 to a word of memory, by RAX."""
    return b"\xb8" + address.to_bytes(4, "little") + b"\xc7\x00" + bytes(4)
