"""Registered results of CPUID and MSR intercepts, and HvCallCheckForIoIntercept."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.unit.vmm.vsm.intercept_guests import (
    PORT,
    R,
    W,
    X,
    install,
    must,
    register_cpuid,
    register_msr,
    unregister_cpuid,
    unregister_msr,
)
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import intercepts as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_ANY_VP, HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.status import HvStatus
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector

# --- results --------------------------------------------------------------------------------------------------------


def cpuid(guest: Guest, function: int, index: int = 0) -> Generator[Op, int, tuple[int, int]]:
    """EAX and ECX."""
    yield ops.Set(index, "rcx")
    yield ops.Set(function)
    eax = yield ops.Cpuid()
    return eax, guest.regs.rcx


def stepwise(steps: list[Callable[[Guest], Script]]) -> Callable[[Guest], Script]:
    """VTL1 does one step at each VTL call."""

    def body(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        for step in steps:
            yield from step(guest)
            yield from guest.vtl_return()

    return body


@pytest.mark.tlfs("intercepts.result")
def test_results_of_cpuid() -> None:
    """Masked bits are replaced, for VTL0 and not for VTL1; the one subleaf before all; undone by its registration."""
    seen: list[Any] = []
    osxsave = 1 << 27

    def first(guest: Guest) -> Script:
        yield from must(register_cpuid(guest, 0x80000000, eax=(0xAB, 0xFF)))
        yield from must(register_cpuid(guest, 0x12345, eax=(7, 0xFFFFFFFF), ecx=(8, 0xC)))
        yield from must(register_cpuid(guest, 0x12345, index=3, eax=(9, 0xFFFFFFFF)))
        yield from must(register_cpuid(guest, 1, ecx=(osxsave, osxsave)))
        seen.append((yield from cpuid(guest, 0x80000000))[0])

    def second(guest: Guest) -> Script:
        yield from must(register_cpuid(guest, 1, always=True, ecx=(0, osxsave)))
        yield from must(unregister_cpuid(guest, 0x80000000))
        seen.append((yield from unregister_cpuid(guest, 0x80000000)))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((yield from cpuid(guest, 0x80000000))[0])
        seen.append((yield from cpuid(guest, 0x12345, 1)))
        seen.append((yield from cpuid(guest, 0x12345, 3)))
        seen.append((yield from cpuid(guest, 1))[1] & osxsave)
        yield from guest.vtl_call()
        seen.append((yield from cpuid(guest, 0x80000000))[0])
        seen.append((yield from cpuid(guest, 1))[1] & osxsave)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): stepwise([first, second])})
    assert seen == [0x80000008, 0x800000AB, (7, 8), (9, 0), osxsave, HvStatus.NOT_FOUND, 0x80000008, 0]


@pytest.mark.tlfs("intercepts.result")
def test_a_result_yields_to_state_unless_it_always_overrides() -> None:
    """OSXSAVE follows CR4: a result that hides it does so only if it says always."""
    seen: list[Any] = []
    osxsave = 1 << 27

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield ops.Set(0x20 | 1 << 18)
        yield ops.MovToCr(4)
        yield from guest.vtl_call()
        seen.append((yield from cpuid(guest, 1))[1] & osxsave)
        yield from guest.vtl_call()
        seen.append((yield from cpuid(guest, 1))[1] & osxsave)
        yield from guest.end()

    steps: list[Callable[[Guest], Script]] = [
        lambda guest: must(register_cpuid(guest, 1, ecx=(0, osxsave))),
        lambda guest: must(register_cpuid(guest, 1, always=True, ecx=(0, osxsave))),
    ]
    run_guests({(0, 0): vtl0, (0, 1): stepwise(steps)})
    assert seen == [osxsave, 0]


@pytest.mark.tlfs("intercepts.result")
def test_results_of_msrs() -> None:
    """Only of a register that is not there; each direction by itself; #GP again when it is undone."""
    seen: list[Any] = []
    absent, present = 0x12345, msr.MSR_IA32_TSC_ADJUST

    def first(guest: Guest) -> Script:
        for index in (absent, present, msr.MSR_LSTAR):
            yield from must(register_msr(guest, index, R | W, 1))

    def second(guest: Guest) -> Script:
        yield from must(register_msr(guest, absent, W, 0))

    def third(guest: Guest) -> Script:
        yield from must(unregister_msr(guest, absent, R))
        seen.append((yield from unregister_msr(guest, absent, R)))

    def access(guest: Guest) -> Script:
        yield from guest.wrmsr(absent, 5)
        seen.append((yield from guest.rdmsr(absent)))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Set(0xFFFF)
        yield from access(guest)
        yield from guest.wrmsr(present, 0x77)
        seen.append((yield from guest.rdmsr(present)))
        # Refused for its value, not because it is not there.
        yield from guest.wrmsr(msr.MSR_LSTAR, 1 << 62)
        yield from guest.vtl_call()
        yield from access(guest)
        yield from guest.vtl_call()
        yield from access(guest)
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): stepwise([first, second, third])})

    def skip(guest: Guest, _event: Any) -> Script:
        seen.append("#GP")
        guest.rig.partition.vps[0].vcpus[0].engine._frames[0].op = ops.Set(0xDEAD)  # type: ignore[attr-defined]
        yield ops.Compute()

    rig.handlers[0, Vector.GP] = skip
    rig.run()
    assert seen[:3] == [0, 0x77, "#GP"]
    assert seen[3:5] == ["#GP", 0]
    assert seen[5] == HvStatus.NOT_FOUND
    assert seen[6:8] == ["#GP", "#GP"]


@pytest.mark.tlfs("intercepts.result")
def test_results_are_of_a_processor_or_of_all() -> None:
    seen: list[Any] = []

    def first(guest: Guest) -> Script:
        yield from must(register_cpuid(guest, 0x1111, vp=1, eax=(1, 1)))
        yield from must(register_cpuid(guest, 0x2222, vp=HV_ANY_VP, eax=(2, 2)))
        yield from must(register_cpuid(guest, 0x3333, eax=(3, 3)))
        seen.append((yield from register_cpuid(guest, 0x4444, vp=2, eax=(4, 4))))
        seen.append((yield from register_cpuid(guest, 0x4444, padding=1, eax=(4, 4))))
        seen.append((yield from register_msr(guest, 5, 0, 1)))
        seen.append((yield from register_msr(guest, 5, X, 1)))
        seen.append((yield from register_msr(guest, 5, R, 2)))
        header = io.HV_INPUT_REGISTER_INTERCEPT_RESULT(1, 0, Type.HvInterceptTypeX64Cpuid).pack()
        seen.append((yield from guest.call(Call.HvCallRegisterInterceptResult, header + bytes(44))))
        header = io.HV_INPUT_REGISTER_INTERCEPT_RESULT(HV_PARTITION_ID_SELF, 0, Type.HvInterceptTypeHypercall).pack()
        seen.append((yield from guest.call(Call.HvCallRegisterInterceptResult, header + bytes(44))))
        assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS

    def read(guest: Guest) -> Script:
        for function in (0x1111, 0x2222, 0x3333):
            guest.note((guest.vp, (yield from cpuid(guest, function))[0]))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from read(guest)
        guest.note("registered")
        while len(guest.rig.log) < 7:
            yield ops.Compute(10)
        yield from guest.end()

    def other(guest: Guest) -> Script:
        while "registered" not in guest.rig.log:
            yield ops.Compute(10)
        yield from read(guest)
        yield ops.Hlt()

    rig = run_guests({(0, 0): vtl0, (0, 1): stepwise([first]), (1, 0): other, (1, 1): stepwise([])}, cpus=2)
    assert seen == [
        HvStatus.INVALID_VP_INDEX,
        *[HvStatus.INVALID_PARAMETER] * 4,
        HvStatus.INVALID_PARTITION_ID,
        HvStatus.INVALID_PARAMETER,
    ]
    assert [each for each in rig.log if each != "registered"] == [(0, 0), (0, 2), (0, 3), (1, 1), (1, 2), (1, 0)]


# --- HvCallCheckForIoIntercept --------------------------------------------------------------------------------------


def check_io(guest: Guest, port: int, size: int, write: int, **changes: int) -> Generator[Op, int, tuple[int, int]]:
    fields = {"PartitionId": HV_PARTITION_ID_SELF, "VpIndex": HV_VP_INDEX_SELF, "TargetVtl": input_vtl(0), **changes}
    request = io.HV_INPUT_CHECK_FOR_IO_INTERCEPT(Port=port, Size=size, IsWrite=write, **fields)
    guest.rig.write(guest.output, b"\xff")
    status = yield from guest.call(Call.HvCallCheckForIoIntercept, request.pack())
    return status, guest.rig.read(guest.output, 1)


@pytest.mark.tlfs("hypercalls.check-io")
def test_check_for_io_intercept() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT, W))
        for port, size, write in ((PORT, 1, 1), (PORT, 1, 0), (PORT - 1, 1, 1), (PORT - 1, 2, 1), (PORT - 3, 4, 1)):
            seen.append((yield from check_io(guest, port, size, write)))
        # Nobody is above VTL1.
        seen.append((yield from check_io(guest, PORT, 1, 1, TargetVtl=0)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [(0, 1), (0, 0), (0, 0), (0, 1), (0, 1), (0, 0)]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"PartitionId": 1}, HvStatus.INVALID_PARTITION_ID),
        ({"VpIndex": 1}, HvStatus.INVALID_VP_INDEX),
        ({"TargetVtl": 0x20}, HvStatus.INVALID_PARAMETER),
        ({"TargetVtl": input_vtl(1)}, HvStatus.ACCESS_DENIED),
        ({"Padding": 1}, HvStatus.INVALID_PARAMETER),
    ],
)
@pytest.mark.tlfs("hypercalls.check-io")
def test_check_for_io_intercept_refuses(changes: dict[str, int], status: HvStatus) -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from check_io(guest, PORT, 1, 1, **changes)))
        for size, write in ((0, 0), (3, 0), (8, 1), (1, 2)):
            seen.append((yield from check_io(guest, PORT, size, write)))
        seen.append((yield from check_io(guest, PORT, 1, 1)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [(status, 0xFF), *[(HvStatus.INVALID_PARAMETER, 0xFF)] * 4, (0, 0)]
