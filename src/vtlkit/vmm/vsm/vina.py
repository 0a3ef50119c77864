"""Virtual Interrupt Notification Assist: a higher VTL hears that it keeps an interrupt from a lower one.

TLFS, "Virtual Interrupt Notification Assist"; docs/design/vtl-switch.md. What is notified is an interrupt or NMI that
the lower VTL would take at once were it active, as in OpenVMM: its RFLAGS.IF counts. Pending ones notify when VINA is
enabled and when the VTL becomes active; after that only new ones do, and each only while Asserted is clear.

Shared: the registers, one cell with an immutable tuple. The rest is the processor's task's, and so is Asserted, in the
assist page of the active VTL, while that VTL is out of the guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.hvdef.identifiers import HV_MAX_VTLS
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import (
    HV_VSM_VINA_AUTO_EOI,
    HV_VSM_VINA_AUTO_RESET,
    HV_VSM_VINA_ENABLED,
    HV_VSM_VINA_VECTOR,
)

if TYPE_CHECKING:
    from vtlkit.kvm.uapi import Vcpu
    from vtlkit.vmm.vsm.vp import Vp

VINA: Final = HV_MAX_VTLS + 1
"""Bit of `Vp._look`: some VTL of the processor has enabled VINA. It stays until a reset."""
_KNOWN: Final = (
    HV_VSM_VINA_VECTOR.mask | HV_VSM_VINA_ENABLED.mask | HV_VSM_VINA_AUTO_RESET.mask | HV_VSM_VINA_AUTO_EOI.mask
)
_AUTO_RESET: Final = HV_VSM_VINA_ENABLED.mask | HV_VSM_VINA_AUTO_RESET.mask
_FIRST_VECTOR: Final = 16
"""Those below are no interrupts (SDM volume 3, "Valid Interrupt Vectors")."""
_NOTHING: Final[tuple[int, ...]] = (0,) * HV_MAX_VTLS


class Vina:
    """The facility of one processor, with a register (HvRegisterVsmVina) for each VTL above 0."""

    def __init__(self, vp: Vp) -> None:
        self._vp = vp
        self._registers = vp.host.cell(_NOTHING, f"vp{vp.index}-vina")
        self._switches = -1
        """How many switches there had been at the last look."""

    def reset(self) -> None:
        """A partition reset: off. The task is parked."""
        self._registers.store(_NOTHING)
        self._switches = -1

    def read(self, level: int) -> int:
        """The register of a VTL. From any task."""
        return self._registers.load()[level]

    def write(self, level: int, vcpu: Vcpu, value: int) -> HvStatus:
        """Write the register of a VTL. Its vCPU does not run meanwhile, and the caller holds its mutex."""
        if level == 0:
            return HvStatus.INVALID_PARAMETER
        vector = HV_VSM_VINA_VECTOR.get(value)
        enabled = HV_VSM_VINA_ENABLED.get(value)
        if value & ~_KNOWN or (enabled and vector < _FIRST_VECTOR):
            return HvStatus.INVALID_REGISTER_VALUE
        while True:
            old = self._registers.load()
            if self._registers.cmpxchg(old, (*old[:level], value, *old[level + 1 :])) == old:
                break
        vcpu.hv.auto_eoi_vectors = 1 << vector if enabled and HV_VSM_VINA_AUTO_EOI.get(value) else 0
        if enabled:
            # What is pending already is to be looked at; and whoever looks is to find VINA on.
            self._vp.ask(*range(level), VINA)
        return HvStatus.SUCCESS

    def enabled(self, level: int) -> bool:
        """Whether a VTL is to be notified. From any task and interrupt."""
        return bool(HV_VSM_VINA_ENABLED.get(self._registers.load()[level]))

    def entered(self, level: int) -> None:
        """The processor's task is entering VTL `level` from a lower one, whether or not that one has run."""
        register = self._registers.load()[level]
        if register & _AUTO_RESET == _AUTO_RESET:
            self._vp.vcpus[level].hv.assist.set_vina_asserted(False)

    def decide(self, level: int, kicked: int) -> None:
        """The processor's task is about to run VTL `level`; `kicked` has a bit for each VTL that may have news."""
        vp = self._vp
        switches = vp.switches
        entered = switches != self._switches
        self._switches = switches
        register = self._registers.load()[level]
        if not HV_VSM_VINA_ENABLED.get(register):
            return
        vcpu = vp.vcpus[level]
        assist = vcpu.hv.assist
        if assist.vina_asserted:
            return
        for lower, other in vp.vcpus.items():
            if lower < level and (entered or kicked >> lower & 1) and other.interrupt_deliverable():
                assist.set_vina_asserted(True)
                vcpu.vm.send_ipi(1 << vp.index, HV_VSM_VINA_VECTOR.get(register))
                return
