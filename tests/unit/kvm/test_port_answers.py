"""Ports that are answered from inside an engine's run: what the hypervisor tells an engine that asks."""

from __future__ import annotations

import pytest

from tests.unit.kvm.core_rig import DONE, Machine, script
from vtlkit.engine.processor import PortRead, PortWrite
from vtlkit.engine.scripted import ops
from vtlkit.kvm.device_pages import VcpuDevices
from vtlkit.kvm.requests import Req
from vtlkit.kvm.user_intercepts import UserIntercepts

HYPERVISORS, USERS = 0x50, 0x60


class Asker:
    """A vCPU whose engine asks; what it would be told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(script(ops.Out(DONE, 1)))
        self.vcpu = self.machine.vcpu
        self.written: list[tuple[str, int, int, int]] = []
        told: list[tuple[PortRead, PortWrite]] = []
        monkeypatch.setattr(self.vcpu.engine, "answer_ports", lambda *both: told.append(both))
        VcpuDevices(self.vcpu)
        ((self.read, self.write),) = told

    def device(self, name: str, *, claims: bool) -> None:
        read, write = lambda port, _size: port + 1, lambda *access: self.written.append((name, *access))
        if claims:
            self.machine.vm.port_bus.register(range(HYPERVISORS, HYPERVISORS + 1), read, write)
        else:
            self.machine.vm.answer_ports(read, write)


def test_the_hypervisors_devices_come_before_user_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(monkeypatch)
    assert asker.read(USERS, 1) is None
    assert asker.write(USERS, 1, 5) is False
    asker.device("user", claims=False)
    asker.device("kvm", claims=True)
    assert asker.write(HYPERVISORS, 1, 2)
    assert asker.write(USERS, 4, 3)
    assert (asker.read(HYPERVISORS, 1), asker.read(USERS, 1)) == (HYPERVISORS + 1, USERS + 1)
    assert asker.written == [("kvm", HYPERVISORS, 1, 2), ("user", USERS, 4, 3)]


def test_answers_are_counted_as_the_exits_that_they_save(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(monkeypatch)
    asker.device("user", claims=False)
    asker.write(USERS, 1, 0)
    asker.read(USERS, 1)
    asker.read(USERS, 1)
    assert asker.vcpu.statistics.all_exits() == {"io": 3}


def test_what_user_space_intercepts_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(monkeypatch)
    asker.device("user", claims=False)
    asker.vcpu.user_intercepts = UserIntercepts()
    assert asker.write(USERS, 1, 0) is False
    assert asker.read(USERS, 1) is None
    assert not asker.written


@pytest.mark.parametrize("writes", [True, False])
def test_the_guest_is_left_for_a_request(monkeypatch: pytest.MonkeyPatch, writes: bool) -> None:
    asker = Asker(monkeypatch)
    kicks: list[None] = []
    monkeypatch.setattr(asker.vcpu.engine, "kick", lambda: kicks.append(None))

    def request(*_: int) -> int:
        asker.vcpu.make_request(Req.EVENT)
        return 1

    asker.machine.vm.answer_ports(request, lambda *_: asker.vcpu.make_request(Req.EVENT))
    asker.vcpu.check_request(Req.EVENT)
    if writes:
        assert asker.write(USERS, 1, 0)
    else:
        assert asker.read(USERS, 1) == 1
    assert kicks
