"""Which exits of L2 are L1's: what #VMEXIT an exit of the engine becomes. Mirrors `nested_svm_exit_handled` and the
intercept half of `svm_check_intercept`.

Pure questions about L1's intercepts and the exit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vtlkit.engine import api
from vtlkit.engine.api import Event, Intercept, PortBitmap, RegisterIntercepts, touches_port
from vtlkit.kvm.control_registers import written_value
from vtlkit.kvm.nested.vmcb import (
    IOIO_ADDRESS_16,
    IOIO_ADDRESS_32,
    IOIO_ADDRESS_64,
    IOIO_IN,
    IOIO_PORT_SHIFT,
    IOIO_REP,
    IOIO_SIZE_SHIFT,
    IOIO_STRING,
    VmcbControl,
)
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR0_MP, CR0_TS
from vtlkit.x86.svm import (
    CR_READ_BASE,
    CR_WRITE_BASE,
    DR_READ_BASE,
    DR_WRITE_BASE,
    EXCEPTION_BASE,
    SvmExit,
    msr_permission,
)

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_DEBUG_REGISTERS: Final = 16
"""`ControlRegister.register` of DR0."""
_CR0_FREE: Final = CR0_TS | CR0_MP
"""What the selective intercept of CR0 writes lets change."""
_ADDRESS_SIZES: Final = {16: IOIO_ADDRESS_16, 32: IOIO_ADDRESS_32, 64: IOIO_ADDRESS_64}

_MNEMONICS: Final = {
    "vmrun": SvmExit.VMRUN,
    "vmload": SvmExit.VMLOAD,
    "vmsave": SvmExit.VMSAVE,
    "stgi": SvmExit.STGI,
    "clgi": SvmExit.CLGI,
    "skinit": SvmExit.SKINIT,
    "invlpga": SvmExit.INVLPGA,
    "invlpg": SvmExit.INVLPG,
    "monitor": SvmExit.MONITOR,
    "mwait": SvmExit.MWAIT,
    "rdpmc": SvmExit.RDPMC,
    "rsm": SvmExit.RSM,
    "sgdt": SvmExit.GDTR_READ,
    "sidt": SvmExit.IDTR_READ,
    "sldt": SvmExit.LDTR_READ,
    "str": SvmExit.TR_READ,
    "lgdt": SvmExit.GDTR_WRITE,
    "lidt": SvmExit.IDTR_WRITE,
    "lldt": SvmExit.LDTR_WRITE,
    "ltr": SvmExit.TR_WRITE,
    "xsetbv": SvmExit.XSETBV,
    "invd": SvmExit.INVD,
    "wbinvd": SvmExit.WBINVD,
    "int": SvmExit.SWINT,
    **dict.fromkeys(("iret", "iretd", "iretq"), SvmExit.IRET),
    **dict.fromkeys(("pushf", "pushfd", "pushfq"), SvmExit.PUSHF),
    **dict.fromkeys(("popf", "popfd", "popfq"), SvmExit.POPF),
}

_ENGINE: Final = {
    SvmExit.PAUSE: Intercept.PAUSE,
    SvmExit.INVLPG: Intercept.INVLPG,
    SvmExit.IDTR_READ: Intercept.DESCRIPTOR_TABLE_READ,
    SvmExit.GDTR_READ: Intercept.DESCRIPTOR_TABLE_READ,
    SvmExit.LDTR_READ: Intercept.DESCRIPTOR_TABLE_READ,
    SvmExit.TR_READ: Intercept.DESCRIPTOR_TABLE_READ,
    SvmExit.IDTR_WRITE: Intercept.IDTR_WRITE,
    SvmExit.GDTR_WRITE: Intercept.GDTR_WRITE,
    SvmExit.LDTR_WRITE: Intercept.LDTR_WRITE,
    SvmExit.TR_WRITE: Intercept.TR_WRITE,
    SvmExit.IRET: Intercept.IRET,
    SvmExit.PUSHF: Intercept.PUSHF,
    SvmExit.POPF: Intercept.POPF,
    SvmExit.SWINT: Intercept.SOFTWARE_INTERRUPT,
    SvmExit.INVD: Intercept.INVALIDATE_CACHES,
    SvmExit.WBINVD: Intercept.INVALIDATE_CACHES,
    SvmExit.XSETBV: Intercept.XSETBV,
}
"""What L1 can ask for and the hypervisor does not for itself."""
_ENGINE_BITS: Final = sum(1 << (code - SvmExit.INTR) for code in _ENGINE)
_BY_INSTRUCTIONS: Final = (Vector.BP, Vector.OF, Vector.BR)
"""Exceptions of INT3, INTO and BOUND, whose exits have an nRIP (APM volume 2, section 15.7.1)."""
_CR_EMULATED: Final = 1 << 0 | 1 << 4 | 1 << 8
_CR_KNOWN: Final = _CR_EMULATED | 1 << 2 | 1 << 3


@dataclass(frozen=True, slots=True)
class NestedExit:
    """A #VMEXIT of L2: EXITCODE, EXITINFO1, EXITINFO2, nRIP (0: none), and EXITINTINFO's event."""

    code: int
    info_1: int = 0
    info_2: int = 0
    next_rip: int = 0
    vectoring: Event | None = None


class Intercepts:
    """What L1 wants of one L2, from its control area and permission maps. Immutable."""

    __slots__ = ("_control", "_instructions", "exceptions", "io_map", "msr_map")

    def __init__(self, control: VmcbControl, msr_map: bytes | None, io_map: PortBitmap | None) -> None:
        """The maps: None where L1 does not intercept MSRs or ports at all.

        The I/O map counts as it is when it is asked.
        """
        self._control = control
        self._instructions = control.intercept_3 | control.intercept_4 << 32
        self.exceptions = control.intercept_exceptions
        self.msr_map = msr_map
        self.io_map = io_map

    def wants(self, code: SvmExit) -> bool:
        """INTR, NMI and the rest of the words at 0Ch and 10h."""
        return bool(self._instructions >> (code - SvmExit.INTR) & 1)

    def wants_exception(self, vector: int) -> bool:
        return bool(self.exceptions >> vector & 1)

    def wants_msr(self, index: int, write: bool) -> bool:
        """By the permission map; an MSR that it does not cover is intercepted."""
        if self.msr_map is None:
            return False
        place = msr_permission(index)
        return place is None or bool(self.msr_map[place[0]] >> place[1] & (2 if write else 1))

    def wants_register(self, number: int, write: bool) -> bool:
        """MOV to or from CR `number`, or DR `number` - 16."""
        control = self._control
        word = control.intercept_dr if number >= _DEBUG_REGISTERS else control.intercept_cr
        return bool(word >> (number % _DEBUG_REGISTERS + (16 if write else 0)) & 1)

    def engine_flags(self) -> Intercept:
        """What the engine must exit for that it would not otherwise."""
        flags = Intercept.NONE
        wanted = _ENGINE_BITS & self._instructions
        for code, flag in _ENGINE.items() if wanted else ():
            if self.wants(code):
                flags |= flag
        if self._control.intercept_cr & 1:
            flags |= Intercept.CR_READ
        return flags

    def engine_moves(self) -> RegisterIntercepts:
        """The same of MOVs to and from registers."""
        control = self._control
        return RegisterIntercepts(
            control.intercept_cr & _CR_KNOWN,
            control.intercept_cr >> 16 & _CR_KNOWN,
            control.intercept_dr & _U16,
            control.intercept_dr >> 16,
        )


def nested_exit(vcpu: Vcpu, intercepts: Intercepts, reason: api.Exit) -> NestedExit | None:
    """The #VMEXIT that an exit of the engine is to L1; None if L1 has not asked for it."""
    check = _CHECKS.get(type(reason))
    return None if check is None else check(vcpu, intercepts, reason)


def _instruction(vcpu: Vcpu, code: int, length: int, info_1: int = 0, info_2: int = 0) -> NestedExit:
    return NestedExit(code, info_1, info_2, _next_rip(vcpu, length))


def _next_rip(vcpu: Vcpu, length: int) -> int:
    """Where RIP is behind an instruction of `length` bytes, which may be the last of the address space."""
    return vcpu.engine.regs.rip + length & (_U64 if vcpu.is_64bit() else _U32)


def _plain(code: SvmExit) -> Callable[[Vcpu, Intercepts, api.Instruction], NestedExit | None]:
    def check(vcpu: Vcpu, intercepts: Intercepts, reason: api.Instruction) -> NestedExit | None:
        return _instruction(vcpu, code, reason.length) if intercepts.wants(code) else None

    return check


def _rdtsc(vcpu: Vcpu, intercepts: Intercepts, reason: api.Rdtsc) -> NestedExit | None:
    code = SvmExit.RDTSCP if reason.with_aux else SvmExit.RDTSC
    return _instruction(vcpu, code, reason.length) if intercepts.wants(code) else None


def _rdmsr(vcpu: Vcpu, intercepts: Intercepts, reason: api.Rdmsr) -> NestedExit | None:
    if not intercepts.wants_msr(vcpu.engine.regs.rcx & _U32, False):
        return None
    return _instruction(vcpu, SvmExit.MSR, reason.length)


def _wrmsr(vcpu: Vcpu, intercepts: Intercepts, reason: api.Wrmsr) -> NestedExit | None:
    if not intercepts.wants_msr(vcpu.engine.regs.rcx & _U32, True):
        return None
    return _instruction(vcpu, SvmExit.MSR, reason.length, 1)


def _port(vcpu: Vcpu, intercepts: Intercepts, reason: api.PortIntercept) -> NestedExit | None:
    if not touches_port(intercepts.io_map, reason.port, reason.size):
        return None
    info = reason.port << IOIO_PORT_SHIFT | reason.size << IOIO_SIZE_SHIFT | _ADDRESS_SIZES[vcpu.engine.code_bits()]
    info |= (0 if reason.write else IOIO_IN) | (IOIO_STRING if reason.string else 0) | (IOIO_REP if reason.rep else 0)
    return _instruction(vcpu, SvmExit.IOIO, reason.length, info, _next_rip(vcpu, reason.length))


def _control_register(vcpu: Vcpu, intercepts: Intercepts, reason: api.ControlRegister) -> NestedExit | None:
    number, write = reason.register, reason.write
    if intercepts.wants_register(number, write):
        if number >= _DEBUG_REGISTERS:
            base, number = (DR_WRITE_BASE if write else DR_READ_BASE), number - _DEBUG_REGISTERS
        else:
            base = CR_WRITE_BASE if write else CR_READ_BASE
        return _instruction(vcpu, base + number, reason.length)
    if number == 0 and write and intercepts.wants(SvmExit.CR0_SEL_WRITE):
        changed = written_value(vcpu, reason) ^ vcpu.engine.cr0
        if changed & ~_CR0_FREE:
            return _instruction(vcpu, SvmExit.CR0_SEL_WRITE, reason.length)
    return None


def _other(vcpu: Vcpu, intercepts: Intercepts, reason: api.Other) -> NestedExit | None:
    name = reason.mnemonic
    code = _MNEMONICS.get(name)
    if code is not None:
        return _instruction(vcpu, code, reason.length) if intercepts.wants(code) else None
    if name in ("clts", "lmsw"):
        if intercepts.wants_register(0, True):
            return _instruction(vcpu, CR_WRITE_BASE, reason.length)
        # LMSW counts as a write of more than TS and MP whatever it writes (APM, "CR0 Selective").
        if name == "lmsw" and intercepts.wants(SvmExit.CR0_SEL_WRITE):
            return _instruction(vcpu, SvmExit.CR0_SEL_WRITE, reason.length)
    if name == "smsw" and intercepts.wants_register(0, False):
        return _instruction(vcpu, CR_READ_BASE, reason.length)
    return None


def _exception(vcpu: Vcpu, intercepts: Intercepts, reason: api.ExceptionExit) -> NestedExit | None:
    if not intercepts.wants_exception(reason.vector):
        return None
    address = reason.address if reason.vector == Vector.PF else 0
    next_rip = 0
    if reason.vector in _BY_INSTRUCTIONS:
        code = vcpu.engine.instruction_bytes()
        next_rip = _next_rip(vcpu, vcpu.engine.instruction_length(code) if code else 1)
    return NestedExit(EXCEPTION_BASE + reason.vector, reason.error_code or 0, address, next_rip, reason.vectoring)


def _shutdown(_vcpu: Vcpu, intercepts: Intercepts, _reason: api.Shutdown) -> NestedExit | None:
    return NestedExit(SvmExit.SHUTDOWN) if intercepts.wants(SvmExit.SHUTDOWN) else None


_CHECKS: Final[dict[type[api.Exit], Callable[[Vcpu, Intercepts, Any], NestedExit | None]]] = {
    api.Cpuid: _plain(SvmExit.CPUID),
    api.Hlt: _plain(SvmExit.HLT),
    api.Hypercall: _plain(SvmExit.VMMCALL),
    api.Pause: _plain(SvmExit.PAUSE),
    api.Rdtsc: _rdtsc,
    api.Rdmsr: _rdmsr,
    api.Wrmsr: _wrmsr,
    api.PortIntercept: _port,
    api.ControlRegister: _control_register,
    api.Other: _other,
    api.ExceptionExit: _exception,
    api.Shutdown: _shutdown,
}
