"""A scripted L1 that runs a scripted L2, for unit tests: the control block is a pair of structures in page 1 of RAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.engine.scripted import Guest, Handler, ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.nested.registers import save_state
from vtlkit.kvm.nested.vmcb import VMCB_SAVE_OFFSET, VmcbControl, VmcbSave
from vtlkit.trace.sinks import Sink
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.registers import CR0_PE, EFER_SVME, RFLAGS_IF
from vtlkit.x86.svm import SvmExit

VMCB = 0x1000
IO_MAP = 0x4000
MSR_MAP = 0x8000
L2_RIP = 0x2000


class Nest(Machine):
    """L1 does `before`, VMRUN, then `after`; L2 is `guest`. VMRUN and VMMCALL are intercepted."""

    def __init__(
        self,
        guest: Guest,
        *,
        before: tuple[Op, ...] = (),
        after: Callable[[Nest], Script] | None = None,
        handlers: Mapping[int, Handler] | None = None,
        vendor: str | None = None,
        sink: Sink | None = None,
    ) -> None:
        def program(_engine: object) -> Script:
            for instruction in before:  # noqa: UP028 - RAX is sent, which a tuple does not take
                yield instruction
            yield ops.Set(VMCB)
            yield ops.Intercepted("vmrun")
            if after is not None:
                yield from after(self)
            yield ops.Out(DONE, 1, 0)

        super().__init__(program, handlers=handlers, nested=True, vendor=vendor, sink=sink)
        self.cpu.nested = True
        sregs = self.cpu.get_sregs()
        sregs.cr0 |= CR0_PE
        self.cpu.set_sregs(sregs)
        self.cpu.set_msr(MSR_EFER, EFER_SVME)
        self.cpu.programs[sregs.cs.base + L2_RIP] = guest
        self.vcpu.nested.hsave_pa = VMCB
        self.control = VmcbControl(asid=1, msrpm_base_pa=MSR_MAP, iopm_base_pa=IO_MAP)
        self.intercept(SvmExit.VMRUN, SvmExit.VMMCALL)
        self.save = VmcbSave()
        save_state(self.cpu, self.save)
        self.save.rip = L2_RIP

    def intercept(self, *codes: SvmExit) -> None:
        for code in codes:
            if code < SvmExit.VMRUN:
                self.control.intercept_3 |= 1 << (code - SvmExit.INTR)
            else:
                self.control.intercept_4 |= 1 << (code - SvmExit.VMRUN)

    def interrupts_on(self) -> None:
        """Of L1, before VMRUN."""
        self.cpu.rflags |= RFLAGS_IF

    def store(self) -> None:
        self.control.pack_into(self.ram.view, VMCB)
        self.save.pack_into(self.ram.view, VMCB + VMCB_SAVE_OFFSET)

    def load(self) -> None:
        self.control = VmcbControl.unpack_from(self.ram.view, VMCB)
        self.save = VmcbSave.unpack_from(self.ram.view, VMCB + VMCB_SAVE_OFFSET)

    def enter(self) -> int:
        """Run to L1's end; the exit code of the last #VMEXIT."""
        self.store()
        exit_ = self.vcpu.run()
        assert isinstance(exit_, Io), exit_
        assert exit_.port == DONE
        assert not self.vcpu.guest_mode
        self.load()
        return self.control.exit_code
