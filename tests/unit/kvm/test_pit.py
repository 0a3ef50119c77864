"""The i8254 in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vtlkit.host.sim import Simulator
from vtlkit.kvm.pit import KVM_PIT_FREQ, SPEAKER_PORT, Pit

COMMAND = 0x43
COUNT = 11932
"""About 10 ms."""
SLACK = 1000
"""More than the time that letting the worker run takes."""


def ns(ticks: int) -> int:
    """The first nanosecond at which `ticks` ticks have passed."""
    return -(-ticks * 1_000_000_000 // KVM_PIT_FREQ)


class Rig:
    def __init__(self, *, reinject: bool = True) -> None:
        self.host = Simulator()
        self.edges: list[int] = []
        self.watchdog = 0
        self.pit = Pit(self.host, self.drive, self.bark, reinject=reinject)

    def drive(self, level: int) -> None:
        if level:
            self.edges.append(self.host.now_ns())

    def bark(self) -> None:
        self.watchdog += 1

    def out(self, port: int, value: int) -> None:
        self.pit.port_write(port, 1, value)

    def load(self, channel: int, mode: int, count: int = COUNT) -> None:
        self.out(COMMAND, channel << 6 | 0x30 | mode << 1)
        self.out(0x40 + channel, count & 0xFF)
        self.out(0x40 + channel, count >> 8)

    def inb(self, port: int) -> int:
        return self.pit.port_read(port, 1)

    def word(self, channel: int) -> int:
        return self.inb(0x40 + channel) | self.inb(0x40 + channel) << 8

    def advance(self, duration_ns: int) -> None:
        self.host.consume_ns(duration_ns)
        self.host.relax()

    def run(self, body: Callable[[Rig], None]) -> None:
        self.host.spawn(lambda: body(self), "test")
        self.host.run()


@pytest.mark.parametrize("mode", [0, 1, 4])
def test_one_shot_modes_pulse_once(mode: int) -> None:
    def body(rig: Rig) -> None:
        rig.load(0, mode)
        rig.advance(ns(COUNT) - SLACK)
        assert rig.edges == []
        rig.advance(SLACK)
        assert len(rig.edges) == 1
        assert rig.watchdog == 1
        rig.pit.acked(0)
        rig.advance(10 * ns(COUNT))
        assert len(rig.edges) == 1

    Rig().run(body)


@pytest.mark.parametrize("mode", [2, 3, 6, 7])
def test_periodic_modes_keep_time(mode: int) -> None:
    def body(rig: Rig) -> None:
        rig.load(0, mode)
        for _ in range(100):
            rig.advance(ns(COUNT) // 2)
            rig.pit.acked(0)
        assert 49 <= len(rig.edges) <= 50
        assert rig.edges[-1] - rig.edges[0] <= 50 * ns(COUNT)

    Rig().run(body)


def test_mode_5_waits_for_a_gate_that_is_wired_high() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 5)
        rig.advance(10 * ns(COUNT))
        assert rig.edges == []

    Rig().run(body)


def test_reprogramming_replaces_the_period() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 2)
        rig.advance(ns(COUNT) // 2)
        rig.load(0, 0, 2 * COUNT)
        rig.advance(2 * ns(COUNT) - SLACK)
        assert rig.edges == []
        rig.advance(SLACK)
        assert len(rig.edges) == 1

    Rig().run(body)


def test_reinjection_gives_every_tick_once_acknowledged() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 2)
        for _ in range(5):
            rig.advance(ns(COUNT))
        assert len(rig.edges) == 1, "held back until the first is acknowledged"
        for expected in (2, 3, 4, 5, 5):
            rig.pit.acked(0)
            rig.host.relax()
            assert len(rig.edges) == expected

    Rig().run(body)


def test_unmasking_forgets_ticks_and_the_lost_acknowledgement() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 2)
        rig.advance(5 * ns(COUNT) + 1000)
        rig.pit.mask_changed(0, True)
        rig.pit.mask_changed(0, False)
        rig.advance(ns(COUNT))
        assert len(rig.edges) == 2
        rig.pit.acked(0)
        rig.host.relax()
        assert len(rig.edges) == 2

    Rig().run(body)


def test_without_reinjection_ticks_do_not_wait() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 2)
        for _ in range(3):
            rig.advance(ns(COUNT))
        assert len(rig.edges) == 3

    Rig(reinject=False).run(body)


def test_shortest_period() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 2, 2)
        for _ in range(100):
            rig.advance(100_000)
            rig.pit.acked(0)
        assert 45 <= len(rig.edges) <= 51

    Rig().run(body)


def test_counter_reads_latch_and_bytes() -> None:
    def body(rig: Rig) -> None:
        rig.load(2, 2)
        rig.advance(ns(1000))
        assert rig.word(2) == COUNT - 1000
        rig.out(COMMAND, 0x80)
        rig.advance(ns(500))
        assert rig.inb(0x42) == (COUNT - 1000) & 0xFF
        rig.out(COMMAND, 0x80)
        assert rig.inb(0x42) == (COUNT - 1000) >> 8, "a second latch waits for the first to be read"
        assert abs(rig.word(2) - (COUNT - 1500)) <= 1
        rig.out(COMMAND, 0x80 | 0x10)
        rig.out(0x42, 0x55)
        assert rig.inb(0x42) == 0x55
        rig.out(COMMAND, 0x80 | 0x20 | 4)
        rig.out(0x42, 0x12)
        assert rig.inb(0x42) == 0x12
        rig.advance(ns(1))
        assert rig.inb(0x42) == 0x11

    Rig().run(body)


def test_zero_is_the_longest_count() -> None:
    def body(rig: Rig) -> None:
        rig.load(2, 0, 0)
        rig.advance(ns(1))
        assert rig.word(2) == 0xFFFF
        rig.advance(ns(0x10000))
        assert rig.word(2) == 0xFFFF, "wrapped"

    Rig().run(body)


def test_read_back_status_comes_before_count() -> None:
    def body(rig: Rig) -> None:
        rig.load(2, 3)
        rig.load(0, 2)
        rig.advance(ns(100))
        rig.out(COMMAND, 0xC0 | 0x08 | 0x02)
        rig.advance(ns(100))
        assert rig.inb(0x42) == 0x80 | 0x30 | 3 << 1
        assert rig.word(2) == COUNT - 200
        assert rig.inb(0x40) == 0x30 | 2 << 1
        assert rig.word(0) == COUNT - 100
        assert rig.inb(COMMAND) == 0

    Rig().run(body)


def test_speaker_port_gates_channel_2() -> None:
    """How Linux and kvm-unit-tests calibrate: gate off, mode 0, gate on, wait for OUT."""

    def body(rig: Rig) -> None:
        rig.out(SPEAKER_PORT, 0)
        rig.load(2, 0)
        rig.out(SPEAKER_PORT, 1)
        assert rig.inb(SPEAKER_PORT) & ~0x10 == 1
        rig.advance(ns(COUNT - 1))
        assert not rig.inb(SPEAKER_PORT) & 0x20
        rig.advance(ns(1))
        assert rig.inb(SPEAKER_PORT) & 0x20
        rig.out(SPEAKER_PORT, 2)
        assert rig.inb(SPEAKER_PORT) & 3 == 2

    Rig().run(body)


def test_rising_gate_restarts_mode_1() -> None:
    def body(rig: Rig) -> None:
        rig.load(2, 1)
        rig.advance(ns(COUNT))
        assert rig.inb(SPEAKER_PORT) & 0x20 == 0
        rig.out(SPEAKER_PORT, 1)
        assert rig.inb(SPEAKER_PORT) & 0x20
        rig.advance(ns(COUNT))
        assert rig.inb(SPEAKER_PORT) & 0x20 == 0
        rig.out(SPEAKER_PORT, 1)
        assert rig.inb(SPEAKER_PORT) & 0x20 == 0, "no rising edge"

    Rig().run(body)


def test_refresh_clock_toggles() -> None:
    def body(rig: Rig) -> None:
        seen = set()
        for _ in range(4):
            seen.add(rig.inb(SPEAKER_PORT) & 0x10)
            rig.advance(1 << 14)
        assert seen == {0, 0x10}

    Rig().run(body)


@pytest.mark.parametrize("mode", [0, 2])
def test_restored_channels_go_on(mode: int) -> None:
    def body(rig: Rig) -> None:
        rig.load(0, mode)
        rig.load(2, 2)
        rig.advance(ns(COUNT) // 4)
        state = rig.pit.get_state()
        before = rig.word(2)
        rig.pit.reset()
        rig.advance(100 * ns(COUNT))
        assert rig.edges == []
        rig.pit.set_state(state)
        assert rig.word(2) == before
        rig.advance(ns(COUNT) * 3 // 4 - SLACK)
        assert rig.edges == []
        rig.advance(SLACK)
        assert len(rig.edges) == 1

    Rig().run(body)


def test_destroy_ends_the_worker() -> None:
    def body(rig: Rig) -> None:
        rig.load(0, 2)
        rig.pit.destroy()
        rig.advance(5 * ns(COUNT))
        assert rig.edges == []

    Rig().run(body)
