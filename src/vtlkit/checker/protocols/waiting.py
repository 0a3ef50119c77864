"""The worlds of the protocols `wait.*`: vCPUs that wait in each way, and their wakers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

from vtlkit.checker.protocols.altered import Alter
from vtlkit.checker.protocols.rig import CheckedProcessor, CheckedRig
from vtlkit.checker.scenarios.rig import DONE, EOI, NMI, Script
from vtlkit.checker.scenarios.wait import Bell, set_block
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.host.api import Host
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.wait_state import WaitResult, WaitType
from vtlkit.x86.apic import DeliveryMode

VECTOR: Final = 0x41
_WAKEUP: Final = SystemEventExit(SystemEvent.WAKEUP)

Wait = Callable[[], None]
"""Blocks until it is told of a wake event."""
Way = Callable[[Vcpu], Wait]
"""Is called while the world is built."""


def interrupt(vcpu: Vcpu) -> None:
    """What another processor's IPI does."""
    vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)


WAKERS: Final[dict[str, Callable[[Vcpu], object]]] = {
    "interrupt": interrupt,
    "NMI": lambda vcpu: vcpu.nmi(),
    "signal": lambda vcpu: vcpu.signal(),
}
VECTORS: Final = {"interrupt": VECTOR, "NMI": NMI}


def _spawn_wakers(rig: CheckedRig, wakers: Collection[str]) -> None:
    for name in wakers:

        def body(send: Callable[[Vcpu], object] = WAKERS[name]) -> None:
            for number in range(len(rig.vcpus)):
                send(rig.vcpus[number])

        rig.spawn(body, name)


def _end_of_handler(event: Event) -> ops.Op:
    return ops.Compute(1) if event.vector == NMI else EOI


def halted(host: Host, vcpus: int, wakers: Sequence[str], alter: Alter) -> None:
    """Guests that halt until all has come; user space runs each vCPU until it has been told of all."""
    expected = {VECTORS[name] for name in wakers if name in VECTORS}

    def program(_engine: CheckedProcessor) -> Script:
        while True:
            yield ops.Hlt()

    def handler(engine: CheckedProcessor, event: Event) -> Script:
        engine.taken.append(event.vector)
        yield _end_of_handler(event)
        if set(engine.taken) == expected:
            yield ops.Out(DONE, 1, 0)

    def user(vcpu: Vcpu) -> None:
        left: set[type[KvmRun]] = {Io} if expected else set()
        left |= {Intr} if "signal" in wakers else set()
        while left:
            exit_ = vcpu.run()
            assert type(exit_) in left, f"exits with {exit_}"
            left.remove(type(exit_))

    rig = CheckedRig(host, [program] * vcpus, handlers=dict.fromkeys(expected, handler))
    _spawn(rig, alter, user)
    _spawn_wakers(rig, wakers)


def inactive(host: Host, way: Way, vcpus: int, wakers: Sequence[str], alter: Alter) -> None:
    """vCPUs of inactive VTLs: RFLAGS.IF is clear while one waits and set while it runs. User space waits until it is
    told of a wake event, and runs the vCPU, which takes what has come; until it has taken all."""
    expected = {VECTORS[name] for name in wakers if name in VECTORS}

    def program(_engine: CheckedProcessor) -> Script:
        while True:
            yield ops.Sti()
            yield ops.Compute(1)
            yield ops.Cli()
            yield ops.Out(DONE, 1, 0)

    def handler(engine: CheckedProcessor, event: Event) -> Script:
        engine.taken.append(event.vector)
        yield _end_of_handler(event)

    def user(vcpu: Vcpu, wait: Wait) -> None:
        engine = vcpu.engine
        assert isinstance(engine, CheckedProcessor)
        told = 0
        while set(engine.taken) != expected:
            wait()
            told += 1
            assert told <= len(expected), f"is told of {told} wake events"
            while not isinstance(vcpu.run(), Io):
                pass
            vcpu.complete_exit()

    rig = CheckedRig(host, [program] * vcpus, handlers=dict.fromkeys(expected, handler), interrupts=False)
    waits = {vcpu.vcpu_id: way(vcpu) for vcpu in rig.vcpus}
    _spawn(rig, alter, lambda vcpu: user(vcpu, waits[vcpu.vcpu_id]))
    _spawn_wakers(rig, wakers)


def _spawn(rig: CheckedRig, alter: Alter, user: Callable[[Vcpu], None]) -> None:
    for vcpu in rig.vcpus:
        alter(vcpu)
        rig.spawn(partial(user, vcpu), f"vcpu {vcpu.vcpu_id}")


# --- the ways to wait -------------------------------------------------------------------------------------------------


def by_mp_state(vcpu: Vcpu) -> Wait:
    """HV_INACTIVE_VTL, and `run`."""

    def wait() -> None:
        vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
        while isinstance(exit_ := vcpu.run(), Intr):
            pass
        assert exit_ == _WAKEUP, exit_
        vcpu.set_mp_state(MpState.RUNNABLE)

    return wait


def by_call(vcpu: Vcpu) -> Wait:
    """The wait call."""

    def wait() -> None:
        while vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.INTR:
            pass

    return wait


def by_completion(vcpu: Vcpu) -> Wait:
    """A completion that blocks."""

    def wait() -> None:
        set_block(vcpu, True)
        _until_completed(vcpu)

    return wait


def by_completion_that_takes_all_events_back(vcpu: Vcpu) -> Wait:
    """Armed by writing every event back as it was read: what came in between is overwritten."""

    def wait() -> None:
        events = vcpu.get_vcpu_events()
        events.hv_vtl_block = True
        vcpu.set_vcpu_events(events)
        _until_completed(vcpu)

    return wait


def _until_completed(vcpu: Vcpu) -> None:
    while isinstance(exit_ := vcpu.run(), Intr):
        pass
    assert exit_ == _WAKEUP, exit_


def by_polling(vcpu: Vcpu) -> Wait:
    """A descriptor is emptied before each look."""
    return _by_bell(vcpu, emptied_first=True)


def by_polling_emptied_after_the_look(vcpu: Vcpu) -> Wait:
    """What comes between the look and the emptying is forgotten."""
    return _by_bell(vcpu, emptied_first=False)


def _by_bell(vcpu: Vcpu, *, emptied_first: bool) -> Wait:
    bell = Bell(vcpu)

    def wait() -> None:
        vcpu.vtl_inactive = True
        if emptied_first:
            bell.rung.xchg(False)
        while not vcpu.wake_event_pending():
            if not emptied_first:
                bell.rung.xchg(False)
            bell.wait()
            if emptied_first:
                bell.rung.xchg(False)
        vcpu.vtl_inactive = False

    return wait
