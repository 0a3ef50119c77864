"""The descriptor of a vCPU: when it is readable, and who hears of it."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, script
from tests.unit.kvm.test_wait import interrupt
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.pollable import Pollable
from vtlkit.kvm.vcpu import Vcpu


def quiet(host: RunnableHost | None = None) -> Machine:
    return Machine(script(ops.Out(DONE, 1, 0)), host=host)


def readable(vcpu: Vcpu) -> bool:
    return bool(select.select([vcpu], [], [], 0)[0])


@contextmanager
def without_eventfd(monkeypatch: pytest.MonkeyPatch, missing: bool) -> Iterator[None]:
    with monkeypatch.context() as patched:
        if missing:
            patched.delattr(os, "eventfd")
        yield


@pytest.mark.parametrize("pipe", [False, True])
def test_when_it_is_readable(monkeypatch: pytest.MonkeyPatch, pipe: bool) -> None:
    with without_eventfd(monkeypatch, pipe):
        machine = quiet()
        vcpu = machine.vcpu
        vcpu.vtl_inactive = True
        assert vcpu.fileno() == vcpu.fileno()
    assert readable(vcpu), "until the first look"
    assert not vcpu.wake_event_pending()
    assert not readable(vcpu)
    vcpu.apic.set_tpr(0xF)
    interrupt(machine)
    assert readable(vcpu), "a kick is heard, whatever it is about"
    assert not vcpu.wake_event_pending()
    assert not readable(vcpu)
    vcpu.apic.set_tpr(0)
    for _ in range(2):
        assert vcpu.wake_event_pending()
        assert readable(vcpu), "for as long as the event is pending"
    number = vcpu.fileno()
    vcpu.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    vcpu.kick()


def test_a_run_makes_it_readable_as_no_kick_tells_what_came_meanwhile() -> None:
    machine = quiet()
    vcpu = machine.vcpu
    vcpu.fileno()
    assert not vcpu.wake_event_pending()
    machine.run(lambda: vcpu.run())
    assert readable(vcpu)
    vcpu.close()


def test_a_full_pipe_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_eventfd(monkeypatch, True):
        pollable = Pollable()
    for _ in range(20_000):
        pollable.ring()
    assert select.select([pollable], [], [], 0)[0]
    pollable.silence()
    assert not select.select([pollable], [], [], 0)[0]
    pollable.close()
    pollable.ring()


def _by_select(vcpu: Vcpu) -> None:
    while not vcpu.wake_event_pending():
        select.select([vcpu], [], [])


def _by_poll(vcpu: Vcpu) -> None:
    poller = select.poll()
    poller.register(vcpu, select.POLLIN)
    while not vcpu.wake_event_pending():
        assert poller.poll()


def _by_epoll(edge: int) -> Callable[[Vcpu], None]:
    def wait(vcpu: Vcpu) -> None:
        with select.epoll() as poller:
            poller.register(vcpu, select.EPOLLIN | edge)
            while not vcpu.wake_event_pending():
                assert poller.poll()

    return wait


def _by_asyncio(vcpu: Vcpu) -> None:
    async def wait() -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def look() -> None:
            if vcpu.wake_event_pending():
                loop.remove_reader(vcpu)
                woken.set()

        loop.add_reader(vcpu, look)
        await woken.wait()

    asyncio.run(wait())


@pytest.mark.parametrize(
    "wait", [_by_select, _by_poll, _by_epoll(0), _by_epoll(select.EPOLLET), _by_asyncio], ids=range(5)
)
@pytest.mark.parametrize("early", [False, True])
def test_who_polls_hears_of_it(wait: Callable[[Vcpu], None], early: bool) -> None:
    """A thread of user space's own polls; the senders are tasks of the host: spurious kicks, then an interrupt."""
    for _ in range(10):
        host = ThreadHost()
        machine = quiet(host)
        vcpu = machine.vcpu
        vcpu.vtl_inactive = True
        thread = threading.Thread(target=wait, args=(vcpu,), daemon=True)

        def senders(machine: Machine = machine, vcpu: Vcpu = vcpu) -> None:
            for _ in range(3):
                vcpu.kick()
                machine.host.relax()
            interrupt(machine)

        if not early:
            thread.start()
        machine.run(senders)
        if early:
            thread.start()
        thread.join(60)
        assert not thread.is_alive(), "the event was slept through"
        vcpu.close()


def fading(name: str) -> property:
    """An attribute that is None once it has been looked at."""

    def get(vcpu: Vcpu) -> Callable[[], None] | None:
        heard: Callable[[], None] | None = vcpu.__dict__.pop(name, None)
        return heard

    return property(get, lambda vcpu, value: vcpu.__dict__.__setitem__(name, value))


class Leaving(Vcpu):
    """User space stops listening, or destroys the vCPU, between any two looks of a sender."""

    _listener = fading("_listener")
    _ring = fading("_ring")


def test_a_kick_may_overlap_the_end_of_the_listening() -> None:
    vcpu = quiet().vcpu
    heard: list[str] = []
    vcpu.__class__ = Leaving
    vcpu._listener = lambda: heard.append("listener")
    vcpu._ring = lambda: heard.append("ring")
    vcpu.kick()
    vcpu.kick()
    assert heard == ["listener", "ring"]
