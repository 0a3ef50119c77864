"""What makes known-bad variants of shipped code: objects of one world with some of their methods replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtlkit.checker.hosted.sync import CheckQueue
from vtlkit.kvm.kick_all import _let_in
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Mode, Vcpu
from vtlkit.kvm.vm import Vm

Alter = Callable[[Vcpu], None]
"""Makes a vCPU a known-bad one, before any task runs."""


class Altered:
    """An object with other methods in place of some of its own."""

    def __init__(self, original: Any, **methods: Callable[..., Any]) -> None:
        self._original = original
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        if name == "_original":
            raise AttributeError(name)
        return getattr(self._original, name)


def as_it_ships(_vcpu: Vcpu) -> None:
    """Nothing is changed."""


def sleeps_without_a_second_look(vcpu: Vcpu) -> None:
    """It enters its wait queue behind the look at what is pending, just before it sleeps."""
    queue, host = vcpu.wait_queue, vcpu.host

    def prepare(*, interruptible: bool = True) -> None:
        if not interruptible:
            # Not a wait of the vCPU, but of its user.
            queue.prepare(interruptible=False)

    def schedule() -> None:
        queue.prepare()
        host.schedule()

    vcpu.wait_queue = Altered(queue, prepare=prepare)  # type: ignore[assignment]
    vcpu.host = Altered(host, schedule=schedule)  # type: ignore[assignment]


def enters_the_queue_without_a_barrier(vcpu: Vcpu) -> None:
    """The store of the task's state may be seen behind the look at what is pending."""
    queue = vcpu.wait_queue
    assert isinstance(queue, CheckQueue)

    def prepare(*, interruptible: bool = True) -> None:
        queue.enter(interruptible=interruptible)

    vcpu.wait_queue = Altered(queue, prepare=prepare)  # type: ignore[assignment]


def is_woken_before_the_event_is_there(vcpu: Vcpu) -> None:
    """Senders kick it first, and publish afterwards what the kick was about."""
    accept = vcpu.apic.accept_irq

    def kicks_first(*arguments: Any) -> int:
        Vcpu.kick(vcpu)
        return accept(*arguments)

    vcpu.apic = Altered(vcpu.apic, accept_irq=kicks_first)  # type: ignore[assignment]
    vcpu.kick = lambda: None  # type: ignore[method-assign]


# --- entering the guest -----------------------------------------------------------------------------------------------


def enters_the_guest_without_a_barrier(vcpu: Vcpu) -> None:
    """The store of the mode may be seen behind the look at the requests."""
    mode, host = vcpu.mode, vcpu.host
    entering: list[bool] = []

    def store(value: Mode) -> None:
        mode.store(value)
        if value == Mode.IN_GUEST_MODE:
            entering.append(True)

    def smp_mb() -> None:
        if entering:
            entering.pop()
        else:
            host.smp_mb()

    vcpu.mode = Altered(mode, store=store)  # type: ignore[assignment]
    vcpu.host = Altered(host, smp_mb=smp_mb)  # type: ignore[assignment]


def looks_before_its_mode_is_published(vcpu: Vcpu) -> None:
    """The look at the requests that follows the store of the mode gives what one before it would have given."""
    mode, requests = vcpu.mode, vcpu.requests
    early: list[int] = []

    def store(value: Mode) -> None:
        if value == Mode.IN_GUEST_MODE:
            early.append(requests.load())
        mode.store(value)

    vcpu.mode = Altered(mode, store=store)  # type: ignore[assignment]
    vcpu.requests = Altered(requests, load=lambda: early.pop() if early else requests.load())  # type: ignore[assignment]


def is_asked_before_the_event_is_there(vcpu: Vcpu) -> None:
    """Senders make the request, then publish what it is about, then kick."""
    accept, host = vcpu.apic.accept_irq, vcpu.host

    def asks_first(*arguments: Any) -> int:
        Vcpu.make_request(vcpu, Req.EVENT)
        return accept(*arguments)

    def make_request(request: Req) -> None:
        if host.context().startswith("vcpu"):
            Vcpu.make_request(vcpu, request)

    vcpu.apic = Altered(vcpu.apic, accept_irq=asks_first)  # type: ignore[assignment]
    vcpu.make_request = make_request  # type: ignore[method-assign]


def is_woken_before_it_is_asked(vcpu: Vcpu) -> None:
    """Senders kick, then make the request."""
    host = vcpu.host

    def make_request(request: Req) -> None:
        if not host.context().startswith("vcpu"):
            Vcpu.kick(vcpu)
        Vcpu.make_request(vcpu, request)

    vcpu.make_request = make_request  # type: ignore[method-assign]
    vcpu.kick = lambda: None  # type: ignore[method-assign]


# --- kicking all ------------------------------------------------------------------------------------------------------


def takes_the_request(vm: Vm) -> None:
    """Whoever leaves takes the request away, and may come in again."""
    kicks = vm.kicks

    def has_to_leave(vcpu: Vcpu) -> bool:
        if not vcpu.check_request(Req.USERSPACE_KICK):
            return False
        vcpu.take_signal()
        return True

    kicks.has_to_leave = has_to_leave  # type: ignore[method-assign]


def does_not_wait_for_readers(vm: Vm) -> None:
    """The kicker returns as soon as it has kicked."""
    vm.kicks.transaction = Altered(vm.kicks.transaction, down_write=_nothing, up_write=_nothing)  # type: ignore[assignment]


def waits_before_the_requests_are_made(vm: Vm) -> None:
    """Nothing tells those that the kicker waits for to leave."""
    kicks = vm.kicks
    kick = kicks.kick

    def waits_first() -> None:
        with kicks.transaction.writing():
            pass
        kick()

    kicks.kick = waits_first  # type: ignore[method-assign]


def forgets_one_that_it_resumes(vm: Vm) -> None:
    """The last vCPU's request stays."""
    kicks = vm.kicks

    def resume() -> None:
        with kicks._lock:
            kicks._holds -= 1
            if not kicks._holds:
                vm.host.smp_mb()
                _let_in(vm.vcpus[:-1])

    kicks.resume = resume  # type: ignore[method-assign]


def resumes_without_a_barrier(vm: Vm) -> None:
    """A vCPU may find its request gone, and not what was done before that."""
    vm.host = Altered(vm.host, smp_mb=_nothing)  # type: ignore[assignment]


def lets_in_while_a_kicker_waits(vm: Vm) -> None:
    """CLEARED_BY_FIRST_EXIT as it was proposed."""
    vm.kicks._kicker_waits = lambda: False  # type: ignore[method-assign]


def clears_the_requests_of_other_kickers(vm: Vm) -> None:
    """CLEARED_BEFORE_UNLOCK by a kicker that does not count those that are under way."""
    kicks = vm.kicks
    kicks._kicking = Altered(kicks._kicking, load=lambda: 0)  # type: ignore[assignment]


def _nothing() -> None:
    """In place of a step."""
