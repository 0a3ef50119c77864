"""Interrupts and flushes that name a VTL, and who may start a processor that has several."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.unit.vmm.vsm.vsm_rig import Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vp_set import encode_vp_set
from vtlkit.kvm.requests import Req
from vtlkit.kvm.uapi import MpState, Vcpu

VECTOR = 0x51
SUCCESS, DENIED, PARAMETER = HvStatus.SUCCESS, HvStatus.ACCESS_DENIED, HvStatus.INVALID_PARAMETER
VARIABLE = 17
"""Where the input value has the size of the variable header, in words."""
USE_TARGET = 1 << 4


def ladder(top: Any, *, vtls: int, cpus: int = 1, allowed: int = 0) -> VsmRig:
    """Each VTL of VP 0 enables the next and calls it; `top` runs in the highest."""

    def rung(guest: Guest) -> Script:
        yield from guest.enable(guest.vtl + 1)
        yield from guest.vtl_call()

    guests = {(0, vtl): top if vtl == vtls - 1 else rung for vtl in range(vtls)}
    return run_guests(guests, vtls=allowed or vtls, cpus=cpus)


def ipi(guest: Guest, vtl: int, *, vector: int = VECTOR, ex: bool = False, mask: int = 1) -> Any:
    if ex:
        vps = encode_vp_set(vp for vp in range(64) if mask >> vp & 1)
        data = struct.pack("<IBBH", vector, vtl, 0, 0) + vps
        banks = (len(vps) - 16) // 8
        return (yield from guest.call(Call.HvCallSendSyntheticClusterIpiEx | banks << VARIABLE, data))
    return (yield from guest.call(Call.HvCallSendSyntheticClusterIpi, struct.pack("<IBBHQ", vector, vtl, 0, 0, mask)))


@pytest.mark.tlfs("hypercalls.cluster-ipi")
@pytest.mark.parametrize("ex", [False, True])
def test_which_vtls_an_ipi_may_name(ex: bool) -> None:
    """VTL 2 of four names VTLs; VTL 3 is not enabled. Statuses, and whose local APIC has the interrupt."""
    seen: list[Any] = []

    def top(guest: Guest) -> Script:
        vtls = guest.rig.partition.vtls
        for vtl in vtls.values():
            # Software-enabled local APICs: others accept nothing.
            vtl.vm.vcpus[0].apic.mmio_write(0xF0, 4, 0x1FF)
        for target in (0x00, input_vtl(0), input_vtl(1), input_vtl(2), input_vtl(3), input_vtl(15), 0x20):
            status = yield from ipi(guest, target, ex=ex)
            seen.append((status, [vtl.vm.vcpus[0].apic.irr.test_and_clear(VECTOR) for vtl in vtls.values()]))
        seen.append((yield from ipi(guest, input_vtl(0), vector=15, ex=ex)))
        yield from guest.end()

    # The guest's interrupts are off (RFLAGS.IF is clear in its initial context).
    ladder(top, vtls=3, allowed=4)
    nothing = [False, False, False]
    assert seen == [
        (SUCCESS, [False, False, True]),
        (SUCCESS, [True, False, False]),
        (SUCCESS, [False, True, False]),
        (SUCCESS, [False, False, True]),
        (DENIED, nothing),
        (DENIED, nothing),
        (PARAMETER, nothing),
        PARAMETER,
    ]


@pytest.mark.tlfs("hypercalls.cluster-ipi", "hypercalls.flush-vtl")
def test_a_vtl_that_is_not_enabled_gets_no_ipi() -> None:
    """VTL 2 was enabled by VTL 0, and VTL 1 is not there."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        seen.append((yield from ipi(guest, input_vtl(1))))
        seen.append((yield from flush(guest, 1 << 1)))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)
    assert seen == [PARAMETER, PARAMETER]


@pytest.mark.tlfs("hypercalls.cluster-ipi")
def test_an_ipi_reaches_the_processors_that_it_names() -> None:
    seen: list[Any] = []

    def top(guest: Guest) -> Script:
        vcpus = guest.rig.partition.vtl0.vm.vcpus
        for vcpu in vcpus:
            vcpu.apic.mmio_write(0xF0, 4, 0x1FF)
        for ex in (False, True):
            assert (yield from ipi(guest, input_vtl(0), mask=0b1000101, ex=ex)) == SUCCESS
            seen.append([vcpu.apic.irr.test_and_clear(VECTOR) for vcpu in vcpus])
        yield from guest.end()

    ladder(top, vtls=2, cpus=3)
    assert seen == [[True, False, True]] * 2


def flush(guest: Guest, named: int, *, flags: int = USE_TARGET, ex: bool = False, pages: int = 0, mask: int = 1) -> Any:
    """`named`: a bit per VTL."""
    code = Call.HvCallFlushVirtualAddressList if pages else Call.HvCallFlushVirtualAddressSpace
    data = struct.pack("<QQ", 0, flags | named << 8)
    banks = 0
    if ex:
        code = Call.HvCallFlushVirtualAddressListEx if pages else Call.HvCallFlushVirtualAddressSpaceEx
        vps = encode_vp_set(vp for vp in range(64) if mask >> vp & 1)
        banks = (len(vps) - 16) // 8
        data += vps
    else:
        data += mask.to_bytes(8, "little")
    return (yield from guest.call(code | banks << VARIABLE, data + bytes(8 * pages), elements=pages))


@pytest.mark.tlfs("hypercalls.flush-vtl")
@pytest.mark.parametrize("ex", [False, True])
@pytest.mark.parametrize("pages", [0, 3])
def test_which_vtls_a_flush_may_name(ex: bool, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    flushed: list[str] = []
    request = Vcpu.make_request

    def noting(vcpu: Vcpu, request_: Req) -> None:
        if request_ is Req.TLB_FLUSH:
            flushed.append(vcpu.name)
        request(vcpu, request_)

    def top(guest: Guest) -> Script:
        for named in (1, 2, 3, 0):
            flushed.clear()
            status = yield from flush(guest, named, ex=ex, pages=pages, mask=0b101)
            seen.append((status, sorted(flushed)))
        flushed.clear()
        assert (yield from flush(guest, 1, flags=USE_TARGET | 1, ex=ex, pages=pages)) == done
        seen.append(sorted(flushed))
        for flags in (USE_TARGET | 1 << 5, USE_TARGET | 1 << 10):
            seen.append((yield from flush(guest, 1, flags=flags, ex=ex, pages=pages)))
        yield from guest.end()

    monkeypatch.setattr(Vcpu, "make_request", noting)
    done = SUCCESS | pages << 32
    ladder(top, vtls=2, cpus=3)
    assert seen == [
        (done, ["vtl0-vcpu0", "vtl0-vcpu2"]),
        (done, ["vtl1-vcpu0"]),
        (done, ["vtl0-vcpu0", "vtl0-vcpu2", "vtl1-vcpu0"]),
        (PARAMETER, []),
        ["vtl0-vcpu0", "vtl0-vcpu1", "vtl0-vcpu2"],
        PARAMETER,
        PARAMETER,
    ]


@pytest.mark.tlfs("hypercalls.flush-vtl")
def test_vtl0_may_flush_itself_alone() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        for named in (1, 2, 3):
            seen.append((yield from flush(guest, named)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [SUCCESS, DENIED, DENIED]


# --- INIT and SIPI ----------------------------------------------------------------------------------------------------


def init_sipi(guest: Guest, vp: int) -> Script:
    yield from guest.wrmsr(0x830, vp << 32 | 0x4500)
    yield from guest.wrmsr(0x830, vp << 32 | 0x4610)


@pytest.mark.tlfs("start.init-sipi-dropped")
def test_init_and_sipi_start_no_processor_that_has_a_higher_vtl() -> None:
    """VP 1 has VTL 1, VP 2 has not. Neither VTL's INIT and SIPI reach VP 1; VTL 0's do reach VP 2."""
    seen: list[Any] = []

    def states(guest: Guest) -> tuple[Any, ...]:
        low, high = (guest.rig.partition.vtls[vtl].vm for vtl in (0, 1))
        vcpus = (low.vcpus[1], low.vcpus[2], high.get_vcpu_by_id(1))
        return tuple((vcpu.mp_state, vcpu.events.apic_events.load()) for vcpu in vcpus if vcpu is not None)

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.enable_apic()
        seen.append(states(guest))
        yield from init_sipi(guest, 1)
        seen.append(states(guest))
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.enable_apic()
        for vp in (1, 2):
            yield from init_sipi(guest, vp)
            yield ops.Compute(100_000)
        seen.append(states(guest)[0])
        while "started" not in guest.rig.log:
            yield ops.Compute(100)
        yield from guest.end()

    rig = VsmRig({(0, 0): vtl0, (0, 1): vtl1}, cpus=3)
    for vcpu in rig.partition.all_vcpus():
        vcpu.engine.programs[0x10000] = lambda engine: started(rig, engine, vtl0)  # type: ignore[attr-defined]
    rig.run()
    before = seen[0]
    assert before[0] == (MpState.UNINITIALIZED, 0)
    assert before[2][1] == 0
    assert seen[1] == before
    assert seen[2] == before[0]
    assert rig.log == ["started"]


def started(rig: VsmRig, engine: Any, boot: Any) -> Script:
    """At the SIPI's address, which is that of the boot processor's program, too."""
    guest = Guest(rig, engine)
    if guest.vp:
        guest.note("started")
        while True:
            yield ops.Compute(100)
    yield from boot(guest)


def test_a_reset_lets_processors_be_started_again() -> None:
    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        guest.note([vcpu.startup_blocked.load() for vcpu in guest.rig.partition.all_vcpus()])
        yield from guest.end()

    rig = run_guests({(0, 0): vtl0}, cpus=2)
    assert rig.log == [[True, True, False]]
    rig.partition.reset()
    assert [vcpu.startup_blocked.load() for vcpu in rig.partition.all_vcpus()] == [False, False]
