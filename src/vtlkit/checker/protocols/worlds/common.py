"""Small virtual machines to check: what a task does besides its protocol is an execution more for nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from vtlkit.checker.program import Program
from vtlkit.checker.protocols.rig import CheckedProcessor, hosted
from vtlkit.checker.scenarios.rig import DONE, Script
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import Handler, ops
from vtlkit.host.api import Host
from vtlkit.kvm.kvm_run import Io, KvmRun
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu

T = TypeVar("T")
_ROUNDS: Final = 4
"""Guests go on in steps that look alike: so many times a vCPU may do the same without being followed no further."""


def checked(build: Callable[[Host], object], model: str) -> Program:
    """The tasks that `build` spawns, as a program."""
    return hosted(build, model, rounds=_ROUNDS)


def settle(vcpu: Vcpu) -> None:
    """Take back the requests that setting it up has made: it has nothing to look at when the tasks begin."""
    for request in Req:
        vcpu.requests.clear(request)


def seen_by(exit_: KvmRun) -> int:
    """What the guest says as it goes to user space: see `tells`."""
    assert isinstance(exit_, Io), f"run ends with {exit_}"
    assert exit_.port == DONE
    return exit_.data


def tells(_engine: object, event: Event) -> Script:
    """A handler that tells user space its vector."""
    yield ops.Out(DONE, 1, event.vector)


def telling(*vectors: int) -> dict[int, Handler]:
    """`tells`, for these vectors."""
    return dict.fromkeys(vectors, tells)


def compute_for_ever(engine: CheckedProcessor) -> Script:
    """A guest that nothing but a kick gets out of its program; who leaves it there has lost one."""
    while True:
        yield ops.Host(partial(engine.wait_for_kick, may_sleep=False))


def halt_for_ever(_engine: object) -> Script:
    """A guest that waits for an interrupt."""
    while True:
        yield ops.Hlt()


def broken(shipped: T, kind: type) -> T:
    """The same object with another class, whose only difference from the shipped one is what is known to be bad."""
    assert issubclass(kind, type(shipped))
    shipped.__class__ = kind
    return shipped
