"""HvCallRetargetDeviceInterrupt: there is no device to name, and a malformed call is told from that."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, run_guests
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus

SET = io.HV_DEVICE_INTERRUPT_TARGET_PROCESSOR_SET
WELL_FORMED: dict[str, Any] = {
    "PartitionId": HV_PARTITION_ID_SELF,
    "DeviceId": 0x1234,
    "InterruptSource": 1,
    "MsiAddress": 0xFEE00000,
    "MsiData": 0x4041,
    "Vector": 0x41,
    "ProcessorMask": 1,
}


def word(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.mark.tlfs("hypercalls.retarget")
@pytest.mark.parametrize(
    ("changes", "header", "status"),
    [
        ({}, b"", HvStatus.INVALID_DEVICE_ID),
        ({"Flags": io.HV_DEVICE_INTERRUPT_TARGET_MULTICAST}, b"", HvStatus.INVALID_DEVICE_ID),
        ({"Flags": SET, "ProcessorMask": 0}, word(0b101) + word(1) + word(2), HvStatus.INVALID_DEVICE_ID),
        ({"Flags": SET, "ProcessorMask": 1}, word(0), HvStatus.INVALID_DEVICE_ID),
        ({"PartitionId": 9}, b"", HvStatus.INVALID_PARTITION_ID),
        ({"InterruptSource": 0}, b"", HvStatus.INVALID_PARAMETER),
        ({"InterruptSource": io.HV_INTERRUPT_SOURCE_IO_APIC}, b"", HvStatus.INVALID_PARAMETER),
        ({"Reserved0": 1}, b"", HvStatus.INVALID_PARAMETER),
        ({"RsvdZ": 1}, b"", HvStatus.INVALID_PARAMETER),
        ({"Flags": 8}, b"", HvStatus.INVALID_PARAMETER),
        ({"Vector": 0xF}, b"", HvStatus.INVALID_PARAMETER),
        ({"Vector": 0x100}, b"", HvStatus.INVALID_PARAMETER),
        ({"Flags": SET, "ProcessorMask": 2}, word(0), HvStatus.INVALID_PARAMETER),
        ({"Flags": SET, "ProcessorMask": 0}, b"", HvStatus.INVALID_HYPERCALL_INPUT),
        ({"Flags": SET, "ProcessorMask": 0}, word(0b11) + word(1), HvStatus.INVALID_HYPERCALL_INPUT),
        ({}, word(1), HvStatus.INVALID_HYPERCALL_INPUT),
    ],
)
def test_retarget(changes: dict[str, Any], header: bytes, status: HvStatus) -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        request = io.HV_INPUT_RETARGET_DEVICE_INTERRUPT(**{**WELL_FORMED, **changes})
        code = Call.HvCallRetargetDeviceInterrupt | len(header) // 8 << 17
        seen.append((yield from guest.call(code, request.pack() + header)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [status]
