"""isa-debug-exit, debug console, test device, keyboard controller, reset ports and PCI configuration."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.devices.device_rig import Events, Line
from vtlkit.vmm.devices import i8042 as kbc
from vtlkit.vmm.devices import testdev
from vtlkit.vmm.devices.bus import MmioBus, PortBus
from vtlkit.vmm.devices.debugcon import DEBUGCON_PORT, DebugConsole
from vtlkit.vmm.devices.debugexit import DEBUG_EXIT_PORT, DebugExit, exit_status
from vtlkit.vmm.devices.pci import CONFIG_ADDRESS_PORT, CONFIG_DATA_PORT, PciHostBridge


def test_debug_exit_reports_the_value_once() -> None:
    events = Events()
    device = DebugExit(events)
    device.write(DEBUG_EXIT_PORT, 4, 0x1234)
    assert events.log == ["debug_exit 0x1234"]
    assert device.read(DEBUG_EXIT_PORT, 1) == 0
    assert [exit_status(value) for value in (0, 1, 0x80)] == [1, 3, 1]


def test_debug_console() -> None:
    out = bytearray()
    device = DebugConsole(out.extend)
    for byte in b"hi":
        device.write(DEBUGCON_PORT, 1, byte)
    assert (bytes(out), device.read(DEBUGCON_PORT, 1)) == (b"hi", 0xE9)


def test_testdev_lines_and_flush() -> None:
    lines: list[tuple[int, int]] = []
    flushed: list[int] = []
    bus = PortBus()
    bus.register(testdev.IRQ_LINE_PORT, testdev.IRQ_LINE_COUNT, testdev.TestIrqLines(lambda n, v: lines.append((n, v))))
    bus.register(testdev.FLUSH_PAGE_PORT, testdev.FLUSH_PAGE_PORTS, testdev.FlushPagePort(flushed.append))
    bus.write(0x200E, 1, 1)
    bus.write(0x200E, 1, 0)
    bus.write(0x2017, 1, 0x80)
    bus.write(0xE4, 4, 0x407123)
    assert lines == [(14, 1), (14, 0), (23, 1)]
    assert flushed == [0x407000]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))))
def test_testdev_scratch_ports_read_back_at_any_size(writes: list[tuple[int, int, int]]) -> None:
    device, model = testdev.ScratchPorts(), bytearray(4)
    for offset, size, value in writes:
        data = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
        device.write(testdev.SCRATCH_PORT + offset, size, int.from_bytes(data, "little"))
        model[offset : offset + size] = data[: 4 - offset]
        assert len(model) == 4
        for start, width in ((0, 4), (0, 2), (2, 2), (1, 2), (0, 1), (3, 1)):
            expected = int.from_bytes(model[start : start + width], "little")
            assert device.read(testdev.SCRATCH_PORT + start, width) == expected


@given(st.lists(st.tuples(st.integers(0, testdev.MMIO_SIZE - 1), st.integers(1, 8), st.binary(min_size=8, max_size=8))))
def test_testdev_mmio_is_memory(writes: list[tuple[int, int, bytes]]) -> None:
    bus = MmioBus()
    bus.register(testdev.MMIO_BASE, testdev.MMIO_SIZE, testdev.ScratchMmio())
    model = bytearray(testdev.MMIO_SIZE)
    for offset, size, data in writes:
        bus.write(testdev.MMIO_BASE + offset, size, int.from_bytes(data[:size], "little"))
        room = min(size, testdev.MMIO_SIZE - offset)
        model[offset : offset + room] = data[:room]
    for offset, _, _ in writes:
        base = offset & ~7
        assert bus.read(testdev.MMIO_BASE + base, 8) == int.from_bytes(model[base : base + 8], "little")


class Keyboard:
    def __init__(self) -> None:
        self.events, self.line = Events(), Line()
        self.a20: list[bool] = []
        self.device = kbc.I8042(self.line, self.events, self.a20.append)
        self.port92 = kbc.Port92(self.device, self.events)

    def command(self, *values: int) -> None:
        self.device.write(kbc.I8042_COMMAND_PORT, 1, values[0])
        for value in values[1:]:
            self.data(value)

    def data(self, value: int) -> None:
        self.device.write(kbc.I8042_DATA_PORT, 1, value)

    def answer(self) -> list[int]:
        got = []
        while self.device.read(kbc.I8042_COMMAND_PORT, 1) & kbc.STATUS_OBF:
            got.append(self.device.read(kbc.I8042_DATA_PORT, 1))
        return got


@pytest.fixture
def keyboard() -> Keyboard:
    return Keyboard()


def test_controller_answers_its_self_tests(keyboard: Keyboard) -> None:
    keyboard.command(0xAA)
    assert keyboard.answer() == [0x55]
    keyboard.command(0xAB)
    assert keyboard.answer() == [0]
    keyboard.command(0x60, 0x47)
    keyboard.command(0x20)
    assert keyboard.answer() == [0x47]
    keyboard.command(0xAD)
    keyboard.command(0x20)
    assert keyboard.answer() == [0x57]


def test_keyboard_commands_and_an_edge_per_byte(keyboard: Keyboard) -> None:
    keyboard.data(0xF2)
    assert keyboard.answer() == [0xFA, 0xAB, 0x83]
    assert keyboard.line.edges == 3
    keyboard.data(0xED)
    keyboard.data(0x07)
    assert keyboard.answer() == [0xFA, 0xFA]
    keyboard.data(0x00)
    assert keyboard.answer() == [0xFE]


def test_there_is_no_mouse(keyboard: Keyboard) -> None:
    keyboard.command(0xD4, 0xF2)
    assert keyboard.device.read(kbc.I8042_COMMAND_PORT, 1) & kbc.STATUS_TIMEOUT
    assert keyboard.answer() == [0xFE]


def test_a20_by_controller_and_by_port_92(keyboard: Keyboard) -> None:
    keyboard.command(0xD1, 0xDD)
    assert keyboard.port92.read(kbc.PORT92, 1) == 0
    keyboard.port92.write(kbc.PORT92, 1, 2)
    keyboard.command(0xDD)
    keyboard.device.reset()
    assert keyboard.a20 == [False, True, False, True]
    assert keyboard.events.log == []


def test_every_way_to_reset(keyboard: Keyboard) -> None:
    keyboard.command(0xFE)
    keyboard.command(0xD1, 0x02)
    keyboard.port92.write(kbc.PORT92, 1, 3)
    keyboard.port92.write(kbc.PORT92, 1, 3)
    control = kbc.ResetControl(keyboard.events)
    control.write(kbc.RESET_CONTROL_PORT, 1, 0x02)
    assert keyboard.events.log == ["init"] * 3
    control.write(kbc.RESET_CONTROL_PORT, 1, 0x06)
    assert keyboard.events.log == ["init"] * 3 + ["reset"]
    control.write(kbc.RESET_CONTROL_PORT, 1, 0x04)
    assert keyboard.events.log == ["init"] * 3 + ["reset", "init"]
    keyboard.command(0xFF)
    assert keyboard.events.log == ["init"] * 3 + ["reset", "init"]


@given(st.lists(st.tuples(st.sampled_from([0x60, 0x64]), st.booleans(), st.integers(0, 255))))
def test_controller_never_fails(ops: list[tuple[int, bool, int]]) -> None:
    keyboard = Keyboard()
    for port, is_write, value in ops:
        if is_write:
            keyboard.device.write(port, 1, value)
        else:
            assert 0 <= keyboard.device.read(port, 1) <= 0xFF


def scan(bus: PortBus) -> dict[tuple[int, int], int]:
    found = {}
    for device in range(32):
        for function in range(8):
            bus.write(CONFIG_ADDRESS_PORT, 4, 1 << 31 | device << 11 | function << 8)
            identity = bus.read(CONFIG_DATA_PORT, 4)
            if identity != 0xFFFFFFFF:
                found[device, function] = identity
    return found


def test_pci_scan_finds_the_chipset_and_nothing_else() -> None:
    bus, events = PortBus(), Events()
    bridge = PciHostBridge()
    bus.register(CONFIG_ADDRESS_PORT, 1, bridge)
    bus.register(kbc.RESET_CONTROL_PORT, 1, kbc.ResetControl(events))
    bus.register(CONFIG_DATA_PORT, 4, bridge)
    assert scan(bus) == {(0, 0): 0x12378086, (1, 0): 0x70008086, (1, 3): 0x71138086}
    bus.write(CONFIG_ADDRESS_PORT, 4, 1 << 31 | 1 << 11 | 3 << 8 | 0x40)
    assert bus.read(CONFIG_DATA_PORT, 4) == 0x601
    assert bus.read(CONFIG_DATA_PORT + 1, 1) == 0x06
    bus.write(CONFIG_ADDRESS_PORT, 4, 1 << 11 | 3 << 8)
    assert bus.read(CONFIG_DATA_PORT, 4) == 0xFFFFFFFF, "the enable bit is clear"
    bus.write(CONFIG_ADDRESS_PORT, 4, 1 << 31 | 1 << 11 | 0x0C)
    assert struct.pack("<I", bus.read(CONFIG_DATA_PORT, 4))[2] == 0x80, "function 0 says that there are others"
    assert events.log == []
