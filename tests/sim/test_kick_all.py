"""A kick reaches a vCPU wherever it is, holds until the resume, and loses nothing: simulator and threads.

docs/design/kick.md; the races are in the scenarios of `vtlkit.checker.scenarios.kick`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, Script, engine_of, recorder
from tests.unit.kvm.hyperv.flush_rig import FlushMachine
from vtlkit.checker.scenarios.wait import set_block
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.kick_all import KickDesign
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Mode, Vcpu
from vtlkit.kvm.wait import Ended, check_block
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.registers import RFLAGS_IF

VECTOR = 0x41
HOSTS: tuple[Callable[[], RunnableHost], ...] = (Simulator, ThreadHost)

on_both_hosts = pytest.mark.parametrize("make_host", HOSTS)
in_every_design = pytest.mark.parametrize("design", KickDesign)


@dataclass
class Place:
    """A vCPU somewhere: whether it has got there, and what makes it end with another exit than INTR."""

    machine: Machine
    vcpu: Vcpu
    reached: Callable[[], bool]
    finish: Callable[[], object]
    progress: Callable[[], int] = lambda: 0
    """Guest instructions executed, or so."""


def sleeping(vcpu: Vcpu) -> Callable[[], bool]:
    return lambda: vcpu.wait_queue.waiters() > 0


def in_the_guest(host: RunnableHost) -> Place:
    stop = host.cell(False, "stop")
    count = host.cell(0, "count")

    def program(_engine: object) -> Script:
        while not stop.load():
            yield ops.Host(lambda: count.fetch_add(1))
            yield ops.Compute(20)
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program, host=host)
    return Place(machine, machine.vcpu, lambda: count.load() > 20, lambda: stop.store(True), count.load)


def halted(host: RunnableHost) -> Place:
    log: list[int] = []

    def program(_engine: object) -> Script:
        while not log:
            yield ops.Hlt()
        yield ops.Out(DONE, 1, 0)

    machine = Machine(program, handlers={VECTOR: recorder(log)}, host=host)
    machine.cpu.rflags |= RFLAGS_IF

    def interrupt() -> None:
        machine.vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)

    return Place(machine, machine.vcpu, sleeping(machine.vcpu), interrupt)


def not_started(host: RunnableHost) -> Place:
    def program(_engine: object) -> Script:
        yield ops.Out(DONE, 1, 0)

    machine = Machine(programs={0x1000: program}, vcpus=2, host=host)
    vcpu = machine.vcpus[1]

    def start() -> None:
        vcpu.init()
        vcpu.deliver_sipi(1)
        vcpu.kick()

    return Place(machine, vcpu, sleeping(vcpu), start)


def of_an_inactive_vtl(host: RunnableHost) -> Place:
    machine = Machine(host=host)
    machine.vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
    return Place(machine, machine.vcpu, sleeping(machine.vcpu), machine.vcpu.nmi)


def in_a_completion_that_blocks(host: RunnableHost) -> Place:
    machine = Machine(host=host)
    vcpu = machine.vcpu
    set_block(vcpu, True)
    return Place(machine, vcpu, sleeping(vcpu), vcpu.nmi)


def halt_polling(host: RunnableHost) -> Place:
    """For longer than the test takes."""
    place = halted(host)
    vcpu = place.vcpu
    vcpu.vm.halt_poll_max_ns = vcpu.waiting.poll.window_ns = 1 << 60
    place.reached = lambda: vcpu.mp_state is MpState.HALTED
    return place


def suspended_on_a_flush(host: RunnableHost, design: FlushInhibitDesign = FlushInhibitDesign.WAITING_ON) -> Place:
    guests = [lambda machine, number: machine.flush(number, 0b10), lambda *_: nothing()]
    machine = FlushMachine(guests, host=host, design=design)
    target = machine.vcpus[1]
    target.hyperv_set_tlb_flush_inhibit(True)
    return Place(machine, machine.vcpu, sleeping(machine.vcpu), lambda: target.hyperv_set_tlb_flush_inhibit(False))


def suspended_as_posted(host: RunnableHost) -> Place:
    return suspended_on_a_flush(host, FlushInhibitDesign.POSTED)


def nothing() -> Script:
    yield ops.Compute()


PLACES = (
    in_the_guest,
    halted,
    halt_polling,
    not_started,
    of_an_inactive_vtl,
    in_a_completion_that_blocks,
    suspended_on_a_flush,
    suspended_as_posted,
)


def run_until_done(vcpu: Vcpu, exits: list[KvmRun]) -> None:
    while True:
        exits.append(vcpu.run())
        if not isinstance(exits[-1], Intr):
            return
        vcpu.wait_until_resumed()


def wait_for(machine: Machine, condition: Callable[[], bool]) -> None:
    while not condition():
        machine.host.relax()


@on_both_hosts
@in_every_design
@pytest.mark.parametrize("make_place", PLACES)
def test_a_kick_gets_it_out_and_the_resume_in_again(
    make_place: Callable[[RunnableHost], Place], design: KickDesign, make_host: Callable[[], RunnableHost]
) -> None:
    place = make_place(make_host())
    machine, vcpu = place.machine, place.vcpu
    vm = machine.vm
    vm.set_kick_design(design)
    exits: list[KvmRun] = []

    def kicker() -> None:
        wait_for(machine, place.reached)
        vm.kick_all_running_vcpus()
        if design is KickDesign.STICKY:
            assert vcpu.mode.load() == Mode.OUTSIDE_GUEST_MODE
            before = place.progress()
            for _ in range(50):
                machine.host.relax()
            assert place.progress() == before
        wait_for(machine, lambda: bool(exits))
        assert isinstance(exits[0], Intr)
        vm.resume_all_kicked_vcpus()
        # Somewhere else, or there again: it is reached all the same.
        place.finish()

    machine.run(lambda: run_until_done(vcpu, exits), kicker)
    assert isinstance(exits[-1], Io | SystemEventExit)
    assert all(isinstance(exit_, Intr) for exit_ in exits[:-1])
    assert vcpu.statistics.kicked_exits >= 1


@on_both_hosts
@pytest.mark.parametrize("make_place", PLACES)
def test_what_comes_during_the_kick_is_there_after_it(
    make_place: Callable[[RunnableHost], Place], make_host: Callable[[], RunnableHost]
) -> None:
    place = make_place(make_host())
    machine, exits = place.machine, list[KvmRun]()

    def kicker() -> None:
        wait_for(machine, place.reached)
        machine.vm.kick_all_running_vcpus()
        place.finish()
        machine.vm.resume_all_kicked_vcpus()

    machine.run(lambda: run_until_done(place.vcpu, exits), kicker)
    assert isinstance(exits[-1], Io | SystemEventExit)


@on_both_hosts
def test_a_vcpu_that_was_never_entered_is_kicked_and_so_is_one_that_is_made_later(
    make_host: Callable[[], RunnableHost],
) -> None:
    machine = Machine(host=make_host())
    vm, exits = machine.vm, list[KvmRun]()

    def user() -> None:
        vm.kick_all_running_vcpus()
        late = vm.create_vcpu(1)
        for vcpu in (machine.vcpu, late):
            exits.append(vcpu.run())
            exits.append(vcpu.run())
        assert machine.cpu.entries == engine_of(late).entries == []
        assert machine.vcpu.statistics.kicked_entries == late.statistics.kicked_entries == 2
        vm.resume_all_kicked_vcpus()
        late.signal()
        exits.append(late.run())
        assert late.statistics.kicked_exits == 2

    machine.run(user)
    assert [type(exit_) for exit_ in exits] == [Intr] * 5


@pytest.mark.parametrize(
    ("design", "refused"), [(KickDesign.CLEARED_BY_FIRST_EXIT, 1), (KickDesign.CLEARED_BEFORE_UNLOCK, 0)]
)
def test_the_other_designs_refuse_once_or_not_at_all(design: KickDesign, refused: int) -> None:
    machine = Machine(lambda _engine: out(5))
    vm = machine.vm
    vm.set_kick_design(design)

    def user() -> None:
        vm.kick_all_running_vcpus()
        late = vm.create_vcpu(1)
        late.set_mp_state(MpState.RUNNABLE)
        for vcpu in (machine.vcpu, late):
            exits = [type(vcpu.run()) for _ in range(3)]
            assert exits == [*([Intr] * refused), *([Io] * (3 - refused))]
        vm.resume_all_kicked_vcpus()

    machine.run(user)


def test_with_the_first_exit_a_vcpu_never_entered_is_cleared_by_the_resume() -> None:
    machine = Machine(lambda _engine: out(1))
    machine.vm.set_kick_design(KickDesign.CLEARED_BY_FIRST_EXIT)

    def user() -> None:
        machine.vm.kick_all_running_vcpus()
        machine.vm.resume_all_kicked_vcpus()
        assert isinstance(machine.vcpu.run(), Io)

    machine.run(user)


def out(count: int) -> Script:
    for _ in range(count):
        yield ops.Out(DONE, 1, 0)


def flushers(host: RunnableHost) -> None:
    """Each vCPU waits, inside `run`, for the other to leave the guest; a kicker waits for both to leave `run`."""

    def flush_again_and_again(machine: FlushMachine, number: int) -> Script:
        for _ in range(6):
            yield from machine.flush(number, 0b11)

    machine = FlushMachine([flush_again_and_again] * 2, host=host)

    def kicker() -> None:
        for _ in range(4):
            machine.vm.kick_all_running_vcpus()
            machine.vm.resume_all_kicked_vcpus()

    exits: list[list[KvmRun]] = [[], []]
    machine.run(
        lambda: run_until_done(machine.vcpus[0], exits[0]), lambda: run_until_done(machine.vcpus[1], exits[1]), kicker
    )
    assert [type(each[-1]) for each in exits] == [Io, Io]


def test_vcpus_that_wait_for_each_other_are_no_deadlock() -> None:
    for seed in range(100):
        flushers(Simulator(seed=seed, instrument=True))
    for _ in range(10):
        flushers(ThreadHost())


def test_every_wait_that_asks_check_block_ends() -> None:
    """So does one that polls before it sleeps."""
    machine = Machine()

    def user() -> None:
        vcpu = machine.vcpu
        vcpu.mp_state = MpState.HALTED
        assert check_block(vcpu) is Ended.NOT_YET
        machine.vm.kick_all_running_vcpus()
        assert check_block(vcpu) is Ended.OTHERWISE
        machine.vm.resume_all_kicked_vcpus()
        assert check_block(vcpu) is Ended.NOT_YET

    machine.run(user)


@on_both_hosts
def test_a_busy_loop_gets_intr_each_time_and_stops_nobody(make_host: Callable[[], RunnableHost]) -> None:
    machine = Machine(lambda _engine: out(1), host=make_host())
    vcpu, vm, exits = machine.vcpu, machine.vm, list[KvmRun]()
    loops = 200

    def user() -> None:
        while not exits or isinstance(exits[-1], Intr):
            exits.append(vcpu.run())

    def kicker() -> None:
        vm.kick_all_running_vcpus()
        wait_for(machine, lambda: vcpu.statistics.kicked_entries >= loops)
        vm.resume_all_kicked_vcpus()

    machine.run(kicker, user)
    assert isinstance(exits[-1], Io)
    assert vcpu.statistics.kicked_entries >= loops
    assert vcpu.statistics.user_exits["INTR"] >= loops


def test_cleared_before_unlock_who_waits_for_the_resume_is_let_in_without_one() -> None:
    machine = Machine(lambda _engine: out(1))
    vcpu, vm = machine.vcpu, machine.vm
    vm.set_kick_design(KickDesign.CLEARED_BEFORE_UNLOCK)
    hold = machine.host.cell(True, "hold")

    def slow() -> None:
        while hold.load():
            machine.host.relax()

    machine.cpu.on_run = slow

    def waiter() -> None:
        wait_for(machine, lambda: vcpu.requests.test(Req.USERSPACE_KICK))
        vcpu.wait_until_resumed()

    def release() -> None:
        wait_for(machine, sleeping(vcpu))
        hold.store(False)

    machine.run(vcpu.run, vm.kick_all_running_vcpus, waiter, release)


@on_both_hosts
def test_a_signal_ends_the_wait_for_the_resume(make_host: Callable[[], RunnableHost]) -> None:
    machine = Machine(lambda _engine: out(1), host=make_host())
    vcpu, vm = machine.vcpu, machine.vm
    woken = machine.host.cell(0, "woken")

    def user() -> None:
        vm.kick_all_running_vcpus()
        vcpu.wait_until_resumed()
        woken.store(1)
        # The signal is taken with the INTR; what it was for is looked at before the next wait.
        assert isinstance(vcpu.run(), Intr)
        assert not vcpu.signal_pending()
        vcpu.wait_until_resumed()
        woken.store(2)
        assert isinstance(vcpu.run(), Io)

    def other() -> None:
        wait_for(machine, sleeping(vcpu))
        vcpu.signal()
        wait_for(machine, lambda: woken.load() == 1)
        wait_for(machine, sleeping(vcpu))
        vm.resume_all_kicked_vcpus()

    machine.run(user, other)
    assert woken.load() == 2
