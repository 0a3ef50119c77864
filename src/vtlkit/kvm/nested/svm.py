"""L2 under L1: entering it, leaving it, and what may end it. Mirrors arch/x86/kvm/svm/nested.c.

Promise: what L1 intercepts ends L2 before L2 executes another instruction, and an event that was on its way into L2 is
either delivered or named in EXITINTINFO, never both (docs/design/nested.md has the races).

Belongs to the vCPU's task. The engine runs L1 or L2; L1's registers are kept here meanwhile, as KVM keeps vmcb01.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine import api
from vtlkit.engine.api import NO_REGISTERS, Event, EventType, Intercept, RegisterIntercepts
from vtlkit.kvm import tracing
from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.nested import checks, emulation, pending
from vtlkit.kvm.nested.intercepts import Intercepts, NestedExit
from vtlkit.kvm.nested.port_maps import either, port_map
from vtlkit.kvm.nested.registers import load_state, save_state
from vtlkit.kvm.nested.virtual_interrupts import event_of, event_word, virtual_vector
from vtlkit.kvm.nested.vmcb import (
    INTERRUPT_SHADOW,
    MSRPM_SIZE,
    V_INTR_MASKING,
    V_IRQ,
    VMCB_SAVE_OFFSET,
    VMCB_SIZE,
    VmcbControl,
    VmcbSave,
)
from vtlkit.kvm.requests import Req
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR0_PE, DR6_BS, DR7_FIXED_1, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF
from vtlkit.x86.svm import VMEXIT_INVALID, SvmExit

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_PAGE_MASK: Final = 0xFFF
_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
NO_INTERCEPTS: Final = Intercepts(VmcbControl(), None, None)


class Nested:
    """One vCPU's L2. `Vcpu.guest_mode` says whether it is active."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.vmcb_gpa = 0
        """Of the control block that L2 runs by."""
        self.control = VmcbControl()
        """L1's control area as VMRUN found it; V_IRQ and V_TPR as they are."""
        self.host = VmcbSave()
        """L1's registers while L2 runs."""
        self.intercepts = NO_INTERCEPTS
        self.hsave_pa = 0
        """VM_HSAVE_PA: VMRUN wants it set; nothing is stored there."""
        self.vm_cr = 0
        self._msrs_changed = False
        """Reads of MSRs exit that L1 wants to see and the hypervisor does not."""
        self._entry_event: Event | None = None
        """EVENTINJ's, as long as the engine has not delivered it."""
        self.entry_words = 0, 0
        """EVENTINJ and its error code as they were at VMRUN."""

    # --- entering ---------------------------------------------------------------------------------------------------

    def vmrun(self, gpa: int, page: bytes, length: int) -> None:
        """VMRUN of the control block at `gpa`, whose bytes are `page`; the instruction has `length` bytes."""
        vcpu, engine = self._vcpu, self._vcpu.engine
        flags = engine.rflags & ~RFLAGS_RF
        # A single step is over when L2 is: see `leave`.
        engine.rflags = flags & ~RFLAGS_TF
        engine.skip(length)
        engine.rflags = flags
        control, save = VmcbControl.unpack_from(page), VmcbSave.unpack_from(page, VMCB_SAVE_OFFSET)
        save_state(engine, self.host)
        self.vmcb_gpa = gpa
        vcpu.make_request(Req.EVENT)
        if not checks.valid(vcpu, control, save) or not self._take(control):
            self._refuse()
            return
        engine.interrupt_shadow = bool(control.int_state & INTERRUPT_SHADOW)
        load_state(engine, save, guest=True)
        if vcpu.trace is not None:
            tracing.nested_vmenter(vcpu, control, save)
        self._begin()
        self._inject(control, save.rip)

    def _inject(self, control: VmcbControl, rip: int) -> None:
        """EVENTINJ into the engine; the word is done with."""
        event = event_of(control, rip)
        self.entry_words = control.event_inj, control.event_inj_error
        control.event_inj &= _U32 >> 1
        if event is not None:
            self._vcpu.engine.inject(event)
        self._entry_event = event

    def entry_pending(self) -> bool:
        """VMRUN is done, and EVENTINJ's event not delivered (`nested_run_pending`)."""
        return self._entry_event is not None and self._vcpu.engine.injected() is self._entry_event

    def restore(self, gpa: int, control: VmcbControl, host: VmcbSave, *, run_pending: bool) -> bool:
        """Be in L2, whose registers the engine has; False if L1 could not have entered it, and nothing has changed."""
        vcpu = self._vcpu
        if gpa & _PAGE_MASK or not checks.host_valid(vcpu, host):
            return False
        if not checks.controls_valid(vcpu, control) or not self._take(control):
            return False
        self.vmcb_gpa, self.host = gpa, host
        self._begin()
        if run_pending:
            # KVM_SET_VCPU_EVENTS may have brought it back already.
            vcpu.engine.cancel_injection()
            self._inject(control, vcpu.engine.regs.rip)
        vcpu.make_request(Req.EVENT)
        return True

    def _take(self, control: VmcbControl) -> bool:
        """Keep the control area and read the maps that it names; False if one is not there."""
        memory = self._vcpu.vm.memory
        wanted = control.intercept_3 >> (SvmExit.MSR - SvmExit.INTR) & 1
        ports = control.intercept_3 >> (SvmExit.IOIO - SvmExit.INTR) & 1
        try:
            msr_map = memory.read_for_guest(control.msrpm_base_pa & ~_PAGE_MASK, MSRPM_SIZE) if wanted else None
            io_map = port_map(memory, control.iopm_base_pa & ~_PAGE_MASK) if ports else None
        except GuestMemoryError:
            return False
        if io_map is not None and not self._vcpu.engine.intercepts_ports:
            # Where the engine cannot leave the guest at a port, L2 must not run past what L1 wants to see.
            return False
        self.control = control
        self.intercepts = Intercepts(control, msr_map, io_map)
        return True

    def _begin(self) -> None:
        vcpu = self._vcpu
        vcpu.guest_mode = True
        vcpu.gif = True
        self.close_windows()
        self.apply_intercepts()

    def _refuse(self) -> None:
        """VMEXIT_INVALID: L1 goes on behind VMRUN."""
        vcpu = self._vcpu
        vcpu.gif = False
        self._write_exit(NestedExit(VMEXIT_INVALID), entered=False)
        self._single_step()

    # --- leaving ----------------------------------------------------------------------------------------------------

    def leave(self, exit_: NestedExit) -> None:
        """#VMEXIT: L2's state to its control block, L1's into the engine. The engine is at a boundary."""
        vcpu, engine = self._vcpu, self._vcpu.engine
        control = self.control
        control.int_state = control.int_state & ~INTERRUPT_SHADOW | engine.interrupt_shadow
        self._write_exit(exit_, entered=True)
        if vcpu.trace is not None:
            tracing.nested_vmexit(vcpu, exit_, exit_.vectoring or self._cut_short())
        self._end()
        vcpu.gif = False
        vcpu.make_request(Req.EVENT)
        self._single_step()

    def _end(self) -> None:
        """Go back to L1, whatever L2 has come to."""
        vcpu, engine, queue = self._vcpu, self._vcpu.engine, self._vcpu.events
        engine.cancel_injection()
        queue.interrupted = None
        queue.exception = None
        self._entry_event = None
        vcpu.guest_mode = False
        self.host.cr0 |= CR0_PE
        self.host.dr7 = DR7_FIXED_1
        load_state(engine, self.host, guest=False)
        engine.interrupt_shadow = False
        self.intercepts = NO_INTERCEPTS
        self.close_windows()
        self.apply_intercepts()

    def _single_step(self) -> None:
        """The #DB of a VMRUN that L1 stepped over comes when L2 is done."""
        vcpu = self._vcpu
        if self.host.rflags & RFLAGS_TF:
            debug = vcpu.engine.get_debugregs()
            vcpu.engine.set_debugregs((*debug[:4], debug[4] | DR6_BS, debug[5]))
            vcpu.queue_exception(Vector.DB)

    def _write_exit(self, exit_: NestedExit, *, entered: bool) -> None:
        """Store the exit, and L2's registers unless VMRUN was refused, in the control block as it is now."""
        vcpu, memory = self._vcpu, self._vcpu.vm.memory
        try:
            page = bytearray(memory.read_for_guest(self.vmcb_gpa, VMCB_SIZE))
            if entered:
                self._store_registers(page)
            self._store_control(page, exit_, entered)
            memory.write_for_guest(self.vmcb_gpa, bytes(page))
        except GuestMemoryError:
            # L1's block went away under L2: nothing that could be told to anybody.
            vcpu.make_request(Req.TRIPLE_FAULT)

    def _store_registers(self, page: bytearray) -> None:
        save = VmcbSave.unpack_from(page, VMCB_SAVE_OFFSET)
        save_state(self._vcpu.engine, save)
        save.pack_into(page, VMCB_SAVE_OFFSET)

    def _store_control(self, page: bytearray, exit_: NestedExit, entered: bool) -> None:
        area = VmcbControl.unpack_from(page)
        area.exit_code, area.exit_info_1, area.exit_info_2 = exit_.code, exit_.info_1, exit_.info_2
        area.next_rip = exit_.next_rip
        area.exit_int_info, area.exit_int_info_error = event_word(exit_.vectoring or self._cut_short())
        area.event_inj &= _U32 >> 1
        if entered:
            area.int_ctl, area.int_state = self.control.int_ctl, self.control.int_state
        area.pack_into(page)

    def _cut_short(self) -> Event | None:
        """The event that was on its way into L2."""
        vcpu = self._vcpu
        return vcpu.events.interrupted or (vcpu.engine.injected() if vcpu.guest_mode else None)

    def forget(self) -> None:
        """There is no L2 any more, and nobody is told (`svm_leave_nested`)."""
        vcpu = self._vcpu
        vcpu.gif = True
        if vcpu.guest_mode:
            self._end()

    def reset(self, *, init_event: bool) -> None:
        """RESET or INIT."""
        self.forget()
        if not init_event:
            self.hsave_pa = self.vm_cr = 0

    def switched_off(self) -> None:
        """The guest has cleared EFER.SVME. L1 that lets L2 do so is beyond help, as in KVM."""
        if self._vcpu.guest_mode:
            self._vcpu.make_request(Req.TRIPLE_FAULT)
        else:
            self._vcpu.gif = True
            # What GIF held up, as STGI.
            self._vcpu.make_request(Req.EVENT)

    def close_windows(self) -> None:
        """Windows asked for on behalf of who cannot take anything now; EVENT asks for those of who can."""
        engine = self._vcpu.engine
        engine.request_interrupt_window(False)
        engine.request_nmi_window(False)

    # --- what the engine exits for ----------------------------------------------------------------------------------

    def apply_intercepts(self) -> None:
        vcpu, engine, intercepts = self._vcpu, self._vcpu.engine, self.intercepts
        user = vcpu.user.applied.load()
        if intercepts.msr_map is not None or self._msrs_changed:
            self._msrs_changed = intercepts.msr_map is not None
            for index in engine.free_msr_reads:
                engine.intercept_msr(index, intercepts.wants_msr(index, False) or index in user.msr_reads, True)
        ports = intercepts.io_map
        if engine.intercepts_ports:
            engine.set_port_intercepts(either(user.port_reads, ports), either(user.port_writes, ports))
        vcpu.update_intercepts()

    def memory_changed(self) -> None:
        """The permission maps may lie elsewhere now, or nowhere: L2 does not go on without them."""
        if not self._take(self.control):
            self._vcpu.make_request(Req.TRIPLE_FAULT)
            return
        self.apply_intercepts()

    def engine_wants(self) -> tuple[Intercept, int, RegisterIntercepts]:
        """What L1 adds to the engine's intercepts, exceptions and register moves."""
        if not self._vcpu.guest_mode:
            return Intercept.NONE, 0, NO_REGISTERS
        intercepts = self.intercepts
        return intercepts.engine_flags(), intercepts.exceptions, intercepts.engine_moves()

    # --- what others ask --------------------------------------------------------------------------------------------

    def handle(self, reason: api.Exit) -> bool:
        """First look at an exit of the engine in L2: True if that is all there is to do about it."""
        return emulation.handle(self._vcpu, reason)

    def check_events(self) -> bool:
        """`pending.check_events`."""
        return pending.check_events(self._vcpu)

    def tsc(self) -> int:
        """The time-stamp counter as L2 reads it."""
        return (self._vcpu.guest_tsc() + self.control.tsc_offset) & _U64

    def triple_fault(self) -> bool:
        """Whether L1 takes L2's shutdown; it has then."""
        if not self.intercepts.wants(SvmExit.SHUTDOWN):
            return False
        self.leave(NestedExit(SvmExit.SHUTDOWN))
        return True

    # --- interrupts -------------------------------------------------------------------------------------------------

    def masks_interrupts(self) -> bool:
        """V_INTR_MASKING: physical interrupts heed L1's RFLAGS.IF of before VMRUN, L2 has a flag and TPR of its own."""
        return bool(self.control.int_ctl & V_INTR_MASKING)

    def interrupt_masked(self) -> bool:
        """Whether the flag that counts holds physical interrupts off; `Vcpu.guest_mode` is set."""
        if self.masks_interrupts():
            return not self.host.rflags & RFLAGS_IF
        return self._vcpu.is_irq_blocked_by_rflags_if()

    def exits_on(self, code: SvmExit) -> bool:
        """Whether L1 intercepts INTR, NMI, ... of the L2 that is active."""
        return self._vcpu.guest_mode and self.intercepts.wants(code)

    def virtual_interrupt(self) -> int:
        """Vector of the virtual interrupt that L2 could take by GIF, its flag, shadow and TPR; -1 if there is none."""
        engine = self._vcpu.engine
        ready = self.has_virtual_interrupt() and engine.interrupt_flag and not engine.interrupt_shadow
        return virtual_vector(self.control) if ready else -1

    def has_virtual_interrupt(self) -> bool:
        """Whether V_IRQ only waits for RFLAGS.IF and the shadow. An L2 may clear GIF; STGI has the vCPU look again."""
        return self._vcpu.gif and virtual_vector(self.control) >= 0

    def inject_virtual(self) -> None:
        """V_IRQ into L2 if it can be taken and nothing else is on its way, else a window for it."""
        engine = self._vcpu.engine
        vector = self.virtual_interrupt()
        if vector >= 0 and engine.injected() is None:
            self.control.int_ctl &= ~V_IRQ
            engine.inject(Event(EventType.INTERRUPT, vector))
        elif self.has_virtual_interrupt():
            engine.request_interrupt_window(True)
