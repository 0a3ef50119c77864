"""The 8259 pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlkit.host.api import LockRank
from vtlkit.host.sim import Simulator
from vtlkit.kvm.pic import Pic

MASTER, SLAVE = 0x20, 0xA0


class Rig:
    """A PIC pair whose bases are 0x20 and 0x28, as firmware leaves them."""

    def __init__(self, *, icw4: int = 1) -> None:
        self.host = Simulator()
        self.rises = 0
        self.lock = self.host.lock("irqchip", LockRank.IRQCHIP)
        self.pic = Pic(self.host, self.lock, self.rise)
        self.icw4 = icw4

    def rise(self, level: bool) -> None:
        assert level
        assert not self.lock.held(), "called back with the lock held"
        self.rises += 1

    def out(self, port: int, value: int) -> None:
        self.pic.port_write(port, 1, value)

    def initialise(self) -> None:
        for port, base, cascade in ((MASTER, 0x20, 4), (SLAVE, 0x28, 2)):
            for offset, value in ((0, 0x11), (1, base), (1, cascade), (1, self.icw4), (1, 0)):
                self.out(port + offset, value)

    def pulse(self, pin: int) -> int:
        result = self.pic.set_irq(pin, 1)
        self.pic.set_irq(pin, 0)
        return result

    def run(self, body: Callable[[Rig], None]) -> None:
        def task() -> None:
            self.initialise()
            body(self)

        self.host.spawn(task, "test")
        self.host.run()


def test_edge_priority_and_eoi() -> None:
    def body(rig: Rig) -> None:
        assert rig.pulse(5) == 1
        assert rig.pulse(5) == 0
        assert rig.pulse(1) == 1
        assert rig.pic.output.load()
        assert rig.pic.read_irq() == 0x21
        assert not rig.pic.output.load(), "IRQ 5 ranks below what is in service"
        rig.out(MASTER, 0x20)
        assert rig.pic.output.load()
        assert rig.pic.read_irq() == 0x25
        rig.out(MASTER, 0x65)
        assert not rig.pic.output.load()

    Rig().run(body)


def test_each_rise_is_reported_once() -> None:
    def body(rig: Rig) -> None:
        rig.pulse(5)
        rig.pulse(1)
        assert rig.rises == 1
        rig.pic.read_irq()
        assert rig.rises == 1
        rig.out(MASTER, 0x20)
        assert rig.rises == 2

    Rig().run(body)


def test_slave_needs_two_eois() -> None:
    def body(rig: Rig) -> None:
        rig.pulse(12)
        assert rig.pic.read_irq() == 0x2C
        rig.pulse(9)
        assert not rig.pic.output.load(), "the master's cascade pin is in service"
        rig.out(SLAVE, 0x20)
        rig.out(MASTER, 0x20)
        assert rig.pic.read_irq() == 0x29

    Rig().run(body)


def test_mask_and_registers() -> None:
    def body(rig: Rig) -> None:
        rig.out(MASTER + 1, 0xFF)
        assert rig.pulse(3) == -1
        assert not rig.pic.output.load()
        assert rig.pic.port_read(MASTER + 1, 1) == 0xFF
        assert rig.pic.port_read(MASTER, 1) == 1 << 3
        rig.out(MASTER + 1, 0)
        assert rig.pic.read_irq() == 0x23
        rig.out(MASTER, 0x0B)
        assert rig.pic.port_read(MASTER, 1) == 1 << 3
        rig.out(MASTER, 0x0A)
        assert rig.pic.port_read(MASTER, 1) == 0
        assert rig.pic.port_read(MASTER, 2) == 0
        rig.pic.port_write(MASTER + 1, 2, 0xFFFF)
        assert rig.pic.port_read(MASTER + 1, 1) == 0

    Rig().run(body)


def test_spurious_vectors() -> None:
    def body(rig: Rig) -> None:
        assert rig.pic.read_irq() == 0x27
        rig.pulse(12)
        rig.out(SLAVE + 1, 0xFF)
        assert rig.pic.read_irq() == 0x2F

    Rig().run(body)


def test_level_trigger_follows_the_line() -> None:
    def body(rig: Rig) -> None:
        rig.pic.port_write(0x4D0, 1, 0xFF)
        rig.pic.port_write(0x4D1, 1, 0xFF)
        assert rig.pic.port_read(0x4D0, 1) == 0xF8
        assert rig.pic.port_read(0x4D1, 1) == 0xDE
        rig.pic.set_irq(5, 1)
        assert rig.pic.read_irq() == 0x25
        rig.out(MASTER, 0x20)
        assert rig.pic.output.load(), "still asserted"
        rig.pic.set_irq(5, 0)
        assert not rig.pic.output.load()

    Rig().run(body)


def test_sources_are_wired_or() -> None:
    def body(rig: Rig) -> None:
        rig.pic.port_write(0x4D0, 1, 1 << 5)
        rig.pic.set_irq(5, 1, source_id=1)
        rig.pic.set_irq(5, 1, source_id=2)
        rig.pic.set_irq(5, 0, source_id=1)
        assert rig.pic.output.load()
        rig.pic.clear_all(2)
        rig.pic.set_irq(5, 0, source_id=1)
        assert not rig.pic.output.load()

    Rig().run(body)


def test_auto_eoi_and_rotation() -> None:
    def body(rig: Rig) -> None:
        rig.pulse(3)
        assert rig.pic.read_irq() == 0x23
        assert rig.pic.get_state().master.isr == 0
        rig.out(MASTER, 0x80)
        rig.pulse(3)
        rig.pic.read_irq()
        rig.pulse(2 + 1)
        rig.pulse(4)
        assert rig.pic.read_irq() == 0x24, "pin 3 now ranks lowest"

    Rig(icw4=3).run(body)


def test_set_priority_and_rotating_eoi() -> None:
    def body(rig: Rig) -> None:
        rig.out(MASTER, 0xC0 | 4)
        rig.pulse(1)
        rig.pulse(5)
        assert rig.pic.read_irq() == 0x25
        rig.out(MASTER, 0xA0)
        rig.pulse(5)
        assert rig.pic.read_irq() == 0x21

    Rig().run(body)


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    def body(rig: Rig) -> None:
        rig.pulse(12)
        assert rig.pic.read_irq() == 0x2C
        rig.pulse(9)
        assert rig.pic.output.load()
        assert rig.pic.read_irq() == 0x29

    Rig(icw4=0x11).run(body)


def test_poll_mode() -> None:
    def body(rig: Rig) -> None:
        rig.pulse(6)
        rig.out(MASTER, 0x0C)
        assert rig.pic.port_read(MASTER, 1) == 6
        assert not rig.pic.output.load()
        rig.out(MASTER, 0x0C)
        assert rig.pic.port_read(MASTER, 1) == 7

    Rig().run(body)


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def acked(self, pin: int) -> None:
        self.heard.append(("ack", pin))

    def mask_changed(self, pin: int, masked: bool) -> None:
        self.heard.append(("mask" if masked else "unmask", pin))


def test_notifier() -> None:
    def body(rig: Rig) -> None:
        listener = Listener()
        rig.pic.set_notifier(listener)
        rig.out(SLAVE + 1, 0x10)
        rig.out(SLAVE + 1, 0)
        rig.pulse(12)
        rig.pic.read_irq()
        rig.out(SLAVE, 0x20)
        rig.pulse(0)
        rig.out(MASTER, 0x11)
        assert listener.heard == [("mask", 12), ("unmask", 12), ("ack", 12), ("ack", 0)]

    Rig().run(body)


def test_state_round_trip() -> None:
    def body(rig: Rig) -> None:
        rig.pulse(5)
        rig.pulse(1)
        rig.pic.read_irq()
        state = rig.pic.get_state()
        rig.out(MASTER, 0x11)
        rig.pic.set_state(state)
        assert rig.pic.get_state() == state
        rig.out(MASTER, 0x20)
        assert rig.pic.read_irq() == 0x25

    Rig().run(body)


@pytest.mark.parametrize("size", [1, 2, 4])
@settings(max_examples=100, deadline=None)
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]), st.integers(0, 255)),
            st.tuples(st.sampled_from(["up", "down"]), st.integers(0, 15)),
            st.tuples(st.sampled_from(["take", "read"]), st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0])),
        ),
        max_size=40,
    )
)
def test_hostile_input_keeps_the_output_honest(size: int, actions: list[tuple[int | str, int]]) -> None:
    """Whatever the guest writes, lines and acknowledgements leave the output up exactly if a request wins."""

    def body(rig: Rig) -> None:
        for what, value in actions:
            if isinstance(what, int):
                rig.pic.port_write(what, size, value)
            elif what == "take":
                up = rig.pic.output.load()
                vector = rig.pic.read_irq()
                assert 0 <= vector <= 0xFF
                assert up or vector & 7 == 7
            elif what == "read":
                assert 0 <= rig.pic.port_read(value, size) <= 0xFF
            else:
                rig.pic.set_irq(value, what == "up")
            state = rig.pic.get_state()
            wants = state.master.pending(True) >= 0
            if what in ("up", "down", "take"):
                assert rig.pic.output.load() == wants
            assert not (state.slave.isr | state.master.isr) >> 8

    Rig().run(body)
