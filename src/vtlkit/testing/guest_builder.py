"""A guest machine in one RAM block, for tests: descriptor tables, task state, page tables, handlers, code.

Every vector's gate leads to a HLT of its own (`handler(vector)`), so that a delivered event shows as a `Hlt` exit
whose RIP names the vector and whose frame lies on the stack, to be read from RAM. Memory is mapped identically and may
be used from every privilege level; what a test wants otherwise it changes in the tables.
"""

from __future__ import annotations

import struct
from typing import Final

from vtlkit.engine.api import Access, Engine, RamBlock
from vtlkit.testing.assembler import Assembler
from vtlkit.x86.paging import PTE_P, PTE_U, PTE_W
from vtlkit.x86.registers import (
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    RFLAGS_FIXED,
    RFLAGS_VM,
    DescriptorTable,
    Segment,
    Sregs,
)

RAM_SIZE: Final = 0x100000
REAL_IVT: Final = 0x0
GDT: Final = 0x1000
IDT: Final = 0x2000
TSS: Final = 0x3000
TSS_LIMIT: Final = 0x1FFF
IO_BITMAP: Final = 0x68
"""Offset in the TSS; the last byte of 0xFF lies within the limit."""
HANDLERS: Final = 0x6000
PML4: Final = 0x8000
PDPT: Final = 0x9000
PD: Final = 0xA000
PT: Final = 0xB000
CODE: Final = 0x10000
DATA: Final = 0x20000
STACK: Final = 0x30000
"""Top of the stack that code starts on."""
RING0_STACK: Final = 0x38000
"""Top of the stack that the TSS gives to CPL 0."""
IST_STACK: Final = 0x3C000
"""Top of the stack of IST 1."""
FREE: Final = 0x40000
"""From here on RAM is the test's."""

KERNEL_CODE64: Final = 0x08
KERNEL_DATA: Final = 0x10
KERNEL_CODE32: Final = 0x18
USER_DATA: Final = 0x23
USER_CODE64: Final = 0x2B
USER_CODE32: Final = 0x33
KERNEL_CODE16: Final = 0x38
KERNEL_DATA16: Final = 0x40
CONFORMING: Final = 0x48
TSS_SELECTOR: Final = 0x50

_CODE: Final = 0x9B
_DATA: Final = 0x93
_DPL3: Final = 0x60
_L: Final = 0x200
_DB: Final = 0x400
_G: Final = 0x800
_CONFORMING_CODE: Final = 0x9F

_SEGMENTS: Final = {
    KERNEL_CODE64: _CODE | _L | _G,
    KERNEL_DATA: _DATA | _DB | _G,
    KERNEL_CODE32: _CODE | _DB | _G,
    USER_DATA: _DATA | _DPL3 | _DB | _G,
    USER_CODE64: _CODE | _DPL3 | _L | _G,
    USER_CODE32: _CODE | _DPL3 | _DB | _G,
    KERNEL_CODE16: _CODE,
    KERNEL_DATA16: _DATA,
    CONFORMING: _CONFORMING_CODE | _L | _G,
}

INTERRUPT_GATE: Final = 14
TRAP_GATE: Final = 15
INTERRUPT_GATE_16: Final = 6

_HLT: Final = 0xF4


def segment(selector: int) -> Segment:
    """The register as loading `selector` from the builder's GDT leaves it."""
    attributes = _SEGMENTS[selector]
    return Segment(selector, 0, 0xFFFFFFFF if attributes & _G else 0xFFFF, attributes)


def descriptor(base: int, limit: int, attributes: int) -> int:
    """A GDT entry; `limit` in bytes, `attributes` as in `Segment`."""
    if attributes & _G:
        limit >>= 12
    return (
        (limit & 0xFFFF)
        | (base & 0xFFFFFF) << 16
        | (attributes & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (attributes >> 8 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


class GuestAssembler(Assembler):
    """CPUID and VMMCALL are the instructions by which this engine's guest is left on purpose; where the processor
    answers CPUID by itself, both are the hypercall's."""

    def __init__(self, bits: int, base: int, engine: Engine) -> None:
        super().__init__(bits, base)
        self._engine = engine

    def vmmcall(self) -> None:
        self.raw(self._engine.hypercall_instruction)

    def cpuid(self) -> None:
        if self._engine.cpuid_exits:
            self.raw(b"\x0f\xa2")
        else:
            self.vmmcall()


class Guest:
    """RAM at guest-physical 0 of one engine, and the modes it can be put in."""

    def __init__(self, engine: Engine, ram: RamBlock | None = None, *, map_ram: bool = True) -> None:
        self.engine = engine
        self.ram = ram if ram is not None else RamBlock(RAM_SIZE)
        if map_ram:
            engine.map_ram(0, RAM_SIZE, self.ram, 0, Access.ALL)
        self.long = False
        if ram is None:
            self._tables()

    # --- memory ---------------------------------------------------------------------------------------------------

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into RAM; the engine is told if it may have translated them."""
        self.ram.view[address : address + len(data)] = data
        self.engine.memory_written(address, len(data))

    def read(self, address: int, size: int) -> int:
        """A little-endian number from RAM."""
        return int.from_bytes(self.ram.view[address : address + size], "little")

    def put(self, address: int, size: int, value: int) -> None:
        """A little-endian number into RAM."""
        self.write(address, value.to_bytes(size, "little"))

    def frame(self, count: int, size: int = 8) -> tuple[int, ...]:
        """The `count` words at the top of the stack, lowest address first."""
        address = self.engine.regs.rsp + self.engine.get_sregs().ss.base
        return tuple(self.read(address + size * number, size) for number in range(count))

    # --- tables ---------------------------------------------------------------------------------------------------

    def _tables(self) -> None:
        for selector, attributes in _SEGMENTS.items():
            limit = 0xFFFFFFFF if attributes & _G else 0xFFFF
            self.put(GDT + (selector & ~7), 8, descriptor(0, limit, attributes))
        for vector in range(256):
            self.ram.view[self.handler(vector)] = _HLT
            self.put(REAL_IVT + vector * 4, 4, self.handler(vector))
        self.write(TSS + IO_BITMAP, b"\xff" * (TSS_LIMIT - IO_BITMAP + 1))
        self.put(PML4, 8, PDPT | PTE_P | PTE_W | PTE_U)
        self.put(PDPT, 8, PD | PTE_P | PTE_W | PTE_U)
        self.put(PD, 8, PT | PTE_P | PTE_W | PTE_U)
        for page in range(512):
            self.put(PT + page * 8, 8, page << 12 | PTE_P | PTE_W | PTE_U)

    @staticmethod
    def handler(vector: int) -> int:
        """Where the vector's gate leads: a HLT."""
        return HANDLERS + vector * 16

    def gate(
        self,
        vector: int,
        target: int | None = None,
        *,
        selector: int | None = None,
        kind: int = INTERRUPT_GATE,
        dpl: int = 0,
        ist: int = 0,
        present: bool = True,
    ) -> None:
        """Set one IDT gate of the present mode."""
        target = self.handler(vector) if target is None else target
        if selector is None:
            selector = KERNEL_CODE64 if self.long else KERNEL_CODE32
        attributes = (0x80 if present else 0) | dpl << 5 | kind
        low = struct.pack("<HHBBH", target & 0xFFFF, selector, ist, attributes, target >> 16 & 0xFFFF)
        if self.long:
            self.write(IDT + vector * 16, low + struct.pack("<Q", target >> 32))
        else:
            self.write(IDT + vector * 8, low)

    def map_page(self, gva: int, entry: int) -> None:
        """Set the page-table entry of a page below 2 MiB (long mode's tables)."""
        self.put(PT + (gva >> 12) * 8, 8, entry)

    # --- modes ----------------------------------------------------------------------------------------------------

    def _enter(self, sregs: Sregs, rip: int, rsp: int, rflags: int) -> None:
        self.engine.set_sregs(sregs)
        self.engine.rflags = rflags
        # The privilege level that the segments imply, and virtual-8086 mode, are taken over with them.
        self.engine.set_sregs(sregs)
        self.engine.regs.rip = rip
        self.engine.regs.rsp = rsp

    def _base(self, code: int, data: int, cr0: int) -> Sregs:
        sregs = self.engine.get_sregs()
        sregs.cs = segment(code)
        stack = segment(data)
        sregs.ss, sregs.ds, sregs.es = stack, stack.copy(), stack.copy()
        sregs.fs, sregs.gs = stack.copy(), stack.copy()
        sregs.gdt = DescriptorTable(GDT, TSS_SELECTOR + 15)
        sregs.idt = DescriptorTable(IDT, 0xFFF)
        sregs.cr0 = cr0
        return sregs

    def real_mode(self, rflags: int = RFLAGS_FIXED) -> None:
        """16-bit real mode, all segments at 0 but CS, which has CODE's low bits as its offset."""
        self.long = False
        sregs = Sregs.reset()
        sregs.cs = Segment(CODE >> 4, CODE, 0xFFFF, 0x9B)
        sregs.ss = Segment(DATA >> 4, DATA, 0xFFFF, 0x93)
        sregs.idt = DescriptorTable(REAL_IVT, 0x3FF)
        sregs.cr0 = CR0_ET | CR0_NE
        self._enter(sregs, 0, 0x8000, rflags)

    def protected_mode(
        self, cpl: int = 0, rflags: int = RFLAGS_FIXED, *, bits: int = 32, code: int | None = None
    ) -> None:
        """32- or 16-bit protected mode without paging, a 32-bit TSS."""
        self.long = False
        for vector in range(256):
            self.gate(vector)
        wide = bits == 32
        selector = code if code is not None else (USER_CODE32 if cpl else KERNEL_CODE32 if wide else KERNEL_CODE16)
        data = USER_DATA if cpl else KERNEL_DATA if wide else KERNEL_DATA16
        sregs = self._base(selector, data, CR0_PE | CR0_ET | CR0_NE)
        if not wide:
            sregs.cs.base = CODE
            sregs.ss.base = DATA
        sregs.tr = Segment(TSS_SELECTOR, TSS, TSS_LIMIT, 0x8B)
        self.put(GDT + TSS_SELECTOR, 8, descriptor(TSS, TSS_LIMIT, 0x8B))
        self.put(TSS + 4, 4, RING0_STACK)
        self.put(TSS + 8, 4, KERNEL_DATA)
        self.put(TSS + 0x66, 2, IO_BITMAP)
        self._enter(sregs, CODE if wide else 0, STACK if wide else 0x8000, rflags)

    def virtual_8086(self, rflags: int = RFLAGS_FIXED) -> None:
        """Virtual-8086 mode inside 32-bit protected mode."""
        self.protected_mode()
        sregs = self.engine.get_sregs()

        def real(selector: int, attributes: int = 0xF3) -> Segment:
            return Segment(selector, selector << 4, 0xFFFF, attributes)

        sregs.cs = real(CODE >> 4, 0xFB)
        sregs.ss = real(DATA >> 4)
        sregs.ds, sregs.es, sregs.fs, sregs.gs = (real(0x2000 + number) for number in range(4))
        self._enter(sregs, 0, 0x8000, rflags | RFLAGS_VM)

    def long_mode(self, cpl: int = 0, rflags: int = RFLAGS_FIXED) -> None:
        """64-bit mode with 4-level paging; a TSS with RSP0 and IST 1."""
        self.long = True
        for vector in range(256):
            self.gate(vector)
        cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_ET | CR0_NE | CR0_MP
        sregs = self._base(USER_CODE64 if cpl else KERNEL_CODE64, USER_DATA if cpl else KERNEL_DATA, cr0)
        sregs.cr3 = PML4
        sregs.cr4 = CR4_PAE | CR4_OSFXSR
        sregs.efer = EFER_LME | EFER_LMA | EFER_NX | EFER_SCE
        sregs.tr = Segment(TSS_SELECTOR, TSS, TSS_LIMIT, 0x8B)
        self.put(GDT + TSS_SELECTOR, 16, descriptor(TSS, TSS_LIMIT, 0x8B))
        self.put(TSS + 4, 8, RING0_STACK)
        self.put(TSS + 0x24, 8, IST_STACK)
        self.put(TSS + 0x66, 2, IO_BITMAP)
        self._enter(sregs, CODE, STACK, rflags)

    # --- code -----------------------------------------------------------------------------------------------------

    def assembler(self, bits: int = 64, base: int | None = None) -> GuestAssembler:
        """For code that starts where the mode setters let RIP point: CODE, or offset 0 in 16-bit modes."""
        return GuestAssembler(bits, base if base is not None else (0 if bits == 16 else CODE), self.engine)

    def load(self, assembler: Assembler, at: int | None = None) -> None:
        """Put code where it was assembled for (`at`: its linear address; 16-bit code goes to CODE)."""
        address = at if at is not None else (CODE if assembler.bits == 16 else assembler.base)
        self.write(address, assembler.code())
