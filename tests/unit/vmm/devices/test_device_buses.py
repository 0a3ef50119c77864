"""Decoding, the floating bus, overlaps, and the lock around device calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.vmm.devices.bus import BytePortDevice, MmioBus, PortBus


class Recorder:
    def __init__(self) -> None:
        self.log: list[tuple[int, ...]] = []

    def read(self, address: int, size: int) -> int:
        self.log.append((address, size))
        return 0x5A

    def write(self, address: int, size: int, value: int) -> None:
        self.log.append((address, size, value))


class Memory(BytePortDevice):
    def __init__(self) -> None:
        self.data = bytearray(16)

    def read_byte(self, port: int) -> int:
        return self.data[port]

    def write_byte(self, port: int, value: int) -> None:
        self.data[port] = value


class CountingLock:
    def __init__(self) -> None:
        self.depth = 0
        self.entered = 0

    def __enter__(self) -> None:
        assert self.depth == 0
        self.depth += 1
        self.entered += 1

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_unclaimed_port_floats_and_is_counted(size: int) -> None:
    bus = PortBus()
    assert bus.read(0x80, size) == (1 << (8 * size)) - 1
    bus.write(0x80, size, 0)
    assert (bus.unclaimed_reads, bus.unclaimed_writes) == (1, 1)


def test_access_goes_whole_to_the_device_of_its_first_port() -> None:
    bus, first, second = PortBus(), Recorder(), Recorder()
    bus.register(0x10, 2, first)
    bus.register(0x12, 1, second)
    assert bus.read(0x11, 4) == 0x5A
    bus.write(0x12, 2, 0xBEEF)
    assert first.log == [(0x11, 4)]
    assert second.log == [(0x12, 2, 0xBEEF)]


def test_overlapping_ports_are_refused_and_nothing_is_claimed() -> None:
    bus = PortBus()
    bus.register(0x10, 4, Recorder())
    with pytest.raises(ValueError, match=r"port 0x10 of Memory already belongs to Recorder"):
        bus.register(0x0F, 2, Memory())
    assert bus.read(0x0F, 1) == 0xFF
    with pytest.raises(ValueError, match="not in the 64 KiB port space"):
        bus.register(0xFFFF, 2, Memory())


@given(st.integers(0, 12), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))
def test_byte_devices_take_wide_accesses_lowest_byte_first(port: int, size: int, value: int) -> None:
    bus, memory = PortBus(), Memory()
    bus.register(0, 16, memory)
    value &= (1 << (8 * size)) - 1
    bus.write(port, size, value)
    assert memory.data[port : port + size] == value.to_bytes(size, "little")
    assert bus.read(port, size) == value


def test_device_calls_hold_the_lock_and_floating_accesses_do_not() -> None:
    lock = CountingLock()
    bus, mmio = PortBus(lock), MmioBus(lock)
    bus.register(0x10, 1, Recorder())
    mmio.register(0x1000, 0x1000, Recorder())
    bus.read(0x10, 1)
    bus.write(0x10, 1, 0)
    mmio.read(0x1000, 8)
    mmio.write(0x1FFF, 1, 0)
    assert lock.entered == 4
    bus.read(0x11, 1)
    mmio.read(0x2000, 4)
    assert lock.entered == 4


_RANGE = st.tuples(st.integers(0, 60), st.integers(1, 12))


@given(st.lists(_RANGE, max_size=12), st.integers(0, 80))
def test_mmio_bus_agrees_with_a_plain_search(ranges: list[tuple[int, int]], gpa: int) -> None:
    bus = MmioBus()
    model: list[tuple[int, int, Recorder]] = []
    for base, size in ranges:
        device = Recorder()
        overlaps = any(base < other + count and other < base + size for other, count, _ in model)
        if overlaps:
            with pytest.raises(ValueError, match="overlaps"):
                bus.register(base, size, device)
        else:
            bus.register(base, size, device)
            model.append((base, size, device))
    owner = next(((base, device) for base, size, device in model if base <= gpa < base + size), None)
    if owner is None:
        assert bus.read(gpa, 8) == (1 << 64) - 1
        assert bus.unclaimed_reads == 1
    else:
        assert bus.read(gpa, 2) == 0x5A
        assert owner[1].log == [(gpa - owner[0], 2)]
