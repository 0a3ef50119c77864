"""HvCallInstallIntercept: who may, what is refused, who is told, and when it begins and ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.intercept_guests import (
    PORT,
    R,
    W,
    X,
    install,
    kind_of,
    must,
    nothing,
    register_cpuid,
    telling,
)
from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.messages import HvMessageType as Message
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import UserIntercepts
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector

# --- statuses -------------------------------------------------------------------------------------------------------

REFUSED = [
    ("another partition", (Type.HvInterceptTypeX64IoPort, PORT, R), 5, HvStatus.INVALID_PARTITION_ID),
    ("execute of a port", (Type.HvInterceptTypeX64IoPort, PORT, X), None, HvStatus.INVALID_PARAMETER),
    ("a bit of no direction", (Type.HvInterceptTypeX64Cpuid, 1, 8), None, HvStatus.INVALID_PARAMETER),
    ("a port of 17 bits", (Type.HvInterceptTypeX64IoPort, 1 << 16, R), None, HvStatus.INVALID_PARAMETER),
    (
        "a range upside down",
        (Type.HvInterceptTypeX64IoPortRange, 0x81 | 0x80 << 16, R),
        None,
        HvStatus.INVALID_PARAMETER,
    ),
    ("a range of 33 bits", (Type.HvInterceptTypeX64IoPortRange, 1 << 32, R), None, HvStatus.INVALID_PARAMETER),
    ("an MSR of 33 bits", (Type.HvInterceptTypeX64Msr, 1 << 32, R), None, HvStatus.INVALID_PARAMETER),
    ("a leaf of 33 bits", (Type.HvInterceptTypeX64Cpuid, 1 << 32, X), None, HvStatus.INVALID_PARAMETER),
    ("a vector above 31", (Type.HvInterceptTypeException, 32, X), None, HvStatus.INVALID_PARAMETER),
    ("NMI", (Type.HvInterceptTypeException, 2, X), None, HvStatus.INVALID_PARAMETER),
    ("a parameter too many", (Type.HvInterceptTypeHypercall, 1, X), None, HvStatus.INVALID_PARAMETER),
    ("a register of no bit", (Type.HvInterceptTypeX64ApicWrite, 1 << 5, W), None, HvStatus.INVALID_PARAMETER),
]


@pytest.mark.parametrize(
    ("request_", "partition", "status"), [each[1:] for each in REFUSED], ids=[e[0] for e in REFUSED]
)
@pytest.mark.tlfs("intercepts.installing")
def test_what_is_refused(request_: tuple[int, int, int], partition: int | None, status: HvStatus) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        kind, parameter, access = request_
        own = HV_PARTITION_ID_SELF if partition is None else partition
        seen.append((yield from install(guest, kind, parameter, access, partition=own)))
        seen.append(guest.rig.partition.vtls[1].installed)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [status, UserIntercepts()]


@pytest.mark.parametrize("kind", [0x4, 0x5, 0x7, 0xA, 0xC, 0xD, 0xF, 0x10, 0x12, 0x13, 0xFFFFFFFF])
@pytest.mark.tlfs("intercepts.other-types")
def test_types_with_nothing_to_intercept(kind: int) -> None:
    """SMI, unknown connections and devices, exception traps, and numbers that are no type."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        for access in (R | W | X, X, 0):
            seen.append((yield from install(guest, kind, 0, access)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    assert seen == [HvStatus.INVALID_PARAMETER] * 3


@pytest.mark.tlfs("intercepts.installing", "intercepts.result", "intercepts.registers")
def test_the_lowest_vtl_has_nobody_to_intercept() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from install(guest, Type.HvInterceptTypeX64IoPort, PORT)))
        seen.append((yield from register_cpuid(guest, 1, eax=(1, 1))))
        for name in (Name.HvX64RegisterCrInterceptControl, Name.HvX64RegisterCrInterceptCr0Mask):
            seen.append((yield from guest.set(name, 0)))
            assert (yield from guest.get(name))[0] == HvStatus.ACCESS_DENIED
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [HvStatus.ACCESS_DENIED] * 4


@pytest.mark.tlfs("intercepts.registers")
def test_the_registers_keep_what_is_written_and_refuse_reserved_bits() -> None:
    seen: list[Any] = []
    masks = (
        Name.HvX64RegisterCrInterceptCr0Mask,
        Name.HvX64RegisterCrInterceptCr4Mask,
        Name.HvX64RegisterCrInterceptIa32MiscEnableMask,
    )

    def vtl1(guest: Guest) -> Script:
        for name in (Name.HvX64RegisterCrInterceptControl, *masks):
            seen.append((yield from guest.get(name)))
        for number, name in enumerate(masks):
            seen.append((yield from guest.set(name, 0xFFFFFFFFFFFFFFF0 + number)))
            seen.append((yield from guest.set(name, 1 << 64)))
        for value in ((1 << 25) - 1, 1 << 25, 1 << 63):
            seen.append((yield from guest.set(Name.HvX64RegisterCrInterceptControl, value)))
        for name in (Name.HvX64RegisterCrInterceptControl, *masks):
            seen.append((yield from guest.get(name)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    invalid = HvStatus.INVALID_REGISTER_VALUE
    assert seen == [
        *[(0, 0)] * 4,
        *[0, invalid] * 3,
        *(0, invalid, invalid),
        (0, (1 << 25) - 1),
        *[(0, 0xFFFFFFFFFFFFFFF0 + number) for number in range(3)],
    ]


def test_an_engine_that_cannot_stop_before_a_port() -> None:
    """As the embedded one where it does not count: refused rather than told with a wrong RIP."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from install(guest, Type.HvInterceptTypeX64IoPort, PORT)))
        seen.append((yield from install(guest, Type.HvInterceptTypeX64Msr, 5)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1})
    create = rig.factory.create

    def without_ports(name: str) -> Any:
        engine = create(name)
        engine.intercepts_ports = False
        return engine

    rig.factory.create = without_ports  # type: ignore[method-assign, assignment]
    rig.run()
    assert seen == [HvStatus.FEATURE_UNAVAILABLE, HvStatus.SUCCESS]


# --- being told -----------------------------------------------------------------------------------------------------

TOLD: list[tuple[str, tuple[int, int], Any, Message]] = [
    ("in", (Type.HvInterceptTypeX64IoPort, PORT), ops.In(PORT, 1), Message.HvMessageTypeX64IoPortIntercept),
    (
        "out",
        (Type.HvInterceptTypeX64IoPortRange, PORT - 1 | PORT + 1 << 16),
        ops.Out(PORT, 1),
        Message.HvMessageTypeX64IoPortIntercept,
    ),
    ("rdmsr", (Type.HvInterceptTypeX64Msr, msr.MSR_LSTAR), ops.Rdmsr(), Message.HvMessageTypeMsrIntercept),
    ("wrmsr", (Type.HvInterceptTypeX64Msr, msr.MSR_LSTAR), ops.Wrmsr(), Message.HvMessageTypeMsrIntercept),
    ("cpuid", (Type.HvInterceptTypeX64Cpuid, 0), ops.Cpuid(), Message.HvMessageTypeX64CpuidIntercept),
    ("all cpuid", (Type.HvInterceptTypeX64GlobalCpuid, 0), ops.Cpuid(), Message.HvMessageTypeX64CpuidIntercept),
    (
        "exception",
        (Type.HvInterceptTypeException, Vector.UD),
        ops.Fault(Vector.UD, trap=True),
        Message.HvMessageTypeExceptionIntercept,
    ),
    ("hypercall", (Type.HvInterceptTypeHypercall, 0), ops.Vmmcall(), Message.HvMessageTypeHypercallIntercept),
]


@pytest.mark.parametrize(("installed", "op", "message"), [each[1:] for each in TOLD], ids=[each[0] for each in TOLD])
@pytest.mark.tlfs("intercepts.queued", "intercepts.handling", "intercepts.cpuid", "intercepts.hypercall")
def test_told_before_it_happens_and_done_when_lifted(installed: tuple[int, int], op: Any, message: Message) -> None:
    """VTL1's own use is never told; VTL0's is, as often as it is tried; lifted, it happens."""
    kind, parameter = installed
    seen: list[Any] = []

    def use(guest: Guest) -> Script:
        # RCX and RAX name MSR_LSTAR, leaf 0 and a hypercall that nobody has.
        yield ops.Set(msr.MSR_LSTAR, "rcx")
        yield ops.Set(0)
        yield op

    def setup(guest: Guest) -> Script:
        yield from must(install(guest, kind, parameter, R | W if kind in (0, 1, 0x11) else X))
        yield from use(guest)

    def react(guest: Guest, payload: bytes) -> Script:
        seen.append(kind_of(payload))
        if len(seen) == 3:
            yield from must(install(guest, kind, parameter, 0))
        yield ops.Compute()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from use(guest)
        seen.append("done")
        yield from use(guest)
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): telling(setup, react)})
    rig.handlers[0, Vector.UD] = rig.handlers[1, Vector.UD] = lambda guest, event: nothing(guest)
    rig.run_with_ports()
    assert seen == [message] * 3 + ["done"]


@pytest.mark.tlfs("intercepts.nested-order", "intercepts.header")
def test_the_lower_vtl_is_told_first() -> None:
    """VTL1 and VTL2 both want the port; VTL2 wants VTL1's use of it, too."""
    seen: list[Any] = []

    def lift(guest: Guest, message: bytes) -> Script:
        seen.append((guest.vtl, kind_of(message), message[16 + 6 : 16 + 8]))
        if guest.vtl == 1:
            yield ops.Out(PORT, 1)
        yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT, 0))

    def want(guest: Guest) -> Script:
        yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT))

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from telling(want, lift)(guest)

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Out(PORT, 1)
        seen.append("done")
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1, (0, 2): telling(want, lift)}, vtls=3)
    rig.run_with_ports()
    message = Message.HvMessageTypeX64IoPortIntercept
    levels = [(entry[0], entry[1], int.from_bytes(entry[2], "little") >> 7 & 0xF) for entry in seen if entry != "done"]
    # VTL0's access to VTL1; the handler's own to VTL2.
    assert levels == [(1, message, 0), (2, message, 1)]
    assert seen[-1] == "done"


@pytest.mark.tlfs("intercepts.queued")
def test_a_full_queue_leaves_the_message_in_the_assist_page() -> None:
    seen: list[Any] = []

    def setup(guest: Guest) -> Script:
        yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT))

    def react(guest: Guest, message: bytes) -> Script:
        at = guest.assist + 0x70
        seen.append((kind_of(message), guest.rig.read_vtl(1, at, 4), guest.rig.read_vtl(1, at + 16 + 0x28, 2)))
        yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT, 0))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        synic = guest.rig.partition.vps[0].vcpus[1].hv.synic
        while synic.post(0, b"\1" + bytes(255)) == HvStatus.SUCCESS:
            pass
        yield ops.Out(PORT, 1)
        yield from guest.end()

    VsmRig({(0, 0): vtl0, (0, 1): telling(setup, react)}).run_with_ports()
    assert seen == [(1, Message.HvMessageTypeX64IoPortIntercept, PORT)]


@pytest.mark.tlfs("intercepts.installing")
def test_a_processor_is_told_from_its_vtls_enabling_on() -> None:
    """VTL1 of processor 0 installs; processor 1 has no VTL1 yet, and then it has."""
    log: list[Any] = []

    def setup(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT))

    def react(guest: Guest, message: bytes) -> Script:
        if message:
            log.append((guest.vp, kind_of(message)))
            yield from must(install(guest, Type.HvInterceptTypeX64IoPort, PORT, 0))
            return
        log.append("enable")
        assert (yield from guest.enable_vp_vtl(1, vp=1)) == HvStatus.SUCCESS

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        guest.note("installed")
        while "untold" not in guest.rig.log:
            yield ops.Compute(10)
        yield from guest.vtl_call()
        guest.note("enabled")
        while True:
            yield ops.Compute(10)

    def other(guest: Guest) -> Script:
        while "installed" not in guest.rig.log:
            yield ops.Compute(10)
        yield ops.Out(PORT, 1)
        guest.note("untold")
        while "enabled" not in guest.rig.log:
            yield ops.Compute(10)
        # The first entry of VTL1 here is its program's beginning.
        yield from guest.vtl_call()
        yield ops.Out(PORT, 1)
        yield from guest.end()

    both = telling(setup, react)
    VsmRig({(0, 0): vtl0, (0, 1): both, (1, 0): other, (1, 1): both}, cpus=2).run_with_ports()
    assert log == ["enable", (1, Message.HvMessageTypeX64IoPortIntercept)]


@pytest.mark.tlfs("intercepts.installing")
def test_what_is_installed_is_what_was_asked_for() -> None:
    """The last setting of a thing counts; what the mask leaves out is removed."""
    seen: list[UserIntercepts] = []

    def vtl1(guest: Guest) -> Script:
        for kind, parameter, access in (
            (Type.HvInterceptTypeX64IoPortRange, 0x40 | 0x43 << 16, R | W),
            (Type.HvInterceptTypeX64IoPort, 0x41, W),
            (Type.HvInterceptTypeX64IoPortRange, 0x42 | 0x42 << 16, 0),
            (Type.HvInterceptTypeX64Msr, 0x10, R | W),
            (Type.HvInterceptTypeX64Msr, 0x10, W),
            (Type.HvInterceptTypeException, 14, X),
            (Type.HvInterceptTypeException, 6, X),
            (Type.HvInterceptTypeException, 14, 0),
            (Type.HvInterceptTypeX64ApicWrite, 3, W),
            (Type.HvInterceptTypeX64ApicWrite, 2, 0),
        ):
            yield from must(install(guest, kind, parameter, access))
        seen.append(guest.rig.partition.vtls[1].installed)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})
    (installed,) = seen
    assert installed.port_reads
    assert installed.port_writes
    assert int.from_bytes(installed.port_reads, "little") >> 0x40 == 0b1001
    assert int.from_bytes(installed.port_writes, "little") >> 0x40 == 0b1011
    assert (installed.msr_reads, installed.msr_writes) == (frozenset(), {0x10: None})
    assert installed.exceptions == 1 << 6
    assert installed.apic_writes == {0x350}


@pytest.mark.tlfs("intercepts.installing")
def test_nobody_is_told_after_a_reset() -> None:
    rig = VsmRig({(0, 0): lambda guest: guest.end()})
    partition = rig.partition
    vp = partition.vps[0]
    with partition.lock:
        partition.enable_vtl(1)
        partition.vtls[1].installed = UserIntercepts(cpuid_all=True)
        vp.add_vcpu(partition.create_vcpu(0, 1), 1)
    assert vp.vcpus[0].user.wanted.load().cpuid_all
    partition.reset()
    assert not vp.vcpus[0].user.wanted.load().cpuid_all
    assert not vp.intercepts.registers
    rig.factory.close()
