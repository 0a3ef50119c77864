"""The machine: a partition of virtual processors, the PC around it, an image, and one run of it.

Counterpart: QEMU's main loop. The machine owns what ends or restarts a run; virtual processors come back to it between
two exits. Actions on the whole machine (reset, suspend) wait until every processor has parked, then the last to arrive
does them: nothing runs while devices and memory are put back.

Shared: `_pause`, `_rounds` (of actions that are over), `_ending` and the parking queue; `_parked`, `_acting`,
`_actions` and `_tasks` are under the machine's lock.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import EngineFactory, RamBlock
from vtlkit.host.api import LockRank, RunnableHost
from vtlkit.kvm import uapi
from vtlkit.kvm.uapi import Kvm, KvmRun, MemoryRegion, Vcpu
from vtlkit.vmm import acpi, firmware
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.devices.debugexit import exit_status
from vtlkit.vmm.guest_ram import GuestRam
from vtlkit.vmm.loaders import BootImage, LoadError, LoadOptions, open_image, ram_ranges, waking_vector_state
from vtlkit.vmm.pc import Pc
from vtlkit.vmm.report import describe_vcpu
from vtlkit.vmm.vsm.partition import Partition
from vtlkit.vmm.vsm.vp import Vp

if TYPE_CHECKING:
    from vtlkit.trace.tracer import Tracer

_ROM_SLOT: Final = 100


class Outcome(enum.Enum):
    """How a run ended."""

    POWER_OFF = "power-off"
    DEBUG_EXIT = "debug exit"
    TRIPLE_FAULT = "triple fault"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    INTERNAL_ERROR = "internal error"
    DEADLOCK = "deadlock"


_STATUS: Final = {
    Outcome.POWER_OFF: 0,
    Outcome.TRIPLE_FAULT: 3,
    Outcome.TIMEOUT: 124,
    Outcome.INTERRUPTED: 130,
    Outcome.INTERNAL_ERROR: 4,
    Outcome.DEADLOCK: 6,
}


@dataclass(slots=True)
class RunResult:
    """What a run came to. `status` is the process exit status; `crash` a dump of the processor that ended the run."""

    outcome: Outcome
    status: int
    message: str
    crash: str = ""
    exits: Counter[str] = field(default_factory=Counter)
    user_exits: Counter[str] = field(default_factory=Counter)
    vtl_switches: int = 0
    instructions: int | None = None
    virtual_ns: int = 0
    kicked_entries: int = 0
    """Calls of `Vcpu.run` that came while all vCPUs were kicked."""


class Machine:
    """One machine; it runs once."""

    def __init__(
        self,
        config: MachineConfig,
        host: RunnableHost,
        engines: EngineFactory,
        console: Callable[[bytes], None],
        trace: Tracer | None = None,
    ) -> None:
        self.config = config
        self.host = host
        self.engines = engines
        try:
            self.ram = RamBlock(config.memory)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"{config.memory >> 20} MiB of guest memory cannot be had: {error}") from error
        self._image: BootImage | None = None
        self._lock = host.lock("machine", LockRank.LEAF)
        self._queue = host.wait_queue("machine-parking")
        self._pause = host.cell(False, "machine-pause")
        self._ending = host.cell(False, "machine-ending")
        self._woken = host.cell(False, "machine-woken")
        self._rounds = host.cell(0, "machine-rounds")
        self._parked = self._tasks = 0
        self._actions: list[Callable[[], None]] = []
        self._acting = self._suspended = False
        self._outcome: tuple[Outcome, int, str, str] | None = None
        self._instructions = 0
        self.kvm = Kvm(
            host,
            engines,
            vendor=config.vendor,
            nested=config.nested,
            tlb_flush_inhibit=config.tlb_flush_inhibit,
            trace=trace,
        )
        rom = MemoryRegion(_ROM_SLOT, firmware.ROM_GPA, firmware.ROM_SIZE, RamBlock(firmware.ROM_SIZE))
        self.partition = partition = Partition(
            self.kvm,
            self._regions(),
            [rom],
            cpus=config.cpus,
            vtls=config.vtls,
            hyperv=config.hyperv,
            supervisor=self,
            vtl_wait=config.vtl_wait,
            halt_poll_ns=config.halt_poll_ns,
        )
        self.pc = Pc(host, partition.vtl0.vm, self.ram, partition.ports, cpus=config.cpus, events=self, console=console)
        partition.vtl0.vm.answer_ports(self.pc.ports.read, self.pc.ports.write)

    def _regions(self) -> list[MemoryRegion]:
        regions = []
        offset = 0
        for slot, (start, end) in enumerate(ram_ranges(self.config.memory)):
            regions.append(MemoryRegion(slot, start, end - start, self.ram, offset))
            offset += end - start
        return regions

    # --- the image --------------------------------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        """Read and check the image; it is put into memory when the run starts.

        Raises:
            LoadError: one line that says what is wrong and what to do.
        """
        options = LoadOptions(append=self.config.append, initrd=self.config.initrd, rsdp_gpa=self.pc.tables.rsdp_gpa)
        self._image = open_image(path, options)
        # A trial run of the loader: an image that does not fit is refused before anything runs.
        self._boot()

    def _boot(self) -> None:
        """Put firmware tables and image into memory and the boot processor at its entry."""
        if self._image is None:
            raise LoadError("no image has been loaded")
        memory = GuestRam(self.partition.vtl0.vm.memory, self.config.memory)
        for gpa, blob in self.pc.tables.blobs:
            memory.write(gpa, blob)
        memory.write(firmware.CODE_GPA, firmware.image())
        memory.write(firmware.ROM_GPA, firmware.rom())
        state = self._image.load(memory)
        vcpu = self.partition.vps[0].vcpus[0]
        state.sregs.apic_base = vcpu.get_sregs().apic_base
        vcpu.set_sregs(state.sregs)
        vcpu.set_regs(state.regs)

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, timeout_ns: int | None = None) -> RunResult:
        """Run until the guest ends the run, `stop` is called, or `timeout_ns` of host time has passed."""
        timer = self.host.timer(lambda: self.stop(Outcome.TIMEOUT.value), "machine-timeout")
        if timeout_ns is not None:
            timer.start(self.host.now_ns() + timeout_ns)
        for vp in self.partition.vps:
            vp.start()
        try:
            self.host.run()
        finally:
            timer.cancel()
        return self.result()

    def result(self) -> RunResult:
        """What the run has come to so far; after `run` has raised, too. Without a reason to end it is a deadlock."""
        deadlock = (Outcome.DEADLOCK, _STATUS[Outcome.DEADLOCK], "every processor ended without ending the run", "")
        outcome, status, message, crash = self._outcome or deadlock
        result = RunResult(outcome, status, message, crash, virtual_ns=self.host.now_ns())
        for statistics in self.partition.statistics():
            result.exits.update(statistics.all_exits())
            result.user_exits.update(statistics.user_exits)
            result.kicked_entries += statistics.kicked_entries
        result.vtl_switches = sum(vp.switches for vp in self.partition.vps)
        result.instructions = self._instructions if self.engines.counts_instructions() else None
        return result

    def stop(self, reason: str) -> None:
        """End the run from a signal handler, a timer or another thread; never blocks.

        `reason` is "timeout" or "interrupted".
        """
        outcome = Outcome.TIMEOUT if reason == Outcome.TIMEOUT.value else Outcome.INTERRUPTED
        self._end(outcome, _STATUS[outcome], f"the run was ended: {reason}", interrupt=True)

    def _end(self, outcome: Outcome, status: int, message: str, crash: str = "", *, interrupt: bool = False) -> None:
        if self._outcome is None:
            self._outcome = (outcome, status, message, crash)
        self._ending.store(True)
        for vcpu in self.partition.all_vcpus():
            if interrupt and self.host.deterministic:
                # A signal handler may run between any two operations of the simulator: only plain stores here.
                vcpu.set_immediate_exit()
            else:
                vcpu.signal()
        if interrupt and self.host.deterministic:
            # Sleeping processors cannot be woken by plain stores: the host ends their tasks where they are.
            self.host.stop()
        else:
            self._queue.wake()
            self.partition.wake_all()

    def _give_up(self, message: str, crash: str = "") -> None:
        self._end(Outcome.INTERNAL_ERROR, _STATUS[Outcome.INTERNAL_ERROR], message, crash)

    # --- what virtual processors ask (vsm.vp.Supervisor) ------------------------------------------------------------

    def ending(self) -> bool:
        return self._ending.load()

    def must_park(self) -> bool:
        return self._pause.load()

    def task_started(self) -> None:
        with self._lock:
            self._tasks += 1

    def vcpu_finished(self, vcpu: Vcpu) -> None:
        with self._lock:
            self._instructions += vcpu.engine.instructions() or 0

    def task_finished(self) -> None:
        with self._lock:
            self._tasks -= 1
        self._run_actions_if_parked()

    def park(self) -> None:
        """Wait until the action on the whole machine has been done; the last to arrive does it."""
        with self._lock:
            self._parked += 1
            rounds = self._rounds.load()
        self._run_actions_if_parked()
        self.host.wait_event(self._queue, lambda: self._rounds.load() != rounds or self._ending.load())

    def _run_actions_if_parked(self) -> None:
        with self._lock:
            # Two tasks may both find that all are there: one of them acts.
            if self._acting or not self._actions or self._parked < self._tasks or self._ending.load():
                return
            self._acting = True
        while actions := self._next_actions():
            for action in actions:
                action()
        self._queue.wake()

    def _next_actions(self) -> list[Callable[[], None]]:
        """What has been asked for since; if nothing has, the round is over and every task goes on."""
        with self._lock:
            actions, self._actions = self._actions, []
            if not actions:
                self._acting = False
                # Those that are on their way out count no more: they park again if they are asked to.
                self._parked = 0
                self._pause.store(False)
                self._rounds.fetch_add(1)
            return actions

    def _request_action(self, action: Callable[[], None]) -> None:
        with self._lock:
            self._actions.append(action)
            self._pause.store(True)
        for vcpu in self.partition.all_vcpus():
            vcpu.signal()
        self.partition.wake_all()

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        """An exit that is not the partition's business."""
        if isinstance(exit_, uapi.Io):
            if exit_.write:
                self.pc.ports.write(exit_.port, exit_.size, exit_.data)
            else:
                exit_.data = self.pc.ports.read(exit_.port, exit_.size)
        elif isinstance(exit_, uapi.Mmio):
            if exit_.write:
                self.pc.mmio.write(exit_.gpa, exit_.size, exit_.data)
            else:
                exit_.data = self.pc.mmio.read(exit_.gpa, exit_.size)
        elif isinstance(exit_, uapi.Shutdown):
            message = f"triple fault on VP {vp.index}"
            self._end(Outcome.TRIPLE_FAULT, _STATUS[Outcome.TRIPLE_FAULT], message, describe_vcpu(vp.index, vcpu))
        elif isinstance(exit_, uapi.SystemEventExit):
            self._system_event(vp, vcpu, exit_)
        elif isinstance(exit_, uapi.InternalErrorExit):
            self._give_up(f"VP {vp.index} cannot go on: {exit_.message}", describe_vcpu(vp.index, vcpu))
        else:
            self._give_up(f"VP {vp.index}: nothing handles a {exit_.reason} exit", describe_vcpu(vp.index, vcpu))

    def _system_event(self, vp: Vp, vcpu: Vcpu, exit_: uapi.SystemEventExit) -> None:
        if exit_.type is uapi.SystemEvent.RESET:
            self.reset()
        elif exit_.type is uapi.SystemEvent.SHUTDOWN:
            self.power_off()
        elif exit_.type is uapi.SystemEvent.CRASH:
            data = " ".join(f"{word:#x}" for word in exit_.data)
            self._give_up(f"the guest reported a crash: {data}", describe_vcpu(vp.index, vcpu))

    # --- machine events (devices.events.MachineEvents) --------------------------------------------------------------

    def power_off(self) -> None:
        self._end(Outcome.POWER_OFF, 0, "the guest powered off")

    def reset(self) -> None:
        self._request_action(self._reset)

    def _reset(self) -> None:
        self.pc.reset()
        self.partition.reset()
        self._boot()

    def init(self) -> None:
        if len(self.partition.vtls) > 1:
            # INIT of VTL 0 alone would leave VTLs behind that no start-up code of the guest's knows.
            self.reset()
            return
        for vp in self.partition.vps:
            vp.vcpus[0].init()

    def post(self) -> None:
        self._request_action(self._post)

    def _post(self) -> None:
        self.pc.post()
        self.partition.reset()
        self._boot()

    def debug_exit(self, value: int) -> None:
        self._end(Outcome.DEBUG_EXIT, exit_status(value), f"the guest wrote {value:#x} to the debug exit port")

    def guest_panic(self) -> None:
        self._give_up("the guest says that it has crashed")

    def suspend(self) -> None:
        if self._may_suspend():
            self._woken.store(False)
            self._request_action(self._suspend)

    def _may_suspend(self) -> bool:
        if len(self.partition.vtls) == 1:
            return True
        # Nothing says what becomes of VTLs in S3: to drop their protections and keep memory would betray them.
        self._give_up("the guest suspends to memory with VTLs above 0 enabled, which is not supported")
        return False

    def wakeup(self) -> None:
        self._woken.store(True)
        self._queue.wake()

    def _suspend(self) -> None:
        """S3: sleep until a wake event, then start the boot processor at the firmware waking vector."""
        # Another processor may have enabled a VTL on its way here.
        if not self._may_suspend():
            return
        self.host.wait_event(self._queue, lambda: self._woken.load() or self._ending.load())
        if self._ending.load():
            return
        self.pc.pm.reset(waking=True)
        memory = GuestRam(self.partition.vtl0.vm.memory, self.config.memory)
        vector = acpi.waking_vector(memory.read(self.pc.tables.facs_gpa, 64))
        try:
            regs, sregs = waking_vector_state(vector)
        except ValueError as error:
            self._give_up(f"the guest suspended to memory, and cannot be woken: {error}")
            return
        self.partition.reset()
        vcpu = self.partition.vps[0].vcpus[0]
        sregs.apic_base = vcpu.get_sregs().apic_base
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
