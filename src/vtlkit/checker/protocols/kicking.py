"""The worlds of the protocols `kick.*`: vCPUs that run or halt, and tasks that kick all of them and let them in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vtlkit.checker.protocols.rig import CheckedProcessor, CheckedRig, run_until_kicked
from vtlkit.checker.scenarios.rig import Script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Cell, Host
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.kvm_run import Intr
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm


class World:
    """A guest's instructions look whether they may be executed. User space calls `run` until it has been interrupted
    so many times, and after each waits for the resume, as the better callers do."""

    def __init__(
        self,
        host: Host,
        design: KickDesign,
        vcpus: int,
        kickers: int,
        runs: int,
        *,
        halted: bool,
        resumed: bool = True,
        alter: Callable[[Vm], None],
    ) -> None:
        self.out: Cell[int] = host.cell(0, "kicks that hold")
        self.sticky = design is KickDesign.STICKY
        self.halted = halted
        self.runs = runs
        self.resumed = resumed
        self.rig = CheckedRig(host, [self._program] * vcpus)
        self.rig.vm.set_kick_design(design)
        alter(self.rig.vm)
        for vcpu in self.rig.vcpus:
            self.rig.spawn(partial(self._user, vcpu), f"vcpu {vcpu.vcpu_id}")
        for number in range(kickers):
            self.rig.spawn(self._kicker, f"kicker {number}" if kickers > 1 else "kicker")

    def _program(self, engine: CheckedProcessor) -> Script:
        while True:
            if self.sticky:
                yield ops.Host(self._look)
            yield ops.Hlt() if self.halted else run_until_kicked(engine)

    def _look(self) -> None:
        assert not self.out.load(), "a guest executes while it is kicked"

    def _user(self, vcpu: Vcpu) -> None:
        # What ends the last run is the kicker's signal.
        for _ in range(self.runs):
            exit_ = vcpu.run()
            assert isinstance(exit_, Intr), exit_
            if self.resumed:
                vcpu.wait_until_resumed()

    def _kicker(self) -> None:
        vm = self.rig.vm
        vm.kick_all_running_vcpus()
        if self.sticky:
            self.out.store(1)
            self.out.store(0)
        if not self.resumed:
            return
        vm.resume_all_kicked_vcpus()
        for number in range(len(self.rig.vcpus)):
            self.rig.vcpus[number].signal()
