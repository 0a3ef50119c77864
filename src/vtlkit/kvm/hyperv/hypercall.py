"""Hypercalls: decode the registers, dispatch by call code, act, answer (mirrors `kvm_hv_hypercall` and
`kvm_hv_hypercall_complete` of arch/x86/kvm/hyperv.c; TLFS, "Hypercall Interface").

Promise: an input value that is malformed, a code that nobody answers and parameters that the caller may not pass end in
their HV_STATUS, in this order: reserved bits, code, privilege, counts and sizes, parameter pages. #UD only where the
TLFS says so: outside CPL 0 of protected mode, XMM parameters where CPUID does not offer them, VTL switches.

Everything here runs in the vCPU's own task and takes no lock.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.handlers import HANDLERS
from vtlkit.kvm.hyperv.layouts import LAYOUTS, HypercallLayout
from vtlkit.kvm.hyperv.parameters import CODE_MASK, CONTROL_RESERVED, FAST_XMM_BYTES, REP_START_MASK, Hypercall
from vtlkit.kvm.hyperv.privileges import FAST_OUTPUT, XMM_INPUT
from vtlkit.kvm.kvm_run import Hyperv, KvmRun
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import FXSAVE_XMM0

if TYPE_CHECKING:
    from vtlkit.engine.api import Engine, RegisterFile
    from vtlkit.kvm.hyperv.owner import VcpuOwner
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

_U32: Final = 0xFFFFFFFF


def read_xmm(engine: Engine) -> bytes:
    """XMM0 to XMM5."""
    return engine.get_fpu()[FXSAVE_XMM0 : FXSAVE_XMM0 + FAST_XMM_BYTES]


def _write_xmm(engine: Engine, xmm: bytes) -> None:
    image = engine.get_fpu()
    if image[FXSAVE_XMM0 : FXSAVE_XMM0 + FAST_XMM_BYTES] != xmm:
        engine.set_fpu(image[:FXSAVE_XMM0] + xmm + image[FXSAVE_XMM0 + FAST_XMM_BYTES :])


def _pair(high: int, low: int) -> int:
    return (high & _U32) << 32 | low & _U32


def _control(regs: RegisterFile, is_64bit: bool) -> int:
    return regs.rcx if is_64bit else _pair(regs.rdx, regs.rax)


def _set_control(regs: RegisterFile, is_64bit: bool, control: int) -> None:
    if is_64bit:
        regs.rcx = control
    else:
        regs.rdx, regs.rax = control >> 32, control & _U32


def _set_result(vcpu: VcpuOwner, is_64bit: bool, result: int) -> None:
    regs = vcpu.engine.regs
    if vcpu.trace is not None:
        vcpu.trace.hv_hypercall_done(result)
    if is_64bit:
        regs.rax = result
    else:
        regs.rdx, regs.rax = result >> 32, result & _U32


def hypercall(hv: HvVcpu, length: int) -> KvmRun | None:
    """Execute the hypercall at RIP, an instruction of `length` bytes; an exit if user space is to answer it."""
    vcpu = hv.vcpu
    if vcpu.cpl() or not vcpu.protected_mode():
        vcpu.queue_exception(Vector.UD)
        return None
    hv.hypercalls += 1
    is_64bit = vcpu.is_64bit()
    regs = vcpu.engine.regs
    control = _control(regs, is_64bit)
    code = control & CODE_MASK
    layout = LAYOUTS.get(code)
    user_space = code in hv.hv_vm.user_space_calls
    if layout is not None and layout.vtl_switch:
        return _vtl_switch(hv, layout, control, user_space, is_64bit, length)
    if is_64bit:
        input_gpa, output_gpa = regs.rdx, regs.r8
    else:
        input_gpa, output_gpa = _pair(regs.rbx, regs.rcx), _pair(regs.rdi, regs.rsi)
    engine = vcpu.engine
    call = Hypercall(control, input_gpa, output_gpa, vcpu.vm.memory, lambda: read_xmm(engine), is_64bit=is_64bit)
    handler = HANDLERS.get(code)
    status: HvStatus | None
    if control & CONTROL_RESERVED:
        status = HvStatus.INVALID_HYPERCALL_INPUT
    elif not user_space and (handler is None or layout is None):
        status = HvStatus.INVALID_HYPERCALL_CODE
    elif layout is None:
        return _exit(call, length)
    elif layout.privilege & ~hv.privileges:
        status = HvStatus.ACCESS_DENIED
    else:
        status = call.measure(layout)
        if not status:
            if call.fast and _xmm_refused(hv, call):
                vcpu.queue_exception(Vector.UD)
                return None
            if user_space or handler is None:
                return _exit(call, length)
            status = call.fetch()
            if not status:
                status = handler(hv, call)
                if call.reissue:
                    return None
                if status is None:
                    return _exit(call, length)
    _answer(hv, call, status, length)
    return None


def is_plain(hv: HvVcpu) -> bool:
    """Whether the hypercall at RIP is one, from where one may come, other than VTL call and return."""
    vcpu = hv.vcpu
    layout = LAYOUTS.get(_control(vcpu.engine.regs, vcpu.is_64bit()) & CODE_MASK)
    return not vcpu.cpl() and vcpu.protected_mode() and not (layout is not None and layout.vtl_switch)


def _xmm_refused(hv: HvVcpu, call: Hypercall) -> bool:
    if call.output_size and not hv.privileges & FAST_OUTPUT:
        return True
    return call.uses_xmm_input and not hv.privileges & XMM_INPUT


def _answer(hv: HvVcpu, call: Hypercall, status: HvStatus, length: int) -> None:
    vcpu = hv.vcpu
    regs = vcpu.engine.regs
    result = call.finish(status)
    if call.xmm_output is not None:
        _store_fast_output(vcpu.engine, call.input_gpa, call.output_gpa, call.xmm_output)
    if result is None:
        # RIP stays: pending events are handled first, and then the instruction goes on with the rest of the list.
        _set_control(regs, call.is_64bit, call.control)
        return
    _set_result(vcpu, call.is_64bit, result)
    vcpu.skip_instruction(length)


def _store_fast_output(engine: Engine, rdx: int, r8: int, xmm: bytes) -> None:
    engine.regs.rdx, engine.regs.r8 = rdx, r8
    if xmm:
        _write_xmm(engine, xmm)


def _exit(call: Hypercall, length: int) -> Hyperv:
    layout = call.layout
    xmm = call.fast and (layout is None or call.uses_xmm_input or call.output_size > 0)
    return Hyperv(
        code=call.code,
        control=call.control,
        input_gpa=call.input_gpa,
        output_gpa=call.output_gpa,
        fast=call.fast,
        xmm=call.read_xmm() if xmm else b"",
        length=length,
    )


def _vtl_switch(
    hv: HvVcpu, layout: HypercallLayout, control: int, user_space: bool, is_64bit: bool, length: int
) -> KvmRun | None:
    """VTL call or return. The exit's `input_gpa` is the switch's control input: RAX, or EDX:ECX of a 32-bit caller."""
    vcpu = hv.vcpu
    # In 32-bit code EDX, the high half of the input value, is the high half of the control input.
    malformed = (control if is_64bit else control & _U32) & ~CODE_MASK
    # Plain integers: an IntFlag operation costs more than all the rest.
    if malformed or not user_space or int(layout.privilege) & ~int(hv.privileges):
        vcpu.queue_exception(Vector.UD)
        return None
    regs = vcpu.engine.regs
    switch_control = regs.rax if is_64bit else _pair(control >> 32, regs.rcx)
    return Hyperv(control & CODE_MASK, control, switch_control, 0, False, b"", length)


def check_block(answer: Hyperv) -> None:
    """Refuse an answer whose completion cannot block.

    Raises:
        KvmError: EINVAL, it is not that of a VTL call or return, or has the instruction executed again.
    """
    layout = LAYOUTS.get(answer.code)
    if layout is None or not layout.vtl_switch or answer.retry:
        raise KvmError(errno.EINVAL, "the completion of a VTL call or return alone can block")


def complete(hv: HvVcpu, answer: Hyperv) -> None:
    """Take over user space's answer before the vCPU runs again (`kvm_hv_hypercall_complete_userspace`).

    `retry`: RIP stays, and a changed rep start index goes to the guest's register. `complete` False: only RIP moves.
    """
    vcpu = hv.vcpu
    if not (answer.complete or answer.retry):
        vcpu.skip_instruction(answer.length)
        return
    regs = vcpu.engine.regs
    is_64bit = vcpu.is_64bit()
    layout = LAYOUTS.get(answer.code)
    if answer.complete and answer.fast and layout is not None and (layout.output_size or layout.output_element):
        _store_fast_output(vcpu.engine, answer.input_gpa, answer.output_gpa, answer.xmm)
    if answer.retry:
        changed = _control(regs, is_64bit) ^ answer.control
        if changed and not changed & ~REP_START_MASK:
            _set_control(regs, is_64bit, answer.control)
        return
    _set_result(vcpu, is_64bit, answer.result)
    vcpu.skip_instruction(answer.length)
