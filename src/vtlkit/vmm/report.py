"""A processor's state in words, for the report of a crash."""

from __future__ import annotations

from vtlkit.kvm.uapi import MANY_KICKED_ENTRIES, Vcpu

_PER_LINE = 4


def describe_vcpu(index: int, vcpu: Vcpu) -> str:
    """Registers, segments and control registers of one vCPU, and the bytes at RIP; several lines."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    lines = [f"VP {index} ({vcpu.name}), CPL {vcpu.cpl()}, {vcpu.get_mp_state().name.lower()}"]
    lines.append(f"  RIP {regs.rip:016x}  RFLAGS {regs.rflags:08x}")
    for at in range(0, len(names), _PER_LINE):
        row = names[at : at + _PER_LINE]
        lines.append("  " + "  ".join(f"{name.upper():<3} {getattr(regs, name):016x}" for name in row))
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        segment = getattr(sregs, name)
        lines.append(
            f"  {name.upper():<3} {segment.selector:04x}  base {segment.base:016x}  limit {segment.limit:08x}"
            f"  attributes {segment.attributes:03x}"
        )
    lines.append(f"  GDT base {sregs.gdt.base:016x} limit {sregs.gdt.limit:04x}")
    lines.append(f"  IDT base {sregs.idt.base:016x} limit {sregs.idt.limit:04x}")
    lines.append(
        f"  CR0 {sregs.cr0:08x}  CR2 {sregs.cr2:016x}  CR3 {sregs.cr3:016x}  CR4 {sregs.cr4:08x}  EFER {sregs.efer:04x}"
    )
    code = vcpu.engine.instruction_bytes(16)
    lines.append(f"  code at RIP: {code.hex(' ') if code else '(cannot be fetched)'}")
    if vcpu.statistics.kicked_entries >= MANY_KICKED_ENTRIES:
        lines.append(f"  {vcpu.statistics.kicked_entries:,} calls of run() while it was kicked: a busy loop")
    return "\n".join(lines)
