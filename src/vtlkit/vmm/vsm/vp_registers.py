"""Virtual processor registers by name: HvCallGetVpRegisters and HvCallSetVpRegisters (docs/design/vp-registers.md).

What a register is, how it is read and what may be written is one entry of a table in `registers`; here is who has to
stand still for it. A processor's registers are read while it is out of the guest, and written between two of its
instructions: one whose I/O instruction waits for its device finishes it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm import deliverability
from vtlkit.vmm.vsm.intercepts import by_name
from vtlkit.vmm.vsm.intercepts.registers import REGISTERS as INTERCEPT_REGISTERS
from vtlkit.vmm.vsm.registers import (
    apic,
    control,
    debug,
    events,
    fpu,
    general,
    msrs,
    segments,
    synthetic,
    tlb_locks,
    vsm,
)
from vtlkit.vmm.vsm.registers.table import Get, Register, Scope, Set
from vtlkit.vmm.vsm.state_pages import REGISTERS as STATE_PAGE_REGISTERS

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_REGISTERS: Final[dict[int, Register]] = {
    **vsm.REGISTERS,
    **events.REGISTERS,
    **general.REGISTERS,
    **control.REGISTERS,
    **segments.REGISTERS,
    **debug.REGISTERS,
    **fpu.REGISTERS,
    **msrs.REGISTERS,
    **apic.REGISTERS,
    **synthetic.REGISTERS,
    **tlb_locks.REGISTERS,
    **INTERCEPT_REGISTERS,
    **STATE_PAGE_REGISTERS,
    Name.HvRegisterDeliverabilityNotifications: Register(deliverability.read),
}
_GETTERS: Final[dict[int, Get]] = {name: register.get for name, register in _REGISTERS.items()}
_SETTERS: Final[dict[int, Set]] = {
    name: register.set for name, register in _REGISTERS.items() if register.set is not None
}
_MSRS: Final = {name: register.msr for name, register in _REGISTERS.items() if register.msr is not None}
_SCOPES: Final[dict[int, Scope]] = {name: register.scope for name, register in _REGISTERS.items()}
"""A name that is not here is a VTL's own."""


@contextmanager
def _out_of_guest(caller: Vp, vp: Vp) -> Iterator[None]:
    """No task of `vp` enters the guest meanwhile; one that is there is on its way out."""
    if vp is caller:
        # The caller's task is this one, and the processor's other VTLs are inactive.
        yield
        return
    with vp.stopped():
        yield


def _on_holder(
    caller: Vp, vp: Vp, level: int, scope: Scope, act: Callable[[Vcpu], int | HvStatus], *, write: bool
) -> int | HvStatus:
    """`act` on the vCPU that has the register, which stands still and which no other task writes. May block."""
    if scope is Scope.PARTITION:
        return act(vp.vcpus[level])
    with _out_of_guest(caller, vp):
        while True:
            vcpu, token = vp.shared_state() if scope is Scope.VP else (vp.vcpus[level], None)
            with vp.waits.alone(vcpu):
                settled = not write or vcpu.engine.at_boundary
                result = act(vcpu) if settled else HvStatus.INVALID_VP_STATE
            if not settled:
                if not vp.wait_for_boundary(vcpu):
                    return result
            elif token is None or vp.shared_state_stayed(token):
                if write and vp is not caller:
                    # The write may let an interrupt through to an inactive VTL.
                    vcpu.kick()
                return result


def get(caller: Vp, vp: Vp, level: int, name: int) -> int | HvStatus:
    """The register's value, 128 bits. `caller` is the processor whose task this is. May block."""
    getter = _GETTERS.get(name)
    if getter is None:
        return HvStatus.INVALID_PARAMETER
    if by_name.read(by_name.wanted_above(vp, caller.active.load()), _MSRS.get(name)):
        return HvStatus.ACCESS_DENIED
    scope = _SCOPES.get(name, Scope.VTL)
    return _on_holder(caller, vp, level, scope, lambda vcpu: getter(vp, level, vcpu), write=False)


def set(caller: Vp, vp: Vp, level: int, name: int, value: int) -> HvStatus:  # noqa: A001
    """Write the register; as `get`. INVALID_VP_STATE: the run ended before the processor was between instructions."""
    setter = _SETTERS.get(name)
    if name == Name.HvRegisterDeliverabilityNotifications:
        setter = partial(deliverability.write, caller.active.load())
    if setter is None:
        return HvStatus.ACCESS_DENIED if name in _GETTERS else HvStatus.INVALID_PARAMETER
    wanted, msr = by_name.wanted_above(vp, caller.active.load()), _MSRS.get(name)

    def write(vcpu: Vcpu) -> HvStatus:
        if by_name.written(wanted, name, msr, vcpu, value):
            return HvStatus.ACCESS_DENIED
        return setter(vp, level, vcpu, value)

    status = HvStatus(_on_holder(caller, vp, level, _SCOPES.get(name, Scope.VTL), write, write=True))
    if name == Name.HvRegisterPendingEvent0 and not status:
        address = events.fault_address(value)
        if address is not None:
            # CR2 is one register of all VTLs: the vCPU that has it may be another.
            set(caller, vp, level, Name.HvX64RegisterCr2, address)
    return status
