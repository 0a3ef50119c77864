"""What makes known-bad variants of shipped code: objects of one world with some of their methods replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtlkit.checker.hosted.sync import CheckQueue
from vtlkit.kvm.vcpu import Vcpu

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

    def schedule() -> None:
        queue.prepare()
        host.schedule()

    vcpu.wait_queue = Altered(queue, prepare=lambda: None)  # type: ignore[assignment]
    vcpu.host = Altered(host, schedule=schedule)  # type: ignore[assignment]


def enters_the_queue_without_a_barrier(vcpu: Vcpu) -> None:
    """The store of the task's state may be seen behind the look at what is pending."""
    queue = vcpu.wait_queue
    assert isinstance(queue, CheckQueue)
    vcpu.wait_queue = Altered(queue, prepare=lambda: queue.enter(interruptible=True))  # type: ignore[assignment]


def is_woken_before_the_event_is_there(vcpu: Vcpu) -> None:
    """Senders kick it first, and publish afterwards what the kick was about."""
    accept = vcpu.apic.accept_irq

    def kicks_first(*arguments: Any) -> int:
        Vcpu.kick(vcpu)
        return accept(*arguments)

    vcpu.apic = Altered(vcpu.apic, accept_irq=kicks_first)  # type: ignore[assignment]
    vcpu.kick = lambda: None  # type: ignore[method-assign]
