"""Guests of the rig that install intercepts, are told, and react."""

from __future__ import annotations

from collections.abc import Callable, Generator

from tests.unit.vmm.vsm.vsm_rig import Guest, Script
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import intercepts as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvVtlEntryReason as Reason

R, W, X = 1, 2, 4
PORT = 0x80
SHARED = ("rbx", "rdx", "rsi", "rdi", "r8")
Statuses = Generator[Op, int, int]


def install(
    guest: Guest, kind: int, parameter: int = 0, access: int = R | W, *, partition: int = HV_PARTITION_ID_SELF
) -> Statuses:
    request = io.HV_INPUT_INSTALL_INTERCEPT(partition, access, kind, parameter)
    return (yield from guest.call(Call.HvCallInstallIntercept, request.pack()))


def must(call: Statuses) -> Script:
    assert (yield from call) == HvStatus.SUCCESS


def telling(setup: Callable[[Guest], Script], react: Callable[[Guest, bytes], Script]) -> Callable[[Guest], Script]:
    """A VTL that does `setup`, returns, and meets each entry with `react`, which gets the message (empty: none)."""

    def body(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic(1 << 16)
        yield from setup(guest)
        yield from guest.vtl_return()
        while True:
            saved = {name: getattr(guest.regs, name) for name in SHARED}
            assist = guest.regs.rax.to_bytes(8, "little") + guest.regs.rcx.to_bytes(8, "little")
            message = guest.take_message()
            if message:
                assert guest.entry_reason == Reason.HvVtlEntryIntercept
            yield from guest.wrmsr(0x40000084, 0)
            yield from react(guest, message)
            guest.rig.partition.vtls[guest.vtl].vm.memory.write(guest.assist + 16, assist)
            for name, value in saved.items():
                yield ops.Set(value, name)
            yield from guest.vtl_return(0)

    return body


def kind_of(message: bytes) -> int:
    return int.from_bytes(message[:4], "little")


def nothing(_guest: Guest) -> Script:
    yield ops.Compute()


def register_cpuid(
    guest: Guest,
    function: int,
    *,
    index: int | None = None,
    always: bool = False,
    vp: int = HV_VP_INDEX_SELF,
    eax: tuple[int, int] = (0, 0),
    ecx: tuple[int, int] = (0, 0),
    padding: int = 0,
) -> Statuses:
    header = io.HV_INPUT_REGISTER_INTERCEPT_RESULT(HV_PARTITION_ID_SELF, vp, Type.HvInterceptTypeX64Cpuid)
    parameters = io.HV_REGISTER_X64_CPUID_RESULT_PARAMETERS(
        function, index or 0, index is not None, always, padding, *eax, 0, 0, *ecx, 0, 0
    )
    return (yield from guest.call(Call.HvCallRegisterInterceptResult, header.pack() + parameters.pack()))


def unregister_cpuid(guest: Guest, function: int, *, vp: int = HV_VP_INDEX_SELF) -> Statuses:
    header = io.HV_INPUT_REGISTER_INTERCEPT_RESULT(HV_PARTITION_ID_SELF, vp, Type.HvInterceptTypeX64Cpuid)
    parameters = io.HV_UNREGISTER_X64_CPUID_RESULT_PARAMETERS(function)
    return (yield from guest.call(Call.HvCallUnregisterInterceptResult, header.pack() + parameters.pack()))


def register_msr(guest: Guest, index: int, access: int, action: int, *, vp: int = HV_VP_INDEX_SELF) -> Statuses:
    header = io.HV_INPUT_REGISTER_INTERCEPT_RESULT(HV_PARTITION_ID_SELF, vp, Type.HvInterceptTypeX64Msr)
    parameters = io.HV_REGISTER_X64_MSR_RESULT_PARAMETERS(index, access, action)
    return (yield from guest.call(Call.HvCallRegisterInterceptResult, header.pack() + parameters.pack()))


def unregister_msr(guest: Guest, index: int, access: int) -> Statuses:
    header = io.HV_INPUT_REGISTER_INTERCEPT_RESULT(HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, Type.HvInterceptTypeX64Msr)
    parameters = io.HV_UNREGISTER_X64_MSR_RESULT_PARAMETERS(index, access)
    return (yield from guest.call(Call.HvCallUnregisterInterceptResult, header.pack() + parameters.pack()))
