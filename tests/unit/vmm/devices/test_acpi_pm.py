"""PM1, PM timer, GPE0, SMI command port, and the S3 sleep of kvm-unit-tests with its RTC wake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.devices.device_rig import Events, Line, ManualHost
from vtlkit.vmm.devices import acpi_pm as pm
from vtlkit.vmm.devices.acpi_pm import AcpiPm, GpeBlock, SmiCommand

SECOND = 1_000_000_000
STS, EN, CNT, TMR = 0x600, 0x602, 0x604, 0x608


class Rig:
    def __init__(self, timer_bits: int = 24) -> None:
        self.host, self.line, self.events = ManualHost(), Line(), Events()
        self.pm = AcpiPm(self.host.as_host(), self.line, self.events, timer_bits=timer_bits)
        self.gpe = GpeBlock(self.host.as_host(), self.pm)
        self.smi = SmiCommand(self.pm)

    def enable(self) -> None:
        self.smi.write(0xB2, 1, pm.ACPI_ENABLE)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_acpi_mode_is_switched_by_the_smi_port_only(rig: Rig) -> None:
    rig.pm.write(CNT, 2, pm.SCI_EN)
    assert rig.pm.read(CNT, 2) == 0
    rig.enable()
    assert rig.pm.read(CNT, 2) == pm.SCI_EN
    assert rig.smi.read(0xB2, 1) == pm.ACPI_ENABLE
    rig.pm.write(CNT, 2, 0)
    assert rig.pm.read(CNT, 2) == pm.SCI_EN
    rig.smi.write(0xB2, 1, pm.ACPI_DISABLE)
    assert rig.pm.read(CNT, 2) == 0


def test_power_button_raises_sci_until_it_is_acknowledged(rig: Rig) -> None:
    rig.pm.write(EN, 2, pm.PWRBTN_STS)
    rig.pm.press_power_button()
    assert rig.line.level == 0, "not in ACPI mode"
    rig.enable()
    assert rig.line.level == 1
    rig.pm.write(STS, 2, pm.PWRBTN_STS)
    assert (rig.line.level, rig.pm.read(STS, 2)) == (0, 0)


@pytest.mark.parametrize(("bits", "width"), [(24, 24), (32, 32)])
def test_pm_timer_counts_at_its_frequency(bits: int, width: int) -> None:
    rig = Rig(bits)
    rig.host.advance(7 * SECOND)
    assert rig.pm.read(TMR, 4) == 7 * pm.PM_TIMER_HZ % (1 << width)
    assert rig.pm.read(TMR + 1, 1) == 7 * pm.PM_TIMER_HZ >> 8 & 0xFF


def test_pm_timer_status_follows_the_top_bit(rig: Rig) -> None:
    rig.enable()
    rig.pm.write(EN, 2, pm.TMR_STS)
    half_ns = -(-(1 << 23) * SECOND // pm.PM_TIMER_HZ)
    rig.host.advance(half_ns - 1)
    assert (rig.line.level, rig.pm.read(STS, 2)) == (0, 0)
    rig.host.advance(1)
    assert (rig.line.level, rig.pm.read(STS, 2)) == (1, pm.TMR_STS)
    rig.pm.write(STS, 2, pm.TMR_STS)
    assert rig.line.level == 0
    rig.host.advance(half_ns)
    assert rig.line.level == 1
    assert rig.line.edges == 2


def test_soft_off(rig: Rig) -> None:
    rig.pm.write(CNT, 2, pm.SLP_EN)
    assert rig.events.log == ["power_off"]
    assert not rig.pm.read(CNT, 2) & pm.SLP_EN


def test_soft_off_by_byte_writes(rig: Rig) -> None:
    rig.pm.write(CNT, 1, 0)
    assert rig.events.log == []
    rig.pm.write(CNT + 1, 1, pm.SLP_EN >> 8)
    assert rig.events.log == ["power_off"]


def test_s3_with_rtc_wake_as_kvm_unit_tests_does_it(rig: Rig) -> None:
    rig.pm.write(EN, 2, 0x400)
    rig.pm.write(CNT, 2, 0x2400)
    assert rig.events.log == ["suspend"]
    rig.pm.rtc_alarm()
    rig.pm.rtc_alarm()
    assert rig.events.log == ["suspend", "wakeup"]
    rig.pm.reset(waking=True)
    assert rig.pm.read(STS, 2) == pm.WAK_STS | pm.RTC_STS
    rig.pm.reset()
    assert (rig.pm.read(STS, 2), rig.pm.read(EN, 2)) == (0, 0)


def test_a_wake_event_that_came_first_is_not_slept_through(rig: Rig) -> None:
    rig.pm.write(EN, 2, pm.RTC_STS)
    rig.pm.rtc_alarm()
    rig.pm.write(CNT, 2, 0x2400)
    assert rig.events.log == ["suspend", "wakeup"]


def test_a_disabled_event_does_not_wake(rig: Rig) -> None:
    rig.pm.write(CNT, 2, 0x2400)
    rig.pm.rtc_alarm()
    assert rig.events.log == ["suspend"]
    rig.pm.press_power_button()
    assert rig.events.log == ["suspend"]


def test_unknown_sleep_types_do_nothing(rig: Rig) -> None:
    for sleep_type in range(2, 8):
        rig.pm.write(CNT, 2, pm.SLP_EN | sleep_type << pm.SLP_TYP_SHIFT)
    assert rig.events.log == []


def test_gpe_raises_sci(rig: Rig) -> None:
    rig.enable()
    rig.gpe.raise_event(9)
    assert (rig.line.level, rig.gpe.read(0xAFE0, 2)) == (0, 1 << 9)
    rig.gpe.write(0xAFE3, 1, 2)
    assert rig.line.level == 1
    rig.gpe.write(0xAFE1, 1, 2)
    assert (rig.line.level, rig.gpe.read(0xAFE0, 4)) == (0, 1 << 25)
    with pytest.raises(ValueError, match="GPE 16"):
        rig.gpe.raise_event(16)
    rig.gpe.reset()
    assert rig.gpe.read(0xAFE0, 4) == 0


@given(
    st.lists(
        st.tuples(st.integers(0x600, 0x60B), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF), st.booleans()),
        max_size=40,
    )
)
def test_hostile_accesses_keep_the_line_at_the_level_of_the_registers(ops: list[tuple[int, int, int, bool]]) -> None:
    rig = Rig()
    rig.enable()
    for port, size, value, alarm in ops:
        rig.pm.write(port, size, value & ((1 << (8 * size)) - 1))
        if alarm:
            rig.pm.rtc_alarm()
            rig.host.advance(SECOND)
        assert 0 <= rig.pm.read(port, size) < 1 << (8 * size)
        enabled = rig.pm.read(STS, 2) & rig.pm.read(EN, 2) & 0x521
        assert rig.line.level == (1 if enabled else 0)
