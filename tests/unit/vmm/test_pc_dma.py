"""Devices reach memory with the rights of VTL 0, which owns them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.integration.scripted_machine import MEMORY
from vtlkit.engine.api import Access
from vtlkit.engine.scripted import ScriptedFactory
from vtlkit.host.sim import Simulator
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.devices.fw_cfg import DmaControl, Selector
from vtlkit.vmm.machine import Machine

DESCRIPTOR, TARGET = 0x150000, 0x152000
PAGE = 0x1000
MARK = b"\xa5" * 16


def transfer(prepare: Callable[[Machine], None], length: int = 16) -> tuple[int, Machine]:
    """fw_cfg's signature to TARGET by DMA; what the descriptor's control word says then."""
    host = Simulator()
    machine = Machine(MachineConfig(memory=MEMORY), host, ScriptedFactory({}), lambda _data: None)
    view = machine.ram.view
    view[TARGET : TARGET + 16] = MARK
    control = DmaControl.READ | DmaControl.SELECT | Selector.SIGNATURE << 16
    view[DESCRIPTOR : DESCRIPTOR + 16] = struct.pack(">IIQ", control, length, TARGET)

    def body() -> None:
        prepare(machine)
        machine.pc.ports.write(0x514, 4, 0)
        machine.pc.ports.write(0x518, 4, int.from_bytes(DESCRIPTOR.to_bytes(4, "big"), "little"))

    host.spawn(body, "guest")
    host.run()
    return int(struct.unpack_from(">I", view, DESCRIPTOR)[0]), machine


def protect(gpa: int, access: Access) -> Callable[[Machine], None]:
    return lambda machine: machine.partition.vtl0.vm.set_memory_attributes(gpa, PAGE, access)


def test_a_transfer_to_open_memory() -> None:
    control, machine = transfer(lambda machine: None)
    assert control == 0
    assert bytes(machine.ram.view[TARGET : TARGET + 4]) == b"QEMU"


@pytest.mark.tlfs("protection.dma")
@pytest.mark.parametrize("access", [Access.NONE, Access.READ, Access.READ | Access.EXECUTE])
def test_a_protected_page_is_not_written(access: Access) -> None:
    control, machine = transfer(protect(TARGET, access))
    assert control == DmaControl.ERROR
    assert bytes(machine.ram.view[TARGET : TARGET + 16]) == MARK


@pytest.mark.tlfs("protection.dma")
def test_a_transfer_ends_where_protection_begins() -> None:
    control, machine = transfer(protect(TARGET + PAGE, Access.NONE), length=PAGE + 4)
    assert control == DmaControl.ERROR
    assert not any(machine.ram.view[TARGET + PAGE : TARGET + PAGE + 16])


@pytest.mark.tlfs("protection.dma")
@pytest.mark.parametrize("access", [Access.NONE, Access.READ])
def test_a_protected_descriptor_is_neither_read_nor_written(access: Access) -> None:
    control, machine = transfer(protect(DESCRIPTOR, access))
    assert control == DmaControl.READ | DmaControl.SELECT | Selector.SIGNATURE << 16
    if access is Access.NONE:
        assert bytes(machine.ram.view[TARGET : TARGET + 16]) == MARK


@pytest.mark.tlfs("protection.dma")
def test_dma_read_and_write_themselves() -> None:
    _, machine = transfer(protect(TARGET, Access.NONE))
    assert machine.pc.dma_read(TARGET, 4) is None
    assert machine.pc.dma_read(TARGET - 2, 4) is None
    assert machine.pc.dma_read(TARGET - 4, 4) == bytes(4)
    assert machine.pc.dma_read(MEMORY, 4) is None
    assert not machine.pc.dma_write(MEMORY - 2, b"abcd")
    assert bytes(machine.ram.view[MEMORY - 2 : MEMORY]) == bytes(2)
