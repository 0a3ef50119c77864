"""One virtual processor: its state, its requests, and the calls of KVM's vCPU ioctls.

Mirrors `struct kvm_vcpu` and virt/kvm/kvm_main.c's vCPU half. `run` and the register calls hold the vCPU's mutex; the
state they touch belongs to whoever holds it. Shared with other tasks, and nothing else is: `requests`, `mode`,
`events.nmi_queued`, `events.apic_events`, `events.sipi_vector`, `_signal`, the wait queue, and what `lapic` lists.

The kick protocol (docs/design/requests.md): a sender makes the request, then reads `mode`; the vCPU stores `mode`, then
reads the requests. Either the sender sees IN_GUEST_MODE and kicks the engine, or the vCPU sees the request.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from vtlkit.engine.api import PAGE_SIZE, Engine
from vtlkit.host.api import Cell, LockRank, Task
from vtlkit.kvm import inactive, vcpu_events
from vtlkit.kvm import run as run_loop
from vtlkit.kvm.cpuid import CpuidTable
from vtlkit.kvm.device_pages import VcpuDevices
from vtlkit.kvm.events import PENDING_INIT, PENDING_SIPI, EventQueue
from vtlkit.kvm.hyperv.flush_inhibit import KernelSection, inside
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.kick_all import wait_until_resumed
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.lapic import LocalApic
from vtlkit.kvm.mmu import EngineMap
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.msrs import Msrs
from vtlkit.kvm.nested.state import get_nested_state, set_nested_state
from vtlkit.kvm.nested.svm import Nested
from vtlkit.kvm.pollable import Pollable
from vtlkit.kvm.requests import Req
from vtlkit.kvm.reset import vcpu_reset
from vtlkit.kvm.statistics import VcpuStatistics
from vtlkit.kvm.translate import translate
from vtlkit.kvm.user_intercepts import UserIntercepts, UserInterceptState, engine_intercepts
from vtlkit.kvm.vcpu_state import VcpuState
from vtlkit.kvm.vcpu_time import VcpuTime
from vtlkit.kvm.wait import ignores_rflags_if, suspend, wait
from vtlkit.kvm.wait_state import WaitResult, WaitState, check_arguments
from vtlkit.x86.msr import APICBASE_BASE, APICBASE_ENABLE, X2APIC_ENABLE
from vtlkit.x86.registers import CR0_PE

if TYPE_CHECKING:
    from vtlkit.kvm.vendor.api import Vendor
    from vtlkit.kvm.vm import Vm
    from vtlkit.trace.tracer import VcpuTrace


class Mode(enum.IntEnum):
    """Where the vCPU is, for senders of kicks (include/linux/kvm_host.h)."""

    OUTSIDE_GUEST_MODE = 0
    IN_GUEST_MODE = 1
    EXITING_GUEST_MODE = 2


class Vcpu(VcpuTime, VcpuState):
    """See the module. Made by `Vm.create_vcpu`."""

    def __init__(self, vm: Vm, vcpu_id: int, engine: Engine, apic_id: int, is_bsp: bool) -> None:
        self.vm = vm
        self.vcpu_id = vcpu_id
        self.host = vm.host
        self.name = vm.namespaces.vcpu_name(vcpu_id)
        self.trace: VcpuTrace | None = None if vm.trace is None else vm.trace.vcpu(vcpu_id)
        self.engine = engine
        self.vendor: Vendor = vm.vendor
        self.is_bsp = is_bsp
        self.mutex = self.host.lock(f"{self.name}-mutex", LockRank.VCPU)
        self.running = vm.kicks.transaction.reading()
        """Held, inside the mutex, by every call that runs the vCPU or blocks as it: kick-all waits for it to end."""
        self.wait_queue = self.host.wait_queue(f"{self.name}-wait")
        self.requests = self.host.bitmap(f"{self.name}-requests")
        self.mode = self.host.cell(Mode.OUTSIDE_GUEST_MODE, f"{self.name}-mode")
        self._signal = self.host.cell(False, f"{self.name}-signal")
        self.startup_blocked = self.host.cell(False, f"{self.name}-startup-blocked")
        """INIT and SIPI are dropped: user space alone starts this vCPU."""
        self.vtl_inactive = False
        """User space runs another VTL of the processor: RFLAGS.IF does not count for what is a wake event. Written by
        the task that runs the processor's vCPUs."""
        self.waiting = WaitState()
        self._listener: Callable[[], None] | None = None
        self._ring: Callable[[], None] | None = None
        """Makes the descriptor readable, once there is one."""
        self._pollable: Cell[Pollable | None] = self.host.cell(None, f"{self.name}-descriptor")
        self.pauses_alone = False
        """PAUSE does not exit for now, as nobody else wants to run: leave the guest if it wakes somebody."""
        self.task: Task | None = None
        self.statistics = VcpuStatistics()
        self.user_intercepts: UserIntercepts | None = None
        self.user = UserInterceptState(self)
        self.gif = True
        """SVM's global interrupt flag: clear, it holds off every interrupt, NMI and INIT."""
        self.guest_mode = False
        """L2 is active: the guest runs a guest of its own (`is_guest_mode`)."""
        self.nested = Nested(self)
        self.pending_exit: KvmRun | None = None
        """The exit that user space has been given and whose answer `run` still has to take."""
        self.exit_length = 0
        """Length of the instruction that `pending_exit` completes."""
        self.tsc_offset = vm.tsc_offset
        self.tsc_adjust = 0
        self.clock_mark = 0
        self.cpuid = CpuidTable()
        self.mp_state = MpState.RUNNABLE if is_bsp else MpState.UNINITIALIZED
        self.events = EventQueue(self)
        self.namespace, number = vm.namespaces.split(vcpu_id)
        self.apic: LocalApic = LocalApic(self, self.namespace.bus, apic_id=apic_id, is_bsp=is_bsp)
        self.preemption_timer = vm.vendor.preemption_timer(self)
        """For exits at a given time, where the vendor makes them."""
        self.hv: HvVcpu = HvVcpu(self, number, self.namespace.hv)
        self.section: KernelSection | None = self.hv.hv_vm.flush_inhibits.section()
        self.apic.on_eoi = self.hv.on_eoi
        engine.share_task_priority(self.apic.get_tpr, self.apic.set_tpr)
        self.apic.trace = self.trace
        self.msrs = Msrs(self)
        self.devices: VcpuDevices = VcpuDevices(self)
        self.map = EngineMap(engine, vm.memory, self.devices)
        self.reset(init_event=False)

    # --- reset ----------------------------------------------------------------------------------------------------

    def reset(self, *, init_event: bool) -> None:
        """RESET, or INIT (`kvm_vcpu_reset`): architectural start values, interrupt state forgotten."""
        vcpu_reset(self, init_event=init_event)

    def reset_to_power_on(self) -> None:
        """A machine reset (RESET#) of this vCPU."""
        self.reset(init_event=False)
        self.events.apic_events.clear(PENDING_INIT)
        self.events.apic_events.clear(PENDING_SIPI)
        self.mp_state = MpState.RUNNABLE if self.is_bsp else MpState.UNINITIALIZED
        self.tsc_offset = self.vm.tsc_offset
        self.tsc_adjust = 0

    def start_at(self, sipi_vector: int) -> None:
        """SIPI: real mode at `sipi_vector` << 12 (`kvm_vcpu_deliver_sipi_vector`)."""
        sregs = self.engine.get_sregs()
        sregs.cs.selector = sipi_vector << 8
        sregs.cs.base = sipi_vector << 12
        self.engine.set_sregs(sregs)
        self.engine.regs.rip = 0

    @property
    def apic_group(self) -> int:
        """The APIC ID group it is in (`kvm_apic_group`); 0 in a VM without groups."""
        return self.namespace.group

    # --- requests and kicks ---------------------------------------------------------------------------------------

    def make_request(self, request: Req) -> None:
        """Set the request bit; earlier stores are seen by whoever sees the bit (`kvm_make_request`). From any task."""
        self.host.smp_wmb()
        self.requests.set(request)
        if self.trace is not None:
            self.trace.make_request(request.name)

    def check_request(self, request: Req) -> bool:
        """Take the request if it is set (`kvm_check_request`)."""
        if self.requests.test(request):
            self.requests.clear(request)
            self.host.smp_mb()
            return True
        return False

    def kick(self) -> None:
        """Wake the vCPU if it blocks, make it exit if it runs guest code (`kvm_vcpu_kick`). Any task; never blocks."""
        if self.trace is not None:
            self.trace.kick()
        if not self.wait_queue.wake():
            self.kick_running()
        # Loaded once each: user space may stop listening meanwhile.
        listener, ring = self._listener, self._ring
        if listener is not None:
            listener()
        if ring is not None:
            ring()

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call `listener` whenever the vCPU is kicked, as a poll hears of it: in the sender's context, so it must not
        block; behind a full barrier, so that `wake_event_pending` sees what the kick was about."""
        self._listener = listener

    def fileno(self) -> int:
        """A descriptor for select, poll, epoll and event loops, readable when a wake event is pending, sometimes when
        none is: `pollable` says when, `wake_event_pending` tells. Made at the first call, closed with the vCPU."""
        pollable = self._pollable.load()
        if pollable is None:
            pollable = Pollable()
            if (other := self._pollable.cmpxchg(None, pollable)) is not None:
                pollable.close()
                return other.fileno()
            self._ring = pollable.ring
            # What came before anybody heard of it is for the first look.
            pollable.ring()
        return pollable.fileno()

    def wake_event_pending(self) -> bool:
        """Whether a wait of this vCPU would end at once with a wake event. For the task that runs it, outside `run`."""
        pollable = self._pollable.load()
        if pollable is None:
            return inactive.wake_event_pending(self)
        # Emptied before the look: who stores an event after the look rings after it.
        pollable.silence()
        self.host.smp_mb()
        pending = inactive.wake_event_pending(self)
        if pending:
            pollable.ring()
        return pending

    def interrupt_deliverable(self) -> bool:
        """Whether it would take an interrupt or NMI at once, were its VTL active. As `wake_event_pending`."""
        return inactive.interrupt_deliverable(self)

    def kick_running(self) -> None:
        """Make the vCPU exit if it is in the guest; let it sleep if it blocks. From any task; never blocks."""
        if self.mode.cmpxchg(Mode.IN_GUEST_MODE, Mode.EXITING_GUEST_MODE) == Mode.IN_GUEST_MODE:
            if self.trace is not None:
                self.trace.kick_running()
            self.engine.kick()

    def signal(self) -> None:
        """What a signal to the thread in KVM_RUN does: the current or next `run` returns INTR. From any task."""
        if self.trace is not None:
            self.trace.signal()
        self._signal.store(True)
        self.host.smp_mb()
        self.kick()

    def set_immediate_exit(self) -> None:
        """`kvm_run.immediate_exit` set by a signal handler: as `signal`, but a blocked vCPU is not woken."""
        self._signal.store(True)
        self.engine.kick()

    def request_tlb_flush(self) -> None:
        """Drop cached translations before the guest runs on. From any task."""
        self.make_request(Req.TLB_FLUSH)
        self.kick_running()

    def may_run_on_old_translations(self) -> bool:
        """Whether guest code may still execute under translations that `request_tlb_flush` was to drop. From any task.
        Outside the guest the request is looked at before the next instruction."""
        return self.requests.test(Req.TLB_FLUSH) and self.mode.load() != Mode.OUTSIDE_GUEST_MODE

    def signal_pending(self) -> bool:
        return self._signal.load()

    def take_signal(self) -> bool:
        """Take the signal, as returning to user space does."""
        return self._signal.load() and self._signal.xchg(False)

    def may_run_on_old_map(self) -> bool:
        """Whether guest code may still execute under a memory map that is not the present one. From any task."""
        if not self.map.behind():
            return False
        return self.may_execute()

    def may_execute(self) -> bool:
        """False outside the guest, between two instructions: requests are looked at before the next one. Any task."""
        return self.mode.load() != Mode.OUTSIDE_GUEST_MODE or not self.engine.at_boundary

    # --- what an APIC needs of its vCPU -----------------------------------------------------------------------------

    def deliver_nmi(self) -> None:
        self.events.queue_nmi()

    def deliver_smi(self) -> None:
        """SMM is not offered: an SMI is dropped, as a processor without SMM handler set up would be left alone."""

    def deliver_init(self) -> None:
        if self.startup_blocked.load():
            return
        self.events.apic_events.clear(PENDING_SIPI)
        self.events.apic_events.set(PENDING_INIT)
        self.make_request(Req.EVENT)

    def deliver_sipi(self, vector: int) -> None:
        if self.startup_blocked.load():
            return
        self.events.sipi_vector.store(vector)
        self.host.smp_wmb()
        self.events.apic_events.set(PENDING_SIPI)
        self.make_request(Req.EVENT)

    def apic_base_changed(self, old: int, new: int) -> None:
        self.engine.set_apic_base(new)
        enabled = new & APICBASE_ENABLE and not new & X2APIC_ENABLE
        page = new & APICBASE_BASE if enabled else None
        for changed in self.devices.move_apic(page):
            self.map.refresh(changed, PAGE_SIZE)

    def eoi_ioapic(self, vector: int) -> None:
        if self.vm.ioapic is not None:
            self.vm.ioapic.eoi(self.vcpu_id, vector, self.namespace.bus)

    def wants_windows(self) -> bool:
        return self.events.windows is not None

    def hv_auto_eoi(self, vector: int) -> bool:
        return self.hv.auto_eoi(vector)

    suspend = suspend

    # --- state questions --------------------------------------------------------------------------------------------

    def is_64bit(self) -> bool:
        """Whether the guest executes 64-bit code."""
        return self.engine.code_bits() == 64

    def protected_mode(self) -> bool:
        return bool(self.engine.cr0 & CR0_PE)

    def cpl(self) -> int:
        return self.engine.cpl

    def is_irq_blocked_by_rflags_if(self) -> bool:
        """RFLAGS.IF blocks interrupts, but for a vCPU whose VTL is inactive, or that idles (TLFS: IF is ignored)."""
        return not (self.engine.interrupt_flag or ignores_rflags_if(self))

    def queue_exception(self, vector: int, error_code: int | None = None) -> None:
        self.events.queue_exception(vector, error_code)

    def skip_instruction(self, length: int) -> None:
        self.engine.skip(length)

    def left_run(self) -> None:
        """Whoever polls is to look: no kick will tell of what came while the vCPU was in `run`."""
        if (ring := self._ring) is not None:
            ring()

    # --- the ioctls -------------------------------------------------------------------------------------------------

    run = run_loop.run
    complete_exit = run_loop.complete_exit

    def wait(self, kind: int, flags: int = 0) -> WaitResult:
        """Block, without entering the guest and without polling, until a wake event of a `WaitType` is pending, or a
        signal or a kick of all comes. Only one task at a time runs a vCPU or waits.

        Raises:
            KvmError: EINVAL for an unknown type, or flags that it does not take.
        """
        known, wanted = check_arguments(kind, flags)
        with self.mutex, self.running, inside(self.section):
            return wait(self, known, wanted)

    wait_until_resumed = wait_until_resumed

    def update_intercepts(self) -> None:
        """After a change of the state or the wishes that what exits depends on."""
        engine_intercepts(self)

    def hyperv_set_tlb_flush_inhibit(self, inhibit: bool) -> None:
        """KVM_HYPERV_SET_TLB_FLUSH_INHIBIT (docs/design/tlb-flush-inhibit.md). From any task outside `run`; blocks
        only in the posted design."""
        self.hv.set_tlb_flush_inhibit(inhibit)

    translate2 = translate
    get_vcpu_events = vcpu_events.get
    set_vcpu_events = vcpu_events.set
    get_nested_state = get_nested_state
    set_nested_state = set_nested_state

    def nmi(self) -> None:
        """KVM_NMI."""
        self.deliver_nmi()
        self.kick()

    def init(self) -> None:
        """The processor's INIT# pin. From any task."""
        self.deliver_init()
        self.kick()

    def close(self) -> None:
        """Destroy the vCPU; called by the task that runs it."""
        self.vm.forget_vcpu(self)
        self.hv.destroy()
        self.apic.destroy()
        self.vm.memory.unfollow(self.map)
        self._ring = None
        if (pollable := self._pollable.load()) is not None:
            pollable.close()
        self.engine.close()
