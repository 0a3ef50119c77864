"""Which exits of the engine user space wants to see before anything is done about them (`UserIntercepts`).

Belongs to the vCPU's task, and is asked only where user space has intercepts at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vtlkit.engine import api
from vtlkit.engine.api import EventType, Intercept, touches_port
from vtlkit.kvm import kvm_run
from vtlkit.kvm.control_registers import machine_status_word, written_value
from vtlkit.kvm.cpuid import for_guest
from vtlkit.kvm.kvm_run import InterceptedRegister, KvmRun
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR0_TS, DR6_BD, DR6_BS, DR6_BT, DR6_TRAP_BITS

if TYPE_CHECKING:
    from vtlkit.kvm.user_intercepts import UserIntercepts
    from vtlkit.kvm.vcpu import Vcpu

_U32: Final = 0xFFFFFFFF
_DR6_CAUSES: Final = DR6_TRAP_BITS | DR6_BD | DR6_BS | DR6_BT
_SOFTWARE: Final = (Vector.BP, Vector.OF)
_TABLES: Final = {
    "lgdt": (Intercept.GDTR_WRITE, "gdtr"),
    "lidt": (Intercept.IDTR_WRITE, "idtr"),
    "lldt": (Intercept.LDTR_WRITE, "ldtr"),
    "ltr": (Intercept.TR_WRITE, "tr"),
}


def before(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.Exit) -> KvmRun | None:
    """The exit to user space if it has intercepted what the engine exited for; nothing has been executed."""
    check = _CHECKS.get(type(reason))
    return None if check is None else check(vcpu, intercepts, reason)


def after(vcpu: Vcpu, intercepts: UserIntercepts, exit_: KvmRun | None) -> KvmRun | None:
    """What `exit_` is when an exit has been handled: an exception or a trap that came of it may be the exit instead."""
    if exit_ is None:
        exit_ = _raised(vcpu, intercepts)
    traps = vcpu.user.traps
    if traps and exit_ is None and vcpu.engine.at_boundary:
        exit_ = traps.popleft()
    return exit_


def _raised(vcpu: Vcpu, intercepts: UserIntercepts) -> KvmRun | None:
    """An exception that the hypervisor raises for an instruction that it has emulated, or has refused to."""
    if not intercepts.exceptions or not vcpu.engine.at_boundary:
        return None
    event = vcpu.events.exception
    if event is not None and intercepts.exceptions >> event.vector & 1:
        vcpu.events.exception = None
        parameter = vcpu.engine.get_sregs().cr2 if event.vector == Vector.PF else 0
        return _exception(vcpu, event.vector, event.error_code, parameter)
    event = vcpu.engine.injected()
    if (
        event is not None
        and event.type is EventType.EXCEPTION
        and event.vector == Vector.DB
        and intercepts.exceptions >> Vector.DB & 1
    ):
        # The single step that skipping an instruction made.
        vcpu.engine.cancel_injection()
        return _exception(vcpu, Vector.DB, None, DR6_BS)
    return None


def _exception(vcpu: Vcpu, vector: int, error_code: int | None, parameter: int) -> kvm_run.InterceptedException:
    code = vcpu.engine.instruction_bytes()
    return kvm_run.InterceptedException(
        vcpu.engine.instruction_length(code) if code else 0, vector, error_code, parameter, vector in _SOFTWARE, code
    )


def _exception_exit(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.ExceptionExit) -> KvmRun | None:
    if not intercepts.exceptions >> reason.vector & 1:
        return None
    if reason.vectoring is not None:
        vcpu.events.interrupted = reason.vectoring
    parameter = reason.address if reason.vector == Vector.PF else 0
    if reason.vector == Vector.DB:
        parameter = vcpu.engine.get_debugregs()[4] & _DR6_CAUSES
    return _exception(vcpu, reason.vector, reason.error_code, parameter)


def _port(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.PortIntercept) -> KvmRun | None:
    ports = intercepts.port_writes if reason.write else intercepts.port_reads
    if not touches_port(ports, reason.port, reason.size):
        return None
    return kvm_run.InterceptedIo(
        reason.length,
        reason.port,
        reason.size,
        reason.write,
        reason.string,
        reason.rep,
        vcpu.engine.instruction_bytes(),
    )


def _cpuid(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.Cpuid) -> KvmRun | None:
    regs = vcpu.engine.regs
    function, index = regs.rax & _U32, regs.rcx & _U32
    if not intercepts.cpuid_all and function not in intercepts.cpuid:
        return None
    return kvm_run.InterceptedCpuid(reason.length, function, index, for_guest(vcpu, function, index))


def _rdmsr(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.Rdmsr) -> KvmRun | None:
    index = vcpu.engine.regs.rcx & _U32
    if index not in intercepts.msr_reads:
        return None
    return kvm_run.InterceptedMsr(reason.length, index, False)


def _wrmsr(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.Wrmsr) -> KvmRun | None:
    regs = vcpu.engine.regs
    index = regs.rcx & _U32
    if index not in intercepts.msr_writes:
        return None
    value = (regs.rax & _U32) | (regs.rdx & _U32) << 32
    mask = intercepts.msr_writes[index]
    if mask is not None and not ((vcpu.msrs.get(index) or 0) ^ value) & mask:
        return None
    return kvm_run.InterceptedMsr(reason.length, index, True, value)


def _hypercall(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.Hypercall) -> KvmRun | None:
    if not intercepts.hypercalls or not vcpu.hv.hypercall_enabled or not vcpu.hv.is_plain_hypercall():
        return None
    return kvm_run.InterceptedHypercall(reason.length)


def _control_register(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.ControlRegister) -> KvmRun | None:
    if not reason.write or reason.register not in (0, 4):
        return None
    return _control(vcpu, intercepts, reason.length, reason.register, written_value(vcpu, reason))


def _control(vcpu: Vcpu, intercepts: UserIntercepts, length: int, register: int, value: int) -> KvmRun | None:
    if register == 0:
        changed = (vcpu.engine.cr0 ^ value) & intercepts.cr0
    else:
        changed = (vcpu.engine.cr4 ^ value) & intercepts.cr4
    return InterceptedRegister(length, f"cr{register}", value) if changed else None


def _other(vcpu: Vcpu, intercepts: UserIntercepts, reason: api.Other) -> KvmRun | None:
    name, engine = reason.mnemonic, vcpu.engine
    if name in _TABLES:
        flag, register = _TABLES[name]
        if not intercepts.tables & flag:
            return None
        address = engine.operand_address()
        source = 0 if address is not None else engine.load_operand16()
        assert isinstance(source, int), "a register can be read"
        return InterceptedRegister(reason.length, register, source, address)
    if name == "clts":
        return _control(vcpu, intercepts, reason.length, 0, engine.cr0 & ~CR0_TS)
    if name == "lmsw" and not vcpu.cpl():
        value = engine.load_operand16()
        if isinstance(value, int):
            return _control(vcpu, intercepts, reason.length, 0, machine_status_word(engine.cr0, value))
    if name == "xsetbv" and intercepts.xcr0 and not vcpu.cpl() and not engine.regs.rcx & _U32:
        return InterceptedRegister(reason.length, "xcr0", (engine.regs.rax & _U32) | (engine.regs.rdx & _U32) << 32)
    return None


_CHECKS: Final[dict[type[api.Exit], Callable[[Vcpu, UserIntercepts, Any], KvmRun | None]]] = {
    api.Cpuid: _cpuid,
    api.Rdmsr: _rdmsr,
    api.Wrmsr: _wrmsr,
    api.Hypercall: _hypercall,
    api.PortIntercept: _port,
    api.ControlRegister: _control_register,
    api.Other: _other,
    api.ExceptionExit: _exception_exit,
}
