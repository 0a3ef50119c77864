"""A few lines of VMM that run two VTLs on two processors, over a Vm each and over the APIC ID groups of one.

The four rules are all that the VMM has to know (docs/design/apic-namespaces.md); where the forms differ, which is the
look-up of a sibling and the name of a namespace, the machine of the scenarios answers for both.
"""

from __future__ import annotations

import pytest

from tests.unit.kvm.namespace_worlds import BOTH_FORMS, as_vtls
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.checker.scenarios.rig import APIC_BASE, DONE, EOI, Script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.kvm_run import Hyperv, Intr, Io
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86 import apic as regs
from vtlkit.x86.registers import RFLAGS_IF

PROCESSORS = 2
REGULAR, SYNTHETIC = 0x61, 0x62
FAST = 1 << 16
TO_VTL_0 = 1 << 4 << 32


class Vp:
    """A processor: which of its VTLs is active, and who has been kicked while it was not."""

    def __init__(self, machine: Namespaces, processor: int) -> None:
        self.machine = machine
        self.lower = machine.vcpus[0][processor]
        higher = machine.sibling(self.lower, 1)
        assert higher is machine.vcpus[1][processor]
        self.higher: Vcpu = higher
        self.level = 0
        self.entered = 0
        self.kicked = machine.host.bitmap(f"vp{processor}-kicked")
        higher.vtl_inactive = True
        higher.listen(self.look)

    def look(self) -> None:
        """The higher VTL's vCPU has been kicked: the task is to see whether it has to run. From any task."""
        self.kicked.set(0)
        self.lower.signal()

    def switch(self, level: int) -> None:
        giver, taker = (self.lower, self.higher) if level else (self.higher, self.lower)
        assert giver.complete_exit() is None
        taker.copy_shared_state(giver)
        giver.vtl_inactive, taker.vtl_inactive = True, False
        self.level = level
        self.entered += level

    def run(self) -> None:
        """Run whichever VTL is active until the lower one has done."""
        while True:
            if not self.level and self.kicked.test_and_clear(0) and self.higher.wake_event_pending():
                self.switch(1)
            exit_ = (self.higher if self.level else self.lower).run()
            if isinstance(exit_, Hyperv):
                self.hypercall(exit_)
            elif isinstance(exit_, Io):
                return
            else:
                assert isinstance(exit_, Intr), exit_

    def hypercall(self, exit_: Hyperv) -> None:
        if exit_.code == Call.HvCallSendSyntheticClusterIpi:
            # Another VTL than the sender's, or it would not be here.
            assert self.level == 1
            self.machine.namespace(0).send_ipi(exit_.output_gpa, exit_.input_gpa & 0xFF)
            exit_.result = HvStatus.SUCCESS
            return
        assert exit_.code == (Call.HvCallVtlReturn if self.level else Call.HvCallVtlCall)
        exit_.complete = False
        self.switch(1 - self.level)
        if not self.level and self.higher.wake_event_pending():
            self.kicked.set(0)


def hypercall(code: int, first: int = 0, second: int = 0) -> Script:
    yield ops.Set(code, "rcx")
    yield ops.Set(first, "rdx")
    yield ops.Set(second, "r8")
    yield ops.Vmmcall()


def two_vtls(host: RunnableHost, form: Form) -> None:
    """VTL 1 of processor 0 interrupts VTL 1 of processor 1, whose processor is in VTL 0; that one, VTL 0 of both."""
    taken: dict[object, list[int]] = {}

    def handler(engine: object, event: Event) -> Script:
        taken[engine].append(event.vector)
        return end()

    def end() -> Script:
        yield EOI

    def caller(engine: object) -> Script:
        yield ops.Set(0, "rax")
        yield from hypercall(Call.HvCallVtlCall)
        yield from sleeper(engine)

    def sleeper(engine: object) -> Script:
        while not taken[engine]:
            yield ops.Hlt()
        yield ops.Out(DONE, 1, 0)

    def sender(_engine: object) -> Script:
        yield ops.Write(APIC_BASE + regs.APIC_ICR2, 4, 1 << 24)
        yield ops.Write(APIC_BASE + regs.APIC_ICR, 4, regs.APIC_INT_ASSERT | REGULAR)
        yield ops.Set(1, "rax")
        yield from hypercall(Call.HvCallVtlReturn)

    def woken(engine: object) -> Script:
        yield ops.Compute()
        assert taken[engine] == [REGULAR], "entered for the interrupt"
        yield from hypercall(Call.HvCallSendSyntheticClusterIpi | FAST, SYNTHETIC | TO_VTL_0, 0b11)
        yield ops.Set(1, "rax")
        yield from hypercall(Call.HvCallVtlReturn)

    machine = Namespaces(
        host, form, [[caller, sleeper], [sender, woken]], handlers=dict.fromkeys((REGULAR, SYNTHETIC), handler)
    )
    as_vtls(machine)
    for processors in machine.vcpus:
        for vcpu in processors:
            vcpu.engine.rflags |= RFLAGS_IF
            taken[vcpu.engine] = []
    vps = [Vp(machine, processor) for processor in range(PROCESSORS)]
    machine.run(*(vp.run for vp in vps))
    vectors = [[taken[vcpu.engine] for vcpu in processors] for processors in machine.vcpus]
    assert vectors == [[[SYNTHETIC], [SYNTHETIC]], [[], [REGULAR]]]
    assert [vp.entered for vp in vps] == [1, 1]


@BOTH_FORMS
@pytest.mark.parametrize("instrument", [False, True])
def test_two_vtls_run_over_either_form(form: Form, instrument: bool) -> None:
    for seed in range(60):
        two_vtls(Simulator(seed=seed, instrument=instrument), form)


@BOTH_FORMS
def test_and_on_threads(form: Form) -> None:
    for _ in range(10):
        two_vtls(ThreadHost(), form)
