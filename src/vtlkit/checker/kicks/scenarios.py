"""What is kicked, how, and when a kick has been answered. Two kickers a processor, so that kicks meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from vtlkit.checker.kicks import KickScenario
from vtlkit.checker.kicks.guests import VECTORS, Kind
from vtlkit.checker.kicks.world import Kicker, Place, Processor, World
from vtlkit.kvm.kvm_run import Intr, SystemEvent, SystemEventExit
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vm import Vm
from vtlkit.kvm.wait_state import WaitResult, WaitType
from vtlkit.x86.apic import DeliveryMode

_KINDS: Final = (Kind.SPIN, Kind.HALT, Kind.PORTS, Kind.DEVICE, Kind.MIX)
_RESTING: Final = (Kind.HALT, Kind.SPIN, Kind.REST, Kind.PORTS, Kind.DEVICE)
_AWAKE: Final = (Kind.SPIN, Kind.PORTS, Kind.DEVICE, Kind.MIX)
_NUDGE: Final = VECTORS[2]
_BURST: Final = 3
_PAUSE: Final = 4
_FROZEN: Final = 3
"""Looks at guests that may not move."""
_WORD: Final = 1 << 32


def _pairs(
    world: World, *rounds: Callable[[Processor, Kicker], None]
) -> list[list[tuple[str, Callable[[Kicker], None]]]]:
    """For each processor a team: a kicker for each round."""
    return [
        [(f"kicker{number}-{place}", partial(round_, processor)) for place, round_ in enumerate(rounds)]
        for number, processor in enumerate(world.processors)
    ]


def _runs(world: World, processor: Processor) -> None:
    """A processor's task: `run`, whatever comes. Now and then it takes its time in between."""
    while not world.ending:
        processor.run_expecting()
        if not world.host.choose(_PAUSE, "pause"):
            world.host.relax()


def _mixed(world: World, kinds: tuple[Kind, ...]) -> Vm:
    vm = world.build([kinds[number % len(kinds)] for number in range(world.count)])
    world.bodies += [partial(_runs, world, processor) for processor in world.processors]
    return vm


def _interrupt(processor: Processor, vector: int) -> None:
    processor.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)


# --- requests ---------------------------------------------------------------------------------------------------------


def _request(processor: Processor, kicker: Kicker) -> None:
    """A request that a processor takes wherever it is, or one that must not be waited for where it is not looked at."""
    vcpu = processor.vcpu
    if kicker.choose(3):

        def send() -> None:
            vcpu.make_request(Req.UNBLOCK)
            vcpu.kick()

        kicker.kick([processor], "a request", send, lambda: not vcpu.requests.test(Req.UNBLOCK))
    else:
        answered = vcpu.may_run_on_old_translations
        kicker.kick([processor], "a TLB flush", vcpu.request_tlb_flush, lambda: not answered())


def _requests(world: World) -> None:
    _mixed(world, _KINDS)
    world.add_kickers(_pairs(world, _request, _request))


# --- interrupts -------------------------------------------------------------------------------------------------------


def _one_by_one(processor: Processor, kicker: Kicker) -> None:
    """Each is taken once, before the next is sent."""
    vector, guest = VECTORS[0], processor.guest
    taken = guest.handled(vector)
    assert taken == kicker.rounds % _WORD, f"{processor}: an interrupt was taken twice"
    kicker.at_end = partial(_exactly, processor, vector, kicker)
    kicker.kick(
        [processor], "an interrupt", partial(_interrupt, processor, vector), lambda: guest.handled(vector) != taken
    )


def _exactly(processor: Processor, vector: int, kicker: Kicker) -> None:
    taken = processor.guest.handled(vector)
    assert taken == kicker.rounds % _WORD, f"{processor}: {kicker.rounds} interrupts sent, {taken} taken"


class _Bursts:
    """Interrupts that may meet in IRR: of each burst at least one is taken, and none that was not sent."""

    def __init__(self) -> None:
        self._sent = 0

    def __call__(self, processor: Processor, kicker: Kicker) -> None:
        vector, guest, irr = VECTORS[1], processor.guest, processor.vcpu.apic.irr
        before = guest.handled(vector)
        burst = 1 + kicker.choose(_BURST)
        self._sent += burst

        def send() -> None:
            for _ in range(burst):
                _interrupt(processor, vector)

        kicker.kick([processor], "interrupts", send, lambda: guest.handled(vector) != before and not irr.test(vector))
        assert guest.handled(vector) <= self._sent, f"{processor}: {guest.handled(vector)} interrupts of {self._sent}"


def _interrupts(world: World) -> None:
    _mixed(world, _RESTING)
    teams = _pairs(world, _one_by_one)
    for number, (team, processor) in enumerate(zip(teams, world.processors, strict=True)):
        team.append((f"bursts{number}", partial(_Bursts(), processor)))
    world.add_kickers(teams)


# --- signals ----------------------------------------------------------------------------------------------------------


def _signal(processor: Processor, kicker: Kicker, *, sleeps: bool = True) -> None:
    """EINTR: by a signal, or by `immediate_exit` where the processor never sleeps."""
    vcpu, before = processor.vcpu, processor.interrupted
    awake = not sleeps and kicker.choose(2)
    # One's signal may be taken with another's: what is not taken yet tells.
    kicker.kick(
        [processor],
        "immediate_exit" if awake else "a signal",
        vcpu.set_immediate_exit if awake else vcpu.signal,
        lambda: processor.interrupted != before and not vcpu.signal_pending(),
    )


def _any_signal(processor: Processor, kicker: Kicker) -> None:
    _signal(processor, kicker, sleeps=processor.guest.kind not in _AWAKE)


def _signals(world: World) -> None:
    _mixed(world, _KINDS)
    world.add_kickers(_pairs(world, _any_signal, _any_signal))


# --- all at once ------------------------------------------------------------------------------------------------------


def _runs_kicked(world: World, processor: Processor) -> None:
    """As `_runs`; every other one waits for the resume, the rest try again."""
    patient = processor.guest.number % 2 == 0
    while not world.ending:
        if type(processor.run_expecting()) is Intr and patient:
            processor.vcpu.wait_until_resumed()


def _kick_all(vm: Vm, world: World, kicker: Kicker) -> None:
    """Everybody out, nobody moves, everybody in again."""
    processors = world.processors
    kicker.kick(processors, "kick-all", vm.kick_all_running_vcpus, lambda: True)
    turns = [each.guest.turns() for each in processors]
    for _ in range(_FROZEN):
        kicker.linger()
        for each, then in zip(processors, turns, strict=True):
            assert each.guest.turns() == then, f"{each}, has executed while it was kicked"
    moving = [(each, each.guest.turns()) for each in processors if each.guest.kind in _AWAKE]
    for each in processors:
        if each.guest.kind not in _AWAKE and kicker.choose(2):
            # So that it is not always found asleep.
            _interrupt(each, _NUDGE)
    kicker.kick(
        [each for each, _ in moving],
        "the resume",
        vm.resume_all_kicked_vcpus,
        lambda: all(each.guest.turns() != then for each, then in moving),
        counts=False,
    )


def _all(world: World) -> None:
    vm = world.build([_KINDS[number % len(_KINDS)] for number in range(world.count)])
    world.bodies += [partial(_runs_kicked, world, processor) for processor in world.processors]
    round_ = partial(_kick_all, vm, world)
    world.add_kickers([[("kicker0", round_), ("kicker1", round_)]], per_round=len(world.processors))


# --- waiting ----------------------------------------------------------------------------------------------------------


def _waits(world: World, processor: Processor) -> None:
    """A processor's task: wait as an inactive VTL does, by the call or the MP state; take what came; wait again."""
    vcpu, by_call = processor.vcpu, processor.guest.number % 2 == 0
    while not world.ending:
        processor.inside = True
        woken = vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.WAKEUP if by_call else _waits_by_state(processor)
        processor.inside = False
        if not woken:
            processor.interrupted += 1
            continue
        processor.woken += 1
        while type(processor.run_expecting()) is Intr and not world.ending:
            pass
        vcpu.complete_exit()


def _waits_by_state(processor: Processor) -> bool:
    vcpu = processor.vcpu
    vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
    exit_ = vcpu.run()
    vcpu.set_mp_state(MpState.RUNNABLE)
    if type(exit_) is Intr:
        return False
    assert type(exit_) is SystemEventExit, f"{processor}: {exit_}"
    assert exit_.type is SystemEvent.WAKEUP, f"{processor}: {exit_}"
    return True


def _waiters(world: World) -> None:
    world.build([Kind.PORTS] * world.count)
    world.bodies += [partial(_waits, world, processor) for processor in world.processors]
    world.add_kickers(_pairs(world, _one_by_one, _signal))


# --- suspended --------------------------------------------------------------------------------------------------------


def _inhibit(flusher: Processor, target: Processor, kicker: Kicker) -> None:
    """Nothing but the end of the inhibit wakes who is suspended on it."""
    guest, inhibit = flusher.guest, target.vcpu.hyperv_set_tlb_flush_inhibit
    inhibit(True)
    if kicker.choose(2):
        kicker.until(lambda: flusher.place() is Place.BLOCKED)
    else:
        kicker.linger()
    begun = guest.turns()
    # A flush may have been under way at first: the second turn needs the inhibit's end.
    kicker.kick([flusher], "UNBLOCK", partial(inhibit, False), lambda: (guest.turns() - begun) % _WORD >= 2)


def _suspended(world: World) -> None:
    pairs = ((Kind.FLUSH, (Kind.HALT, Kind.SPIN)[number % 2]) for number in range((world.count + 1) // 2))
    world.build([kind for pair in pairs for kind in pair], hyperv=True)
    world.bodies += [partial(_runs, world, processor) for processor in world.processors]
    targets = zip(world.processors[::2], world.processors[1::2], strict=True)
    world.add_kickers([[(f"kicker{number}", partial(_inhibit, *pair))] for number, pair in enumerate(targets)])


SCENARIOS: Final = (
    KickScenario("request", "a processor looks at every request that is kicked", _requests),
    KickScenario("interrupt", "every interrupt is taken, and none twice", _interrupts),
    KickScenario("signal", "every signal and every immediate_exit ends a run", _signals),
    KickScenario("kick-all", "a kicked processor is out, stays out, and goes on when it is resumed", _all),
    KickScenario("wait", "no wait for an inactive VTL's event sleeps through it, or through a signal", _waiters),
    KickScenario("suspend", "no processor that waits for a TLB sleeps on when it may flush it", _suspended),
)
