"""HvCallGetVpRegisters and HvCallSetVpRegisters: whose registers, which, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.vsm.vsm_rig import U32, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER, HV_X64_TABLE_REGISTER
from vtlkit.vmm.vsm import vp_registers

VALID_CONFIG = 0b111111
NO_SUCH_REGISTER = 0x00FFFFFF


def returning(guest: Guest) -> Script:
    """A VTL that returns at once, each time."""
    while True:
        yield from guest.vtl_return()


def in_vtl1(body: Any, *, below: Any = None, cpus: int = 1, vtls: int = 2) -> VsmRig:
    """Run `body` in VTL1 of VP 0; `below` is what VTL0 does once VTL1 has returned."""

    def vtl1(guest: Guest) -> Script:
        yield from body(guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        if below is not None:
            yield from below(guest)
        yield from guest.end()

    return run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): returning}, cpus=cpus, vtls=vtls)


@pytest.mark.tlfs("hypercalls.get-set-registers")
def test_target_statuses() -> None:
    seen: list[int] = []

    def attempt(
        guest: Guest, *, partition: int = HV_PARTITION_ID_SELF, vp: int = HV_VP_INDEX_SELF, vtl: int = 0
    ) -> Script:
        for code in (Call.HvCallGetVpRegisters, Call.HvCallSetVpRegisters):
            data = io.HV_INPUT_GET_VP_REGISTERS(partition, vp, vtl).pack()
            element = io.HV_REGISTER_ASSOC(Name.HvX64RegisterR15).pack()
            size = 4 if code == Call.HvCallGetVpRegisters else len(element)
            seen.append((yield from guest.call(code, data + element[:size], elements=1)))

    def vtl1(guest: Guest) -> Script:
        yield from attempt(guest, partition=1)
        yield from attempt(guest, vp=2)
        yield from attempt(guest, vtl=0x20)
        yield from attempt(guest, vtl=input_vtl(2))
        yield from attempt(guest, vtl=input_vtl(15))
        yield from attempt(guest, vp=1, vtl=input_vtl(1))
        yield from attempt(guest, vtl=input_vtl(0))
        yield from attempt(guest, vtl=input_vtl(1))
        # Without UseTargetVtl the number does not count.
        yield from attempt(guest, vtl=5)
        yield from attempt(guest, vp=1, vtl=input_vtl(0))

    in_vtl1(vtl1, cpus=2, vtls=3)
    done = 1 << 32
    assert seen == [
        *[HvStatus.INVALID_PARTITION_ID] * 2,
        *[HvStatus.INVALID_VP_INDEX] * 2,
        *[HvStatus.INVALID_PARAMETER] * 2,
        *[HvStatus.ACCESS_DENIED] * 4,
        *[HvStatus.INVALID_VTL_STATE] * 2,
        *[done] * 8,
    ]


@pytest.mark.tlfs("hypercalls.get-set-registers")
def test_reserved_fields_of_the_input() -> None:
    seen: list[int] = []

    def vtl0(guest: Guest) -> Script:
        head = io.HV_INPUT_GET_VP_REGISTERS(HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0)
        bad = io.HV_INPUT_GET_VP_REGISTERS(HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0, b"\0\1\0")
        pair = io.HV_REGISTER_ASSOC(Name.HvX64RegisterR15)
        bad_pair = io.HV_REGISTER_ASSOC(Name.HvX64RegisterR15, (0, 1, 0))
        for data, code, count in (
            (bad.pack() + pair.pack(), Call.HvCallSetVpRegisters, 1),
            (bad.pack() + pair.pack(), Call.HvCallGetVpRegisters, 1),
            (head.pack() + bad_pair.pack(), Call.HvCallSetVpRegisters, 1),
            (head.pack() + pair.pack() + bad_pair.pack(), Call.HvCallSetVpRegisters, 2),
            (head.pack() + pair.pack(), Call.HvCallSetVpRegisters, 0),
        ):
            seen.append((yield from guest.call(code, data, elements=count)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    wrong = HvStatus.INVALID_PARAMETER
    assert seen == [wrong, wrong, wrong, wrong | 1 << 32, HvStatus.INVALID_HYPERCALL_INPUT]


@pytest.mark.tlfs("hypercalls.get-set-registers")
def test_several_registers_in_one_call() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        head = io.HV_INPUT_GET_VP_REGISTERS(HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF, 0).pack()
        values = {Name.HvX64RegisterR12: 1 << 63, Name.HvX64RegisterR13: 7, Name.HvX64RegisterR14: 9}
        pairs = b"".join(
            io.HV_REGISTER_ASSOC(name, (0, 0, 0), value.to_bytes(16, "little")).pack() for name, value in values.items()
        )
        seen.append((yield from guest.call(Call.HvCallSetVpRegisters, head + pairs, elements=3)))
        seen.append((guest.regs.r12, guest.regs.r13, guest.regs.r14))
        names = b"".join(name.to_bytes(4, "little") for name in (*values, NO_SUCH_REGISTER, *values))
        seen.append((yield from guest.call(Call.HvCallGetVpRegisters, head + names, elements=3)))
        seen.append([guest.rig.read(guest.output + 16 * number, 16) for number in range(3)])
        seen.append((yield from guest.call(Call.HvCallGetVpRegisters, head + names, elements=7)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [
        3 << 32,
        (1 << 63, 7, 9),
        3 << 32,
        [1 << 63, 7, 9],
        # The unknown one stops the call where it is.
        HvStatus.INVALID_PARAMETER | 3 << 32,
    ]


@pytest.mark.tlfs("hypercalls.get-set-registers", "vsm.status-registers")
def test_read_only_and_unknown_registers() -> None:
    seen: list[Any] = []
    read_only = [
        Name.HvRegisterVsmCodePageOffsets,
        Name.HvRegisterVsmVpStatus,
        Name.HvRegisterVsmPartitionStatus,
        Name.HvRegisterVsmCapabilities,
        Name.HvRegisterVpIndex,
    ]

    def vtl1(guest: Guest) -> Script:
        for name in read_only:
            before = yield from guest.get(name)
            seen.append((yield from guest.set(name, U32)))
            assert before == (yield from guest.get(name))
        seen.append((yield from guest.get(NO_SUCH_REGISTER))[0])
        seen.append((yield from guest.set(NO_SUCH_REGISTER, 0)))

    in_vtl1(vtl1)
    assert seen == [HvStatus.ACCESS_DENIED] * len(read_only) + [HvStatus.INVALID_PARAMETER] * 2


def test_every_register_that_can_be_written_can_be_read() -> None:
    assert set(vp_registers._SETTERS) <= set(vp_registers._GETTERS)


@pytest.mark.tlfs("vsm.status-registers")
def test_status_registers() -> None:
    seen: list[Any] = []

    def look(guest: Guest) -> Script:
        for vtl in range(guest.vtl + 1):
            vp_status = yield from guest.get(Name.HvRegisterVsmVpStatus, vtl=input_vtl(vtl))
            partition_status = yield from guest.get(Name.HvRegisterVsmPartitionStatus, vtl=input_vtl(vtl))
            seen.append((guest.vtl, vtl, vp_status[1], partition_status[1]))

    in_vtl1(look, below=look, vtls=4)
    both, partition = 0b11 << 16, 3 << 16 | 0b11
    # Shared: a lower VTL's register says what the own one says.
    assert seen == [(1, 0, both | 1, partition), (1, 1, both | 1, partition), (0, 0, both, partition)]


@pytest.mark.tlfs("vsm.status-registers")
def test_capabilities_offer_what_there_is() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterVsmCapabilities)))
        seen.append((yield from guest.get(Name.HvRegisterVpIndex)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    # No MBEC, DR6 private, start-up can be denied.
    assert seen == [(HvStatus.SUCCESS, 1 << 17), (HvStatus.SUCCESS, 0)]


@pytest.mark.tlfs("vsm.status-registers")
def test_vsm_registers_are_no_msrs() -> None:
    """The TLFS calls the number of HvRegisterVsmCapabilities an MSR address, too: here it is a register name alone."""
    rig = VsmRig({(0, 0): returning})
    vcpu = rig.partition.vps[0].vcpus[0]
    for index in range(Name.HvRegisterVsmCodePageOffsets, Name.HvRegisterVsmVpWaitForTlbLock + 1):
        assert vcpu.get_msr(index) is None
        assert not vcpu.set_guest_msr(index, 0)
    rig.factory.close()


# --- architectural registers ------------------------------------------------------------------------------------------


@pytest.mark.tlfs("vsm.private-registers")
def test_private_registers_of_the_lower_vtl() -> None:
    """What VTL1 sets there VTL0 runs with, and what VTL0 had VTL1 reads."""
    seen: dict[Any, Any] = {}
    gs = HV_X64_SEGMENT_REGISTER(0xABC000, 0xFFFFF, 0x18, 0xC093)
    idt = HV_X64_TABLE_REGISTER(Limit=0x123, Base=0x456000)
    values = {
        Name.HvX64RegisterRsp: 0x12340,
        Name.HvX64RegisterGs: int.from_bytes(gs.pack(), "little"),
        Name.HvX64RegisterIdtr: int.from_bytes(idt.pack(), "little"),
        Name.HvX64RegisterLstar: 0xFFFF_8000_0000_1000,
        Name.HvX64RegisterStar: 0x18 << 48,
        Name.HvX64RegisterPat: 0x0007010600070106,
    }

    def vtl1(guest: Guest) -> Script:
        for name, value in values.items():
            assert (yield from guest.set(name, value, vtl=input_vtl(0))) == HvStatus.SUCCESS
            assert (yield from guest.get(name, vtl=input_vtl(0))) == (HvStatus.SUCCESS, value)
            seen[name] = (yield from guest.get(name))[1]
        for name in (Name.HvX64RegisterCr0, Name.HvX64RegisterCr3, Name.HvX64RegisterCr4, Name.HvX64RegisterEfer):
            seen[name] = (yield from guest.get(name, vtl=input_vtl(0)))[1]
        seen["rip"] = (yield from guest.get(Name.HvX64RegisterRip, vtl=input_vtl(0)))[1]

    def below(guest: Guest) -> Script:
        regs = guest.regs
        seen["below"] = (
            regs.rsp,
            regs.sregs.gs.base,
            regs.sregs.idt.base,
            regs.get_msr(0xC0000082),
            regs.get_msr(0x277),
        )
        seen["rip after"] = regs.rip
        yield ops.Compute()

    in_vtl1(vtl1, below=below)
    assert seen["below"] == (0x12340, 0xABC000, 0x456000, 0xFFFF_8000_0000_1000, 0x0007010600070106)
    # VTL0 goes on where VTL1 read its RIP to be: past the VTL call.
    assert seen["rip"] == seen["rip after"]
    assert all(seen[name] != value for name, value in values.items())
    controls = (Name.HvX64RegisterCr0, Name.HvX64RegisterCr3, Name.HvX64RegisterCr4, Name.HvX64RegisterEfer)
    assert [seen[name] for name in controls] == [0x80010033, 0x8000, 0x20, 0x500]


@pytest.mark.tlfs("vsm.shared-registers")
def test_shared_registers_are_the_same_under_every_vtl() -> None:
    """RBX is one register: VTL0's, set by VTL1, is VTL1's own, and VTL0 finds it."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield ops.Set(0x51, "rbx")
        seen.append((yield from guest.get(Name.HvX64RegisterRbx, vtl=input_vtl(0))))
        seen.append((yield from guest.set(Name.HvX64RegisterRbx, 0x52, vtl=input_vtl(0))))
        seen.append(guest.regs.rbx)
        guest.regs.sregs.cr2 = 0x5000
        seen.append((yield from guest.get(Name.HvX64RegisterCr2, vtl=input_vtl(0))))

    def below(guest: Guest) -> Script:
        seen.append(guest.regs.rbx)
        yield ops.Compute()

    in_vtl1(vtl1, below=below)
    assert seen == [(0, 0x51), HvStatus.SUCCESS, 0x52, (0, 0x5000), 0x52]


@pytest.mark.tlfs("hypercalls.get-set-registers")
def test_another_processors_registers() -> None:
    """VP 1 is running, halted or not started: its registers are read and set between two of its instructions."""
    seen: list[Any] = []
    go: list[int] = []

    def vtl0(guest: Guest) -> Script:
        while not go:
            yield ops.Compute(10)
        seen.append((yield from guest.get(Name.HvX64RegisterR9, vp=1)))
        seen.append((yield from guest.set(Name.HvX64RegisterR10, 0xABCD, vp=1)))
        seen.append((yield from guest.get(Name.HvX64RegisterCr3, vp=2)))
        go.append(1)
        while len(go) < 3:
            yield ops.Compute(10)
        yield from guest.end()

    def other(guest: Guest) -> Script:
        yield ops.Set(0x99, "r9")
        go.append(0)
        while guest.regs.r10 != 0xABCD:
            yield ops.Compute(10)
        go.append(2)

    run_guests({(0, 0): vtl0, (1, 0): other}, cpus=3)
    assert seen == [(0, 0x99), HvStatus.SUCCESS, (0, 0)]


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (Name.HvX64RegisterRsp, 1 << 64),
        (Name.HvX64RegisterRip, 0x8000_0000_0000_0000),
        (Name.HvX64RegisterRflags, 1 << 22),
        (Name.HvX64RegisterRflags, 1 << 3),
        (Name.HvX64RegisterRflags, 1 << 17),
        (Name.HvX64RegisterLstar, 0x8000_0000_0000_0000),
        (Name.HvX64RegisterPat, 2),
        (Name.HvX64RegisterStar, 1 << 64),
        (Name.HvX64RegisterCs, int.from_bytes(HV_X64_SEGMENT_REGISTER(0, U32, 8, 0xA19B).pack(), "little")),
        (Name.HvX64RegisterIdtr, int.from_bytes(HV_X64_TABLE_REGISTER(Base=0x8000_0000_0000_0000).pack(), "little")),
    ],
)
def test_values_that_no_register_holds(name: int, value: int) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        before = yield from guest.get(name, vtl=input_vtl(0))
        seen.append((yield from guest.set(name, value, vtl=input_vtl(0))))
        assert before == (yield from guest.get(name, vtl=input_vtl(0)))

    in_vtl1(vtl1)
    assert seen == [HvStatus.INVALID_REGISTER_VALUE]


@pytest.mark.tlfs("hypercalls.get-set-registers")
@given(st.sampled_from(sorted(vp_registers._SETTERS)), st.integers(0, (1 << 128) - 1))
def test_hostile_values_get_a_status(name: int, value: int) -> None:
    rig = VsmRig({(0, 0): returning})
    vp = rig.partition.vps[0]
    status = vp_registers.set(vp, vp, 0, name, value)
    assert isinstance(status, HvStatus)
    got = vp_registers.get(vp, vp, 0, name)
    assert isinstance(got, int)
    assert 0 <= got < 1 << 128
    rig.factory.close()
