"""Whose a register is: what a higher VTL writes for a lower one, what both find, what a refused write says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.vmm.vsm.test_vp_registers import in_vtl1
from tests.unit.vmm.vsm.vsm_rig import CR0, CR4, EFER, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef import msrs as hv_msrs
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.x86 import msr
from vtlkit.x86.registers import CR0_TS, CR0_WP, CR4_OSFXSR, CR4_OSXSAVE, EFER_NX

FST0 = 1 << 79 | 0x8000 << 48 | 5
MTRR = 0x0606060606060606

SHARED = {
    Name.HvX64RegisterR15: 0x1234,
    Name.HvX64RegisterCr2: 0xDEAD000,
    Name.HvX64RegisterDr0: 0x1000,
    Name.HvX64RegisterDr3: 0xFFFF_8000_0000_0000,
    Name.HvX64RegisterXmm0: 0xF << 120 | 1,
    Name.HvX64RegisterXmm15: 0xE << 120 | 2,
    Name.HvX64RegisterFpMmx0: FST0,
    Name.HvX64RegisterFpControlStatus: 0x1F << 32 | 0x027F,
    Name.HvX64RegisterXmmControlStatus: 0x1F00 << 64,
    Name.HvX64RegisterXfem: 3,
    Name.HvX64RegisterMsrMtrrDefType: 0xC06,
    Name.HvX64RegisterMsrMtrrPhysBase7: 0x1000_0006,
    Name.HvX64RegisterMsrMtrrPhysMask7: 0xF000_0800,
    Name.HvX64RegisterMsrMtrrFix64k00000: MTRR,
    Name.HvX64RegisterMsrMtrrFix16kA0000: MTRR,
    Name.HvX64RegisterMsrMtrrFix4kF8000: MTRR,
}
PRIVATE = {
    Name.HvX64RegisterRsp: 0x7770,
    Name.HvX64RegisterRflags: 0x202,
    Name.HvX64RegisterCr0: CR0 | CR0_TS | CR0_WP,
    Name.HvX64RegisterCr3: 0x9000,
    Name.HvX64RegisterCr4: CR4 | CR4_OSFXSR | CR4_OSXSAVE,
    Name.HvX64RegisterCr8: 7,
    Name.HvX64RegisterEfer: EFER | EFER_NX,
    Name.HvX64RegisterDr6: 0xFFFF0FF1,
    Name.HvX64RegisterDr7: 0x401,
    Name.HvX64RegisterFs: int.from_bytes(HV_X64_SEGMENT_REGISTER(0x5000, 0xFFFF, 3, 0x93).pack(), "little"),
    Name.HvX64RegisterLdtr: int.from_bytes(HV_X64_SEGMENT_REGISTER(0x6000, 0xFFFF, 8, 0x82).pack(), "little"),
    Name.HvX64RegisterTr: int.from_bytes(HV_X64_SEGMENT_REGISTER(0x7000, 0x67, 0x50, 0x8B).pack(), "little"),
    Name.HvX64RegisterKernelGsBase: 0x1111,
    Name.HvX64RegisterApicBase: 0xFEE00D00,
    Name.HvX64RegisterPat: 0x0007010600070106,
    Name.HvX64RegisterSysenterCs: 8,
    Name.HvX64RegisterSysenterEip: 0x2222,
    Name.HvX64RegisterSysenterEsp: 0x3333,
    Name.HvX64RegisterStar: 0x18 << 48,
    Name.HvX64RegisterLstar: 0x4444,
    Name.HvX64RegisterCstar: 0x5555,
    Name.HvX64RegisterSfmask: 0x700,
    Name.HvX64RegisterTscAux: 0x66,
    Name.HvX64RegisterTscAdjust: 0x7777,
    Name.HvX64RegisterMsrIa32MiscEnable: 0x41801,
    Name.HvX64RegisterApicTpr: 0x75,
    Name.HvX64RegisterApicSpurious: 0x1EF,
    Name.HvX64RegisterApicLvtError: 0xFE,
    Name.HvX64RegisterApicDivide: 0xB,
}
SYNTHETIC = {
    Name.HvRegisterGuestOsId: 0x8100_0000_0000_0001,
    Name.HvRegisterReferenceTsc: 0x160001,
    Name.HvRegisterVpAssistPage: 0x161001,
    Name.HvRegisterSifp: 0x162001,
    Name.HvRegisterSipp: 0x163001,
    Name.HvRegisterScontrol: 1,
    Name.HvRegisterSint0: 0x2030,
    Name.HvRegisterSint15: 0x40,
    Name.HvX64RegisterHypercall: 0x164001,
    Name.HvX64RegisterSyntheticTpr: 0x30,
    Name.HvRegisterGuestCrashP0: 0x111,
    Name.HvRegisterGuestCrashP4: 0x444,
}


def exchange(values: dict[Name, int]) -> tuple[dict[Name, int], dict[Name, int]]:
    """VTL1 sets them in VTL0: what it then reads of its own, and what VTL0 reads of its own when it goes on."""
    own: dict[Name, int] = {}
    below: dict[Name, int] = {}

    def vtl1(guest: Guest) -> Script:
        yield from guest.wrmsr(msr.MSR_IA32_APICBASE, 0xFEE00D00)
        for name, value in values.items():
            assert (yield from guest.set(name, value, vtl=input_vtl(0))) == HvStatus.SUCCESS, name
            own[name] = (yield from guest.get(name))[1]

    def vtl0(guest: Guest) -> Script:
        for name in values:
            below[name] = (yield from guest.get(name))[1]

    in_vtl1(vtl1, below=vtl0)
    return own, below


@pytest.mark.tlfs("vsm.shared-registers")
def test_what_the_vtls_of_a_processor_share() -> None:
    own, below = exchange(SHARED)
    assert own == SHARED
    assert below == SHARED


@pytest.mark.tlfs("vsm.private-registers")
@pytest.mark.tlfs("hypercalls.registers-architectural")
def test_what_each_vtl_has_for_itself() -> None:
    own, below = exchange(PRIVATE)
    assert below == PRIVATE
    same = {name for name, value in PRIVATE.items() if own[name] == value}
    # The two VTLs were given the same task register limit and APIC mode by the test, nothing else.
    assert same <= {Name.HvX64RegisterApicBase}


@pytest.mark.tlfs("vsm.private-registers")
@pytest.mark.tlfs("hypercalls.registers-synthetic")
def test_synthetic_registers_are_each_vtls_own() -> None:
    own, below = exchange(SYNTHETIC)
    assert below == SYNTHETIC
    assert all(own[name] != value for name, value in SYNTHETIC.items())


@pytest.mark.tlfs("vsm.private-registers")
def test_the_tsc_is_each_vtls_own_and_moves_alone() -> None:
    far = 1 << 60
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        assert (yield from guest.set(Name.HvX64RegisterTsc, far, vtl=input_vtl(0))) == HvStatus.SUCCESS
        for vtl in range(2):
            seen.append((yield from guest.get(Name.HvX64RegisterTsc, vtl=input_vtl(vtl)))[1])
        # Unlike a guest's own write of either.
        seen.append((yield from guest.get(Name.HvX64RegisterTscAdjust, vtl=input_vtl(0)))[1])

    def vtl0(guest: Guest) -> Script:
        seen.append((yield ops.Rdtsc()) & 0xFFFFFFFF | guest.regs.rdx << 32)

    in_vtl1(vtl1, below=vtl0)
    theirs, own, adjust, after = seen
    assert own < far <= theirs <= after
    assert adjust == 0


@pytest.mark.tlfs("vsm.shared-registers")
def test_run_time_is_the_processors() -> None:
    """The time that VTL 1 has run counts in VTL 0's register, too."""
    seen: list[tuple[int, int]] = []

    def look(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterVpRuntime)))
        seen.append((0, (yield from guest.rdmsr(hv_msrs.HV_X64_MSR_VP_RUNTIME))))

    def vtl1(guest: Guest) -> Script:
        yield ops.Compute(100_000)
        yield from look(guest)

    in_vtl1(vtl1, below=look)
    values = [value for _, value in seen]
    assert values == sorted(values)
    # 100,000 instructions of 10 ns, in units of 100 ns.
    assert values[0] >= 10_000


@pytest.mark.tlfs("vsm.shared-registers")
@pytest.mark.tlfs("vsm.status-registers")
def test_dr6_is_private_and_the_capabilities_say_so() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterVsmCapabilities))[1] & 1)
        assert (yield from guest.set(Name.HvX64RegisterDr6, 0xFFFF0FF2, vtl=input_vtl(0))) == HvStatus.SUCCESS
        seen.append((yield from guest.get(Name.HvX64RegisterDr6))[1])

    in_vtl1(vtl1)
    assert seen == [0, 0xFFFF0FF0]


@pytest.mark.tlfs("vsm.status-registers")
def test_code_page_offsets_are_read_only_and_each_vtls_own() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        for vtl in range(2):
            status, value = yield from guest.get(Name.HvRegisterVsmCodePageOffsets, vtl=input_vtl(vtl))
            seen.append((status, value & 0xFFF, value >> 12 & 0xFFF, value >> 24))
        seen.append((yield from guest.set(Name.HvRegisterVsmCodePageOffsets, 0)))

    in_vtl1(vtl1)
    *offsets, status = seen
    assert status == HvStatus.ACCESS_DENIED
    for answer, call, back, rest in offsets:
        assert (answer, rest) == (HvStatus.SUCCESS, 0)
        assert 0 < call < back < 0xFFF


READ_ONLY = [
    Name.HvRegisterInternalActivityState,
    Name.HvRegisterHypervisorVersion,
    Name.HvRegisterPrivilegesAndFeaturesInfo,
    Name.HvRegisterProcessorClockFrequency,
    Name.HvRegisterVpIndex,
    Name.HvRegisterVpRuntime,
    Name.HvRegisterTimeRefCount,
    Name.HvRegisterSversion,
    Name.HvX64RegisterInitialApicId,
    Name.HvX64RegisterMsrMtrrCap,
    Name.HvX64RegisterMCount,
    Name.HvX64RegisterAmdVmCr,
    Name.HvX64RegisterApicId,
    Name.HvX64RegisterApicVersion,
    Name.HvX64RegisterApicPpr,
    Name.HvX64RegisterApicIsr0,
    Name.HvX64RegisterApicIrr7,
    Name.HvX64RegisterApicCurrentCount,
]


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.parametrize("name", READ_ONLY)
def test_read_only(name: Name) -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.get(name))[0])
        seen.append((yield from guest.set(name, 0)))
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [HvStatus.SUCCESS, HvStatus.ACCESS_DENIED]


REFUSED = [
    (Name.HvX64RegisterRflags, 0x200),
    (Name.HvX64RegisterCr0, 1 << 32 | CR0),
    (Name.HvX64RegisterCr0, CR0 & ~1),
    (Name.HvX64RegisterCr0, CR0 | 1 << 29),
    (Name.HvX64RegisterCr3, 1 << 52),
    (Name.HvX64RegisterCr4, CR4 | 1 << 63),
    (Name.HvX64RegisterCr4, 0),
    (Name.HvX64RegisterCr8, 16),
    (Name.HvX64RegisterEfer, EFER | 2),
    (Name.HvX64RegisterEfer, 0),
    (Name.HvX64RegisterXfem, 2),
    (Name.HvX64RegisterXfem, 1 << 63 | 1),
    (Name.HvX64RegisterDr6, 0),
    (Name.HvX64RegisterDr7, 1 << 32 | 0x400),
    (Name.HvX64RegisterFpMmx1, 1 << 80),
    (Name.HvX64RegisterFpControlStatus, 1 << 40),
    (Name.HvX64RegisterXmmControlStatus, 1 << 16 + 64),
    (Name.HvX64RegisterSysenterCs, 1 << 32),
    (Name.HvX64RegisterSfmask, 1 << 32),
    (Name.HvX64RegisterTscAux, 1 << 32),
    (Name.HvX64RegisterDebugCtl, 1),
    (Name.HvX64RegisterApicBase, 1 << 0),
    (Name.HvX64RegisterMsrMtrrDefType, 7),
    (Name.HvX64RegisterMsrMtrrFix64k00000, 2),
    (Name.HvX64RegisterMsrMtrrPhysBase0, 1 << 60),
    (Name.HvX64RegisterApicTpr, 0x100),
    (Name.HvX64RegisterApicSpurious, 1 << 10),
    (Name.HvX64RegisterApicEoi, 1),
    (Name.HvX64RegisterApicLvtTimer, 1 << 20),
    (Name.HvX64RegisterApicLvtError, 1 << 15),
    (Name.HvX64RegisterApicDivide, 4),
    (Name.HvX64RegisterApicInitCount, 1 << 32),
    (Name.HvRegisterSint3, 8),
    (Name.HvX64RegisterSyntheticEoi, 1 << 32),
    (Name.HvX64RegisterCs, int.from_bytes(HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 8, 0xE09B).pack(), "little")),
    (Name.HvX64RegisterDs, int.from_bytes(HV_X64_SEGMENT_REGISTER(0, 0xFFFF, 8, 0x82).pack(), "little")),
    (Name.HvX64RegisterLdtr, int.from_bytes(HV_X64_SEGMENT_REGISTER(0, 0xFFFF, 8, 0x93).pack(), "little")),
    (Name.HvX64RegisterSs, int.from_bytes(HV_X64_SEGMENT_REGISTER(0, 0xFFFFF000, 8, 0xC093).pack(), "little")),
    (Name.HvX64RegisterSs, int.from_bytes(HV_X64_SEGMENT_REGISTER(0, 0x100000, 8, 0x4093).pack(), "little")),
    (Name.HvRegisterInterruptState, 4),
    (Name.HvRegisterPendingEvent1, 1),
]


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.tlfs("hypercalls.registers-architectural")
@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_values_that_the_processor_refuses(name: Name, value: int) -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        before = yield from guest.get(name, vtl=input_vtl(0))
        seen.append((yield from guest.set(name, value, vtl=input_vtl(0))))
        assert before == (yield from guest.get(name, vtl=input_vtl(0)))

    in_vtl1(vtl1)
    assert seen == [HvStatus.INVALID_REGISTER_VALUE]


@pytest.mark.tlfs("hypercalls.registers-architectural")
def test_an_apic_of_a_lower_vtl() -> None:
    """VTL1 sends VTL0 an IPI through VTL0's own APIC, sees it requested, and ends it once it is in service."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        below = input_vtl(0)
        yield from guest.set(Name.HvX64RegisterApicSpurious, 0x1FF, vtl=below)
        seen.append((yield from guest.set(Name.HvX64RegisterApicSelfIpi, 0x65, vtl=below)))
        seen.append((yield from guest.get(Name.HvX64RegisterApicIrr3, vtl=below)))
        yield from guest.vtl_return()
        seen.append((yield from guest.get(Name.HvX64RegisterApicIsr3, vtl=below)))
        seen.append((yield from guest.get(Name.HvX64RegisterApicPpr, vtl=below)))
        seen.append((yield from guest.set(Name.HvX64RegisterApicEoi, 0, vtl=below)))
        seen.append((yield from guest.get(Name.HvX64RegisterApicEoi, vtl=below))[0])
        seen.append((yield from guest.get(Name.HvX64RegisterApicIsr3, vtl=below)))

    def handler(guest: Guest, _event: Any) -> Script:
        yield from guest.vtl_call()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_apic()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield ops.Sti()
        yield ops.Compute()
        yield from guest.end()

    def returning(guest: Guest) -> Script:
        yield from vtl1(guest)
        yield from guest.vtl_return()

    rig = VsmRig({(0, 0): vtl0, (0, 1): returning})
    rig.handlers[0, 0x65] = handler
    rig.run()
    assert seen == [0, (0, 1 << 5), (0, 1 << 5), (0, 0x60), 0, HvStatus.ACCESS_DENIED, (0, 0)]


@pytest.mark.tlfs("hypercalls.registers-synthetic")
def test_information_registers_are_the_cpuid_leaves() -> None:
    seen: dict[int, int] = {}
    leaves = {
        0x40000002: Name.HvRegisterHypervisorVersion,
        0x40000003: Name.HvRegisterPrivilegesAndFeaturesInfo,
        0x40000004: Name.HvRegisterFeaturesInfo,
        0x40000005: Name.HvRegisterImplementationLimitsInfo,
        0x40000006: Name.HvRegisterHardwareFeaturesInfo,
    }

    def vtl0(guest: Guest) -> Script:
        for leaf, name in leaves.items():
            status, value = yield from guest.get(name)
            assert status == HvStatus.SUCCESS
            yield ops.Set(leaf)
            yield ops.Set(0, "rcx")
            yield ops.Cpuid()
            regs = guest.regs
            seen[leaf] = value
            assert value == regs.rax | regs.rbx << 32 | regs.rcx << 64 | regs.rdx << 96
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen[0x40000003]


@pytest.mark.tlfs("hypercalls.registers-synthetic")
def test_frequencies_are_in_khz() -> None:
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        for name, index in (
            (Name.HvRegisterProcessorClockFrequency, hv_msrs.HV_X64_MSR_TSC_FREQUENCY),
            (Name.HvRegisterInterruptClockFrequency, hv_msrs.HV_X64_MSR_APIC_FREQUENCY),
        ):
            _, value = yield from guest.get(name)
            seen.append(value * 1000 == (yield from guest.rdmsr(index)) != 0)
        yield from guest.end()

    run_guests({(0, 0): vtl0})
    assert seen == [True, True]


@pytest.mark.tlfs("hypercalls.registers-synthetic")
def test_what_another_processor_is_doing() -> None:
    """Waiting for its start, halted, running: HvRegisterInternalActivityState."""
    seen: list[Any] = []

    def vtl0(guest: Guest) -> Script:
        seen.append((yield from guest.get(Name.HvRegisterInternalActivityState, vp=2)))
        while (yield from guest.get(Name.HvRegisterInternalActivityState, vp=1)) != (0, 2):
            yield ops.Compute(10)
        seen.append((yield from guest.get(Name.HvRegisterInternalActivityState)))
        yield from guest.end()

    def other(guest: Guest) -> Script:
        yield ops.Compute(100)
        yield ops.Hlt()

    run_guests({(0, 0): vtl0, (1, 0): other}, cpus=3)
    assert seen == [(0, 1), (0, 0)]
