"""MOV to and from control registers and the rarer intercepted instructions. Mirrors `kvm_set_cr0` and friends of x86.c.

The engine keeps the registers; what may be written to them is decided here, so that reserved bits and forbidden changes
fault as the processor's do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from vtlkit.engine import api
from vtlkit.hvdef.msrs import (
    HV_NPIEP_PREVENT_SGDT,
    HV_NPIEP_PREVENT_SIDT,
    HV_NPIEP_PREVENT_SLDT,
    HV_NPIEP_PREVENT_STR,
)
from vtlkit.kvm import kvm_run
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.memory_faults import memory_fault
from vtlkit.kvm.nested.instructions import INSTRUCTIONS, execute
from vtlkit.x86 import cpuid as bits
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.registers import (
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR3_PCID_MASK,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_LA57,
    CR4_MCE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    EFER_LMA,
    EFER_LME,
    GENERAL_REGISTERS,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
)

if TYPE_CHECKING:
    from vtlkit.kvm.cpuid import CpuidTable
    from vtlkit.kvm.vcpu import Vcpu

_U32: Final = 0xFFFFFFFF
_XSAVE_LEAF: Final = 0xD
_CR0_KNOWN: Final = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
_CR4_ALWAYS: Final = CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT
_CR4_BY_FEATURE: Final = (
    (CR4_OSXSAVE, 1, "ecx", bits.CPUID_1_ECX_XSAVE),
    (CR4_PCIDE, 1, "ecx", bits.CPUID_1_ECX_PCID),
    (CR4_FSGSBASE, 7, "ebx", bits.CPUID_7_0_EBX_FSGSBASE),
    (CR4_SMEP, 7, "ebx", bits.CPUID_7_0_EBX_SMEP),
    (CR4_SMAP, 7, "ebx", bits.CPUID_7_0_EBX_SMAP),
    (CR4_UMIP, 7, "ecx", bits.CPUID_7_0_ECX_UMIP),
    (CR4_PKE, 7, "ecx", bits.CPUID_7_0_ECX_PKU),
    (CR4_LA57, 7, "ecx", bits.CPUID_7_0_ECX_LA57),
)
_NPIEP: Final = {
    "sgdt": HV_NPIEP_PREVENT_SGDT,
    "sidt": HV_NPIEP_PREVENT_SIDT,
    "sldt": HV_NPIEP_PREVENT_SLDT,
    "str": HV_NPIEP_PREVENT_STR,
}


def set_cr0(vcpu: Vcpu, value: int) -> bool:
    """MOV to CR0; False is #GP(0)."""
    engine = vcpu.engine
    if value >> 32:
        return False
    value = (value & _CR0_KNOWN) | CR0_ET
    if value & CR0_NW and not value & CR0_CD:
        return False
    if not value & CR0_PE and (value & CR0_PG or vcpu.vm.protected_mode_only):
        return False
    cr4, before = engine.cr4, engine.get_msr(MSR_EFER)
    efer = before
    if (value ^ engine.cr0) & CR0_PG:
        long_code = engine.get_sregs().cs.long
        if not value & CR0_PG:
            if cr4 & CR4_PCIDE or (efer & EFER_LMA and long_code):
                return False
            efer &= ~EFER_LMA
        elif efer & EFER_LME:
            # Long mode is entered with PAE on, and not from a 64-bit code segment.
            if not cr4 & CR4_PAE or long_code:
                return False
            efer |= EFER_LMA
    engine.set_control_registers(value, cr4, efer)
    if efer != before:
        vcpu.update_intercepts()
    return True


def cr4_allowed(vcpu: Vcpu) -> int:
    """CR4 bits that this vCPU's CPUID offers."""
    return _cr4_offered(vcpu.cpuid)


@lru_cache(maxsize=16)
def _cr4_offered(cpuid: CpuidTable) -> int:
    """Remembered by table, as those never change."""
    offered = _CR4_ALWAYS
    for bit, function, register, feature in _CR4_BY_FEATURE:
        if cpuid.has(function, register, feature):
            offered |= bit
    return offered


def set_cr4(vcpu: Vcpu, value: int) -> bool:
    """MOV to CR4; False is #GP(0)."""
    engine = vcpu.engine
    if value & ~cr4_allowed(vcpu):
        return False
    changed = value ^ engine.cr4
    efer = engine.get_msr(MSR_EFER)
    if efer & EFER_LMA and (not value & CR4_PAE or changed & CR4_LA57):
        return False
    if value & changed & CR4_PCIDE and (engine.get_sregs().cr3 & CR3_PCID_MASK or not efer & EFER_LMA):
        return False
    engine.set_control_registers(engine.cr0, value, efer)
    if changed & CR4_UMIP:
        vcpu.update_intercepts()
    return True


def set_cr3(vcpu: Vcpu, value: int) -> bool:
    """MOV to CR3, without the bit that keeps translations; False is #GP(0)."""
    if value >> vcpu.cpuid.maxphyaddr():
        return False
    sregs = vcpu.engine.get_sregs()
    sregs.cr3 = value
    vcpu.engine.set_sregs(sregs)
    return True


def xcr0_allowed(vcpu: Vcpu) -> int:
    """XCR0 bits that this vCPU's CPUID offers; 0 without XSAVE."""
    components = vcpu.cpuid.find(_XSAVE_LEAF)
    if components is None or not vcpu.cpuid.has(1, "ecx", bits.CPUID_1_ECX_XSAVE):
        return 0
    return components.eax | components.edx << 32


def set_xcr0(vcpu: Vcpu, value: int) -> bool:
    """XSETBV of XCR0 (`__kvm_set_xcr`); False is #GP(0)."""
    if value & ~xcr0_allowed(vcpu) or not value & XCR0_X87 or (value & XCR0_AVX and not value & XCR0_SSE):
        return False
    vcpu.engine.xcr0 = value
    return True


def written_value(vcpu: Vcpu, exit_: api.ControlRegister) -> int:
    """What MOV to a control register writes."""
    value: int = getattr(vcpu.engine.regs, GENERAL_REGISTERS[exit_.gpr])
    return value if vcpu.is_64bit() else value & _U32


def machine_status_word(cr0: int, source: int) -> int:
    """CR0 as LMSW makes it: MP, EM and TS as in `source`; PE can be set but not cleared."""
    return (cr0 & ~0xE) | (source & 0xF)


def access(vcpu: Vcpu, exit_: api.ControlRegister) -> KvmRun | None:
    """MOV to or from CR0, CR4, CR8."""
    engine = vcpu.engine
    if not exit_.write:
        if exit_.register == 8:
            value = vcpu.apic.get_tpr()
        else:
            value = engine.cr0 if exit_.register == 0 else engine.cr4
        setattr(engine.regs, GENERAL_REGISTERS[exit_.gpr], value)
        engine.skip(exit_.length)
        return None
    value = written_value(vcpu, exit_)
    if exit_.register == 0:
        accepted = set_cr0(vcpu, value)
    elif exit_.register == 4:
        accepted = set_cr4(vcpu, value)
    else:
        accepted = not value >> 4
        if accepted:
            vcpu.apic.set_tpr(value)
    if accepted:
        engine.skip(exit_.length)
    else:
        vcpu.queue_exception(Vector.GP, 0)
    return None


def other(vcpu: Vcpu, exit_: api.Other) -> KvmRun | None:
    """Intercepted instructions without an exit class of their own."""
    name = exit_.mnemonic
    engine = vcpu.engine
    if name == "clts":
        sregs = engine.get_sregs()
        sregs.cr0 &= ~CR0_TS
        engine.set_sregs(sregs)
        engine.skip(exit_.length)
        return None
    if name == "xsetbv":
        _xsetbv(vcpu, exit_)
        return None
    if name in ("lmsw", "smsw"):
        return _machine_status_word(vcpu, exit_)
    if name in ("sgdt", "sidt", "sldt", "str"):
        # Intercepted only while CR4.UMIP or NPIEP is on, and the engine exits here at any CPL.
        return _store_table(vcpu, exit_)
    if name in ("monitor", "mwait"):
        # Not offered in CPUID.
        vcpu.queue_exception(Vector.UD)
        return None
    if name == "rdpmc":
        vcpu.queue_exception(Vector.GP, 0)
        return None
    if name in INSTRUCTIONS:
        execute(vcpu, name, exit_.length)
        return None
    if name in ("invd", "wbinvd"):
        # Intercepted as one; there are no caches.
        engine.skip(exit_.length)
        return None
    if name == "rsm":
        vcpu.queue_exception(Vector.UD)
        return None
    return kvm_run.InternalErrorExit(f"no emulation of {name} at RIP {engine.regs.rip:#x}")


def _xsetbv(vcpu: Vcpu, exit_: api.Other) -> None:
    """`kvm_emulate_xsetbv`."""
    engine = vcpu.engine
    if not engine.cr4 & CR4_OSXSAVE:
        vcpu.queue_exception(Vector.UD)
        return
    regs = engine.regs
    value = (regs.rax & _U32) | (regs.rdx & _U32) << 32
    if vcpu.cpl() or regs.rcx & _U32 or not set_xcr0(vcpu, value):
        vcpu.queue_exception(Vector.GP, 0)
        return
    engine.skip(exit_.length)


def _machine_status_word(vcpu: Vcpu, exit_: api.Other) -> KvmRun | None:
    engine = vcpu.engine
    cr0 = engine.get_sregs().cr0
    if exit_.mnemonic == "smsw":
        return _store(vcpu, exit_, cr0, 2)
    if vcpu.cpl():
        vcpu.queue_exception(Vector.GP, 0)
        return None
    source = engine.load_operand16()
    if isinstance(source, api.Event | api.MemoryFault):
        return _operand_fault(vcpu, exit_, source)
    if set_cr0(vcpu, machine_status_word(cr0, source)):
        engine.skip(exit_.length)
    else:
        vcpu.queue_exception(Vector.GP, 0)
    return None


def _store_table(vcpu: Vcpu, exit_: api.Other) -> KvmRun | None:
    sregs = vcpu.engine.get_sregs()
    if exit_.mnemonic in ("sldt", "str"):
        segment = sregs.ldt if exit_.mnemonic == "sldt" else sregs.tr
        return _store(vcpu, exit_, segment.selector, 2)
    table = sregs.gdt if exit_.mnemonic == "sgdt" else sregs.idt
    size = 10 if vcpu.is_64bit() else 6
    return _store(vcpu, exit_, (table.limit & 0xFFFF) | (table.base & ((1 << 8 * (size - 2)) - 1)) << 16, size)


def _store(vcpu: Vcpu, exit_: api.Other, value: int, size: int) -> KvmRun | None:
    """An instruction that UMIP or NPIEP may keep from user mode stores `value`."""
    if vcpu.cpl() and (vcpu.engine.cr4 & CR4_UMIP or vcpu.hv.npiep & _NPIEP.get(exit_.mnemonic, 0)):
        vcpu.queue_exception(Vector.GP, 0)
        return None
    fault = vcpu.engine.store_operand(value, size)
    if fault is not None:
        return _operand_fault(vcpu, exit_, fault)
    vcpu.engine.skip(exit_.length)
    return None


def _operand_fault(vcpu: Vcpu, exit_: api.Other, fault: api.Event | api.MemoryFault) -> KvmRun | None:
    """The operand of the instruction at RIP cannot be read or written."""
    if isinstance(fault, api.Event):
        vcpu.queue_exception(fault.vector, fault.error_code)
        return None
    if not fault.mapped and not vcpu.map.behind():
        return kvm_run.InternalErrorExit(
            f"no emulation of {exit_.mnemonic} with an operand that is not in memory, at GPA {fault.gpa:#x}"
        )
    return memory_fault(vcpu, fault)
