"""Every name of HV_REGISTER_NAME, on both engines: a status for each access, and what is written is what is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.engine.api import EngineFactory, RamBlock
from vtlkit.engine.scripted import ScriptedFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import HV_STIMER_CONFIG_SINTX, HV_SYNIC_STIMER_COUNT, HvStimerConfig
from vtlkit.kvm.uapi import HvFeatures, Kvm, KvmRun, MemoryRegion, Vcpu
from vtlkit.vmm.vsm import vp_registers
from vtlkit.vmm.vsm.partition import Partition
from vtlkit.vmm.vsm.registers.unavailable import UNAVAILABLE
from vtlkit.vmm.vsm.vp import Vp
from vtlkit.x86.registers import CR0_ET, CR0_VALID

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF
U128 = (1 << 128) - 1
NAMES = sorted(set(Name) | set(vp_registers._GETTERS))
REFUSALS = {
    HvStatus.ACCESS_DENIED,
    HvStatus.INVALID_PARAMETER,
    HvStatus.INVALID_REGISTER_VALUE,
    HvStatus.INVALID_VTL_STATE,
}
CLOCKS = {
    Name.HvX64RegisterTsc,
    Name.HvX64RegisterMCount,
    Name.HvX64RegisterACount,
    Name.HvRegisterTimeRefCount,
    Name.HvX64RegisterApicCurrentCount,
}
"""They go on by themselves."""


class Bare:
    """A partition of one processor that does not run."""

    def __init__(self, engines: EngineFactory) -> None:
        self.engines = engines
        self.partition = Partition(
            Kvm(Simulator(), engines),
            [MemoryRegion(0, 0, 0x100000, RamBlock(0x100000), 0)],
            cpus=1,
            vtls=2,
            hyperv=HvFeatures(),
            supervisor=self,
        )
        self.vp = self.partition.vps[0]
        # Without an identity the hypercall page cannot be enabled.
        self.set(Name.HvRegisterGuestOsId, 1)

    def get(self, name: int) -> int | HvStatus:
        return vp_registers.get(self.vp, self.vp, 0, name)

    def set(self, name: int, value: int) -> HvStatus:
        return vp_registers.set(self.vp, self.vp, 0, name, value)

    def state(self) -> dict[int, int]:
        return {name: value for name in vp_registers._GETTERS if name not in CLOCKS for value in (self.get(name),)}

    def ending(self) -> bool:
        return False

    def must_park(self) -> bool:
        return False

    def park(self) -> None:
        raise AssertionError

    def task_started(self) -> None:
        raise AssertionError

    def task_finished(self) -> None:
        raise AssertionError

    def vcpu_finished(self, vcpu: Vcpu) -> None:
        raise AssertionError

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        raise AssertionError


ENGINES: dict[str, Callable[[], EngineFactory]] = {"scripted": lambda: ScriptedFactory({}), "unicorn": UnicornFactory}


@pytest.fixture(params=sorted(ENGINES))
def bare(request: pytest.FixtureRequest) -> Iterator[Bare]:
    machine = Bare(ENGINES[request.param]())
    yield machine
    machine.engines.close()


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.tlfs("hypercalls.registers-architectural")
@pytest.mark.tlfs("hypercalls.registers-synthetic")
def test_every_name_is_somewhere() -> None:
    known = set(vp_registers._GETTERS)
    assert set(Name) == known | set(UNAVAILABLE)
    assert not known & set(UNAVAILABLE)
    assert set(vp_registers._SETTERS) <= known


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.tlfs("hypercalls.registers-architectural")
@pytest.mark.tlfs("hypercalls.registers-synthetic")
def test_what_is_not_there_is_an_unknown_name(bare: Bare) -> None:
    for name in (*UNAVAILABLE, 0x00FFFFFF, U32):
        assert bare.get(name) == HvStatus.INVALID_PARAMETER, name
        assert bare.set(name, 0) == HvStatus.INVALID_PARAMETER, name


def test_registers_that_this_processor_lacks(bare: Bare) -> None:
    """Eight variable MTRRs of sixteen; leaves that CPUID does not have."""
    absent = [
        *(Name[f"HvX64RegisterMsrMtrrPhys{part}{digit}"] for part in ("Base", "Mask") for digit in "89ABCDEF"),
        Name.HvRegisterIptFeaturesInfo,
    ]
    for name in absent:
        assert bare.get(name) == HvStatus.INVALID_PARAMETER
        if name in vp_registers._SETTERS:
            assert bare.set(name, 0) == HvStatus.INVALID_PARAMETER


def values() -> st.SearchStrategy[int]:
    """Anything; near what a register can hold; and, the most telling, one bit off what it holds."""
    return st.one_of(
        st.integers(0, U128),
        st.integers(0, U64),
        st.integers(0, 0xFFFF),
        st.integers(0, 127).map(lambda bit: -1 - bit),
    )


def kept(name: int, value: int) -> int | None:
    """What a register that took `value` reads as; None where that is more than the value says."""
    if name in (Name.HvX64RegisterCr0, Name.HvX64RegisterIntermediateCr0):
        return value & CR0_VALID | CR0_ET
    if name in (Name.HvX64RegisterIdtr, Name.HvX64RegisterGdtr):
        return value & ~((1 << 48) - 1)
    if name == Name.HvX64RegisterApicIcr:
        return value & ~(1 << 12)
    if name == Name.HvRegisterPendingInterruption:
        return value if value & 1 else 0
    if name in TIMER_CONFIGS and not value & HvStimerConfig.DirectMode and not HV_STIMER_CONFIG_SINTX.get(value):
        return value & ~HvStimerConfig.Enabled
    return None if name in DERIVED else value


TIMER_CONFIGS = {Name(Name.HvRegisterStimer0Config + 2 * number) for number in range(HV_SYNIC_STIMER_COUNT)}

DERIVED = {
    # EFER.LMA is the processor's; the mask of MXCSR, and on one engine the last x87 instruction's address.
    Name.HvX64RegisterEfer,
    Name.HvX64RegisterXmmControlStatus,
    Name.HvX64RegisterFpControlStatus,
    # Bits that cannot be changed, or depend on the APIC's mode.
    Name.HvX64RegisterMsrIa32MiscEnable,
    Name.HvX64RegisterTscDeadline,
    Name.HvX64RegisterSyntheticIcr,
    *(name for name in Name if name.name.startswith("HvX64RegisterApicLvt")),
    # Commands.
    Name.HvRegisterGuestCrashCtl,
    Name.HvRegisterEom,
    Name.HvX64RegisterApicEoi,
    Name.HvX64RegisterApicSelfIpi,
    Name.HvX64RegisterSyntheticEoi,
    # The parameter of a page fault goes to CR2, an exception during another's delivery becomes a double fault.
    Name.HvRegisterPendingEvent0,
    Name.HvRegisterVsmPartitionConfig,
}


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.parametrize("engine", sorted(ENGINES))
@given(st.sampled_from(NAMES), st.data())
def test_a_write_is_kept_or_changes_nothing(engine: str, name: int, data: Any) -> None:
    machine = Bare(ENGINES[engine]())
    try:
        write(machine, name, data)
    finally:
        machine.engines.close()


def write(machine: Bare, name: int, data: Any) -> None:
    before = machine.get(name)
    assert 0 <= before <= U128
    value = data.draw(values())
    if value < 0:
        value = before ^ 1 << -1 - value
    state = machine.state()
    status = machine.set(name, value)
    if status:
        assert status in REFUSALS
        assert machine.state() == state
        return
    after = machine.get(name)
    expected = kept(name, value)
    if expected is not None and name not in CLOCKS:
        assert after == expected


@pytest.mark.tlfs("hypercalls.get-set-registers")
@pytest.mark.tlfs("hypercalls.registers-architectural")
@pytest.mark.tlfs("hypercalls.registers-synthetic")
@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_what_a_register_reads_as_it_can_be_set_to(engine: str) -> None:
    """Saved and restored: at power-on, each register takes its own value."""
    machine = Bare(ENGINES[engine]())
    commands = {Name.HvX64RegisterApicEoi, Name.HvX64RegisterApicSelfIpi, Name.HvX64RegisterSyntheticEoi}
    # Restoring the capability bits would report a crash; the timers' and the IPI registers need what is off here.
    commands |= {Name.HvRegisterGuestCrashCtl, Name.HvRegisterDeliverabilityNotifications}
    for name in vp_registers._SETTERS:
        value = machine.get(name)
        if name in commands or isinstance(value, HvStatus) or name == Name.HvRegisterVsmPartitionConfig:
            continue
        assert machine.set(name, value) == HvStatus.SUCCESS, Name(name).name
    machine.engines.close()
