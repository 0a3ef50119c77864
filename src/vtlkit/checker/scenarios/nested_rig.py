"""A vCPU whose guest runs a guest of its own, for scenarios and tests."""

from __future__ import annotations

from typing import Final

from vtlkit.engine.api import RamBlock
from vtlkit.engine.scripted import Guest, ScriptedEngine
from vtlkit.kvm.nested.registers import save_state
from vtlkit.kvm.nested.vmcb import VMCB_SAVE_OFFSET, VmcbControl, VmcbSave
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.registers import CR0_PE, EFER_SVME
from vtlkit.x86.svm import SvmExit

VMCB: Final = 0x1000
L2_RIP: Final = 0x2000


class Nesting:
    """Part of a rig: L1 in protected mode with SVM on, and the control block at VMCB by which it runs L2."""

    vcpu: Vcpu
    ram: RamBlock
    control: VmcbControl
    save: VmcbSave

    def nest(self, guest: Guest, *, msr_map: int, io_map: int) -> None:
        """`guest` is L2's program. VMRUN and VMMCALL are intercepted, and what the two maps in RAM say."""
        engine = self.vcpu.engine
        assert isinstance(engine, ScriptedEngine)
        engine.nested = True
        sregs = engine.get_sregs()
        sregs.cr0 |= CR0_PE
        engine.set_sregs(sregs)
        engine.set_msr(MSR_EFER, EFER_SVME)
        engine.programs[sregs.cs.base + L2_RIP] = guest
        self.vcpu.nested.hsave_pa = VMCB
        self.control = VmcbControl(asid=1, msrpm_base_pa=msr_map, iopm_base_pa=io_map)
        self.intercept(SvmExit.VMRUN, SvmExit.VMMCALL)
        self.save = VmcbSave()
        save_state(engine, self.save)
        self.save.rip = L2_RIP

    def intercept(self, *codes: SvmExit) -> None:
        """Intercept these, too."""
        for code in codes:
            if code < SvmExit.VMRUN:
                self.control.intercept_3 |= 1 << (code - SvmExit.INTR)
            else:
                self.control.intercept_4 |= 1 << (code - SvmExit.VMRUN)

    def store(self) -> None:
        """Put the control block into memory."""
        self.control.pack_into(self.ram.view, VMCB)
        self.save.pack_into(self.ram.view, VMCB + VMCB_SAVE_OFFSET)

    def load(self) -> None:
        """Read it as the last #VMEXIT left it."""
        self.control = VmcbControl.unpack_from(self.ram.view, VMCB)
        self.save = VmcbSave.unpack_from(self.ram.view, VMCB + VMCB_SAVE_OFFSET)
