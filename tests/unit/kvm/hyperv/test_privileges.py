"""Privileges: each feature off, one at a time, takes away its own MSRs and hypercalls and nothing else."""

from __future__ import annotations

import pytest

from tests.unit.kvm.hyperv.rig import FakeVm
from vtlkit.hvdef import msrs
from vtlkit.hvdef.cpuid import HvFeaturesEdx, HvPartitionPrivilege
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.cpuid import cpuid_leaves
from vtlkit.kvm.hyperv.features import EVERYTHING, NEEDS, NOTHING, SWITCHES, HvFeatures
from vtlkit.kvm.hyperv.layouts import LAYOUTS
from vtlkit.kvm.hyperv.msrs import MSRS
from vtlkit.kvm.hyperv.privileges import privilege_bits
from vtlkit.kvm.kvm_run import Hyperv
from vtlkit.x86.exceptions import Vector

ALL = EVERYTHING.changed(**dict.fromkeys(SWITCHES, True))
INPUT, OUTPUT = 0x2000, 0x3000
ALWAYS = {0x40000000, 0x40000001, 0x400000FF}
MSRS_OF = {
    "vapic": {*range(0x40000070, 0x40000074)},
    "vpindex": {0x40000002},
    "runtime": {0x40000010},
    "crash": {*range(0x40000100, 0x40000106)},
    "reset": {0x40000003},
    "time": {0x40000020, 0x40000021},
    "synic": {*range(0x40000080, 0x40000085), *range(0x40000090, 0x400000A0)},
    "stimer": {*range(0x400000B0, 0x400000B8), 0x40000114, 0x40000115},
    "frequencies": {0x40000022, 0x40000023},
    "reenlightenment": {0x40000106, 0x40000107, 0x40000108},
    "tsc_invariant": {0x40000118},
    "guest_idle": {0x400000F0},
    "npiep": {0x40000040},
}
CALLS_OF = {
    "tlbflush": {0x02, 0x03, 0x13, 0x14},
    "ipi": {0x0B, 0x15},
    "ports": {0x57, 0x58, 0x59, 0x5A, 0x5B, 0x5C, 0x5D, 0x95, 0x96, 0xC0, 0xC1},
    "vsm": {0x0C, 0x0D, 0x0F, 0x11, 0x12, 0x50, 0x51, 0x52, 0xAC},
    "start_vp": {0x99},
    "extended_hypercalls": {0x8001, 0x8002},
}


def without(name: str) -> HvFeatures:
    """All features but one and those that need it."""
    gone = {name}
    while more := {other for other, needs in NEEDS.items() if not gone.isdisjoint(needs)} - gone:
        gone |= more
    return ALL.changed(**dict.fromkeys(gone, False))


def gone_from(features: HvFeatures, table: dict[str, set[int]]) -> set[int]:
    """What the features that are off take with them."""
    return {number for name, numbers in table.items() if not getattr(features, name) for number in numbers}


def accessible(features: HvFeatures) -> set[int]:
    """MSRs that the guest can read, or write if they cannot be read."""
    found = set()
    for index in MSRS:
        cpu = FakeVm(features=features).cpu
        read = cpu.rdmsr(index)
        if read is not None or cpu.wrmsr(index, 0):
            found.add(index)
        elif index not in ALWAYS:
            assert not any(cpu.wrmsr(index, value) for value in (0, 1, 0x4001))
    return found


def offered(features: HvFeatures) -> set[int]:
    """Hypercalls that are not refused for want of a privilege."""
    found = set()
    for code, layout in LAYOUTS.items():
        cpu = FakeVm(features=features).cpu
        cpu.hv.hv_vm.user_space_calls = set(LAYOUTS)
        exit_ = cpu.call(code | (1 << 32 if layout.rep else 0), 0 if layout.vtl_switch else INPUT, OUTPUT)
        if layout.vtl_switch:
            assert (exit_ is None) == (cpu.exceptions == [Vector.UD])
            refused = exit_ is None
        else:
            refused = exit_ is None and cpu.result & 0xFFFF == HvStatus.ACCESS_DENIED
        if not refused:
            found.add(code)
    return found


@pytest.mark.tlfs("discovery.privileges-msr")
def test_every_msr_is_some_features() -> None:
    named = {index for indices in MSRS_OF.values() for index in indices}
    assert set(MSRS) >= ALWAYS
    assert accessible(NOTHING) == ALWAYS
    assert accessible(ALL) == set(MSRS)
    assert not named & ALWAYS


@pytest.mark.tlfs("discovery.privileges-msr")
@pytest.mark.parametrize("name", SWITCHES)
def test_an_msr_whose_privilege_is_missing_is_a_general_protection_fault(name: str) -> None:
    features = without(name)
    assert accessible(features) == set(MSRS) - gone_from(features, MSRS_OF)


@pytest.mark.tlfs("discovery.privileges-hypercall")
@pytest.mark.parametrize("name", [*SWITCHES, "spinlocks"])
def test_a_hypercall_whose_privilege_is_missing_is_denied(name: str) -> None:
    features = ALL.changed(spinlocks=0xFFFFFFFF) if name == "spinlocks" else without(name)
    taken = gone_from(features, CALLS_OF)
    if name == "spinlocks":
        taken.add(Call.HvCallNotifyLongSpinWait)
    found = offered(features)
    assert not found & taken
    # Calls that are in no list above need what their layout says, and that alone.
    leaves = {function: registers for function, *registers in cpuid_leaves(features)}
    eax, ebx, _, edx = leaves[0x40000003]
    have = privilege_bits(eax, ebx, edx, *leaves[0x40000004][:2])
    assert found == {code for code, layout in LAYOUTS.items() if not layout.privilege & ~have}
    assert offered(ALL) == set(LAYOUTS)


@pytest.mark.tlfs("synic.ports", "synic.direct", "synic.post-message", "synic.signal-event", "hypercalls.extended")
@pytest.mark.parametrize("code", sorted(CALLS_OF["ports"] & LAYOUTS.keys() | CALLS_OF["extended_hypercalls"]))
def test_ports_and_extended_calls_need_their_privileges(code: int) -> None:
    """With them the call goes to user space, which knows the ports and the memory."""
    feature = "ports" if code in CALLS_OF["ports"] else "extended_hypercalls"
    cpu = FakeVm(features=HvFeatures().changed(**{feature: False})).cpu
    assert cpu.status(code, INPUT, OUTPUT) == HvStatus.ACCESS_DENIED
    assert isinstance(FakeVm(features=HvFeatures()).cpu.call(code, INPUT, OUTPUT), Hyperv)


ELSEWHERE = (
    HvPartitionPrivilege.FastHypercallOutput
    | HvPartitionPrivilege.EnableExtendedGvaRangesForFlushVirtualAddressList
    | HvPartitionPrivilege.AccessHypercallMsrs
)
"""Announced, and proved in the tests of hypercalls."""


@pytest.mark.tlfs("discovery.features")
@pytest.mark.parametrize(
    "bit",
    [pytest.param(bit, id=bit.name) for bit in HvPartitionPrivilege if not bit & ELSEWHERE],
)
def test_a_privilege_is_announced_if_something_needs_it(bit: HvPartitionPrivilege) -> None:
    eax, ebx, _, _ = cpuid_leaves(ALL)[3][1:]
    announced = (eax | ebx << 32) & bit
    needed = any(msr.privilege & bit for msr in MSRS.values()) or any(
        layout.privilege & bit for layout in LAYOUTS.values()
    )
    assert bool(announced) == needed


def test_crash_registers_are_a_feature_of_edx() -> None:
    assert msrs.HV_X64_MSR_CRASH_CTL in accessible(NOTHING.changed(crash=True))
    assert cpuid_leaves(NOTHING.changed(crash=True))[3][4] & HvFeaturesEdx.GuestCrashRegsAvailable
