"""The payloads of intercept messages (TLFS, HV_MESSAGE_TYPE; layouts in `hvdef.messages`).

The state that they describe is that before the instruction; of traps, that behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import messages as layout
from vtlkit.hvdef.messages import HV_X64_INTERCEPT_MESSAGE_HEADER, HvInterceptAccessType, HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.kvm import uapi
from vtlkit.kvm.uapi import Vcpu
from vtlkit.x86.registers import CR0_AM, CR0_PE, EFER_LMA, FXSAVE_XMM0, Segment
from vtlkit.x86.segments import attributes_to_access_rights

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_ACCESS_TYPE: Final = {
    Access.READ: HvInterceptAccessType.HvInterceptAccessRead,
    Access.WRITE: HvInterceptAccessType.HvInterceptAccessWrite,
    Access.EXECUTE: HvInterceptAccessType.HvInterceptAccessExecute,
}
_GPRS: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
_REGISTERS: Final = {
    "cr0": Name.HvX64RegisterCr0,
    "cr4": Name.HvX64RegisterCr4,
    "xcr0": Name.HvX64RegisterXfem,
    "gdtr": Name.HvX64RegisterGdtr,
    "idtr": Name.HvX64RegisterIdtr,
    "ldtr": Name.HvX64RegisterLdtr,
    "tr": Name.HvX64RegisterTr,
}
_BREAKPOINTS_ENABLED: Final = 0xFF
"""DR7's L0 to G3."""
XMM0_TO_XMM5: Final = slice(FXSAVE_XMM0, FXSAVE_XMM0 + 6 * 16)
"""In the FXSAVE image (SDM volume 1, table 10-2)."""
_INSTRUCTION_BYTES: Final = 16


def segment(register: Segment) -> HV_X64_SEGMENT_REGISTER:
    """As the TLFS has it."""
    return HV_X64_SEGMENT_REGISTER(
        register.base, register.limit, register.selector, attributes_to_access_rights(register.attributes)
    )


def gprs(vcpu: Vcpu) -> tuple[int, ...]:
    """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15."""
    regs = vcpu.get_regs()
    return tuple(getattr(regs, name) for name in _GPRS)


def header(vp: Vp, level: int, vcpu: Vcpu, access: Access, length: int) -> HV_X64_INTERCEPT_MESSAGE_HEADER:
    """What an intercept message begins with: who, where, in which state."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    state = (
        layout.HV_EXECUTION_STATE_CPL.make(vcpu.cpl())
        | layout.HV_EXECUTION_STATE_CR0_PE.make(bool(sregs.cr0 & CR0_PE))
        | layout.HV_EXECUTION_STATE_CR0_AM.make(bool(sregs.cr0 & CR0_AM))
        | layout.HV_EXECUTION_STATE_EFER_LMA.make(bool(sregs.efer & EFER_LMA))
        | layout.HV_EXECUTION_STATE_DEBUG_ACTIVE.make(bool(vcpu.engine.get_debugregs()[5] & _BREAKPOINTS_ENABLED))
        | layout.HV_EXECUTION_STATE_VTL.make(level)
        | layout.HV_EXECUTION_STATE_INTERRUPT_SHADOW.make(vcpu.engine.interrupt_shadow)
        | layout.HV_EXECUTION_STATE_INTERRUPTION_PENDING.make(vcpu.events.interrupted is not None)
    )
    return HV_X64_INTERCEPT_MESSAGE_HEADER(
        VpIndex=vp.index,
        InstructionLengthCr8=layout.HV_INTERCEPT_INSTRUCTION_LENGTH.make(length)
        | layout.HV_INTERCEPT_CR8.make(sregs.cr8),
        InterceptAccessType=_ACCESS_TYPE[access],
        ExecutionState=state,
        Cs=segment(sregs.cs),
        Rip=regs.rip,
        Rflags=regs.rflags,
    )


def padded(instruction: bytes) -> bytes:
    """The field for the bytes at RIP."""
    return instruction.ljust(_INSTRUCTION_BYTES, b"\0")


def of_exit(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.Intercepted) -> tuple[HvMessageType, bytes]:
    """(type, payload) of what the hypervisor has intercepted."""
    return _BUILDERS[type(exit_)](vp, level, vcpu, exit_)


def startup(vp: Vp, level: int, vcpu: Vcpu, icr: int) -> bytes:
    """The payload of HvMessageTypeX64ApicInitSipiIntercept; ICR as in x2APIC mode."""
    return layout.HV_X64_APIC_INIT_SIPI_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, Access.WRITE, 0), ApicIcr=icr
    ).pack()


def _direction(write: bool) -> Access:
    return Access.WRITE if write else Access.READ


def _io(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedIo) -> tuple[HvMessageType, bytes]:
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    message = layout.HV_X64_IO_PORT_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, _direction(exit_.write), exit_.length),
        PortNumber=exit_.port,
        AccessInfo=layout.HV_IO_ACCESS_INFO_ACCESS_SIZE.make(exit_.size)
        | layout.HV_IO_ACCESS_INFO_STRING_OP.make(exit_.string)
        | layout.HV_IO_ACCESS_INFO_REP_PREFIX.make(exit_.rep),
        InstructionByteCount=len(exit_.instruction),
        Rax=regs.rax,
        InstructionBytes=padded(exit_.instruction),
        Ds=segment(sregs.ds),
        Es=segment(sregs.es),
        Rcx=regs.rcx,
        Rsi=regs.rsi,
        Rdi=regs.rdi,
    )
    return HvMessageType.HvMessageTypeX64IoPortIntercept, message.pack()


def _msr(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedMsr) -> tuple[HvMessageType, bytes]:
    regs = vcpu.get_regs()
    message = layout.HV_X64_MSR_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, _direction(exit_.write), exit_.length),
        MsrNumber=exit_.index,
        Rdx=regs.rdx,
        Rax=regs.rax,
    )
    return HvMessageType.HvMessageTypeMsrIntercept, message.pack()


def _cpuid(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedCpuid) -> tuple[HvMessageType, bytes]:
    regs = vcpu.get_regs()
    eax, ebx, ecx, edx = exit_.default
    message = layout.HV_X64_CPUID_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, Access.EXECUTE, exit_.length),
        Rax=regs.rax,
        Rcx=regs.rcx,
        Rdx=regs.rdx,
        Rbx=regs.rbx,
        DefaultResultRax=eax,
        DefaultResultRcx=ecx,
        DefaultResultRdx=edx,
        DefaultResultRbx=ebx,
    )
    return HvMessageType.HvMessageTypeX64CpuidIntercept, message.pack()


def _exception(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedException) -> tuple[HvMessageType, bytes]:
    sregs = vcpu.get_sregs()
    info = 0
    if exit_.error_code is not None:
        info |= layout.HV_EXCEPTION_INFO_ERROR_CODE_VALID
    if exit_.software:
        info |= layout.HV_EXCEPTION_INFO_SOFTWARE_EXCEPTION
    message = layout.HV_X64_EXCEPTION_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, Access.EXECUTE, exit_.length),
        ExceptionVector=exit_.vector,
        ExceptionInfo=info,
        InstructionByteCount=len(exit_.instruction),
        ErrorCode=exit_.error_code or 0,
        ExceptionParameter=exit_.parameter,
        InstructionBytes=padded(exit_.instruction),
        Ds=segment(sregs.ds),
        Ss=segment(sregs.ss),
        Gprs=gprs(vcpu),
    )
    return HvMessageType.HvMessageTypeExceptionIntercept, message.pack()


def _register(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedRegister) -> tuple[HvMessageType, bytes]:
    memory = exit_.address is not None
    info = exit_.value if exit_.address is None else exit_.address
    message = layout.HV_X64_REGISTER_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, Access.WRITE, exit_.length),
        Flags=layout.HV_REGISTER_INTERCEPT_IS_MEMORY_OP if memory else 0,
        RegisterName=_REGISTERS[exit_.register],
        AccessInfo=info.to_bytes(16, "little"),
    )
    return HvMessageType.HvMessageTypeRegisterIntercept, message.pack()


def _hypercall(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedHypercall) -> tuple[HvMessageType, bytes]:
    regs = vcpu.get_regs()
    message = layout.HV_X64_HYPERCALL_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, Access.EXECUTE, exit_.length),
        Rax=regs.rax,
        Rbx=regs.rbx,
        Rcx=regs.rcx,
        Rdx=regs.rdx,
        R8=regs.r8,
        Rsi=regs.rsi,
        Rdi=regs.rdi,
        XmmRegisters=vcpu.engine.get_fpu()[XMM0_TO_XMM5],
    )
    return HvMessageType.HvMessageTypeHypercallIntercept, message.pack()


def _eoi(vp: Vp, _level: int, _vcpu: Vcpu, exit_: uapi.InterceptedEoi) -> tuple[HvMessageType, bytes]:
    message = layout.HV_X64_APIC_EOI_MESSAGE(VpIndex=vp.index, InterruptVector=exit_.vector)
    return HvMessageType.HvMessageTypeX64ApicEoi, message.pack()


def _apic_write(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedApicWrite) -> tuple[HvMessageType, bytes]:
    message = layout.HV_X64_APIC_WRITE_INTERCEPT_MESSAGE(
        Header=header(vp, level, vcpu, Access.WRITE, 0), ApicRegister=exit_.offset, WriteValue=exit_.value
    )
    return HvMessageType.HvMessageTypeX64ApicWriteIntercept, message.pack()


def _startup(vp: Vp, level: int, vcpu: Vcpu, exit_: uapi.InterceptedStartup) -> tuple[HvMessageType, bytes]:
    return HvMessageType.HvMessageTypeX64ApicInitSipiIntercept, startup(vp, level, vcpu, exit_.icr)


_BUILDERS: Final[dict[type[uapi.Intercepted], Callable[[Vp, int, Vcpu, Any], tuple[HvMessageType, bytes]]]] = {
    uapi.InterceptedIo: _io,
    uapi.InterceptedMsr: _msr,
    uapi.InterceptedCpuid: _cpuid,
    uapi.InterceptedException: _exception,
    uapi.InterceptedRegister: _register,
    uapi.InterceptedHypercall: _hypercall,
    uapi.InterceptedEoi: _eoi,
    uapi.InterceptedApicWrite: _apic_write,
    uapi.InterceptedStartup: _startup,
}
