"""A machine of `core_rig` with the Hyper-V interface, whose test looks at it at chosen virtual times."""

from __future__ import annotations

from dataclasses import dataclass

from tests.unit.kvm.core_rig import Machine
from tests.unit.kvm.hyperv.rig import ALL_FEATURES
from vtlkit.hvdef import msrs
from vtlkit.hvdef.messages import HV_MESSAGE_HEADER, HvMessageType
from vtlkit.hvdef.synic import HV_TIMER_MESSAGE_PAYLOAD
from vtlkit.kvm.hyperv.cpuid import cpuid_leaves
from vtlkit.kvm.hyperv.features import HvFeatures
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu

MESSAGES, ASSIST, TSC_PAGE = 0x5000, 0x7000, 0x9000
TICK = 100
"""Nanoseconds in a unit of reference time."""
ENABLED, PERIODIC, LAZY, AUTO_ENABLE, DIRECT = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 12
MASKED = 1 << 16


def direct(vector: int) -> int:
    return DIRECT | vector << 4


def sint(number: int) -> int:
    return number << 16


@dataclass(frozen=True, slots=True)
class TimerMessage:
    """What a timer's message says."""

    timer: int
    expiration: int
    delivery: int


def offer_hyperv(vcpu: Vcpu, features: HvFeatures = ALL_FEATURES) -> None:
    vcpu.hv.set_cpuid(cpuid_leaves(features))


class Timers:
    """One vCPU, its timers, and its SynIC with SINT n on vector 0x40 + 16 * n for SINTs 1 to 3."""

    def __init__(self, features: HvFeatures = ALL_FEATURES) -> None:
        self.machine = Machine()
        self.host = self.machine.host
        self.vcpu = self.machine.vcpu
        offer_hyperv(self.vcpu, features)
        self.synic(True)
        self.set(msrs.HV_X64_MSR_SIMP, MESSAGES | 1)
        for number in (1, 2, 3):
            self.set(msrs.HV_X64_MSR_SINT0 + number, 0x40 + 16 * number)

    def set(self, index: int, value: int) -> bool:
        """The guest's WRMSR; False is #GP."""
        return self.vcpu.set_guest_msr(index, value)

    def get(self, index: int) -> int | None:
        """The guest's RDMSR."""
        return self.vcpu.hv.get_msr(index, host_initiated=False)

    def synic(self, enabled: bool) -> None:
        self.set(msrs.HV_X64_MSR_SCONTROL, int(enabled))

    def set_config(self, timer: int, value: int) -> bool:
        return self.set(msrs.HV_X64_MSR_STIMER0_CONFIG + 2 * timer, value)

    def set_count(self, timer: int, value: int) -> bool:
        return self.set(msrs.HV_X64_MSR_STIMER0_COUNT + 2 * timer, value)

    def config(self, timer: int) -> int:
        value = self.get(msrs.HV_X64_MSR_STIMER0_CONFIG + 2 * timer)
        assert value is not None
        return value

    def start(self, timer: int, config: int, count: int) -> None:
        """COUNT, then CONFIG with Enabled."""
        assert self.set_count(timer, count)
        assert self.set_config(timer, config | ENABLED)

    @property
    def now(self) -> int:
        """The reference counter."""
        value = self.get(msrs.HV_X64_MSR_TIME_REF_COUNT)
        assert value is not None
        return value

    def wait_until(self, now_ns: int) -> None:
        """Let time pass with the vCPU's task not looking."""
        self.host.run(until=now_ns)

    def look(self, now_ns: int | None = None) -> list[int]:
        """What the vCPU does with its requests, then; the interrupts it takes and ends."""
        if now_ns is not None:
            self.wait_until(now_ns)
        while self.vcpu.check_request(Req.HV_STIMER):
            self.vcpu.hv.process_stimers()
        taken = []
        while (vector := self.vcpu.apic.get_interrupt()) >= 0:
            taken.append(vector)
            self.vcpu.apic.set_eoi()
        return taken

    def message(self, number: int) -> TimerMessage | None:
        """The timer message in a SINT's slot."""
        slot = self.vcpu.vm.memory.read(MESSAGES + 256 * number, 256)
        header = HV_MESSAGE_HEADER.unpack(slot[:16])
        if header.MessageType == HvMessageType.HvMessageTypeNone:
            return None
        assert header.MessageType == HvMessageType.HvMessageTimerExpired
        assert header.PayloadSize == 24
        payload = HV_TIMER_MESSAGE_PAYLOAD.unpack(slot[16:40])
        return TimerMessage(payload.TimerIndex, payload.ExpirationTime, payload.DeliveryTime)

    def take_message(self, number: int) -> tuple[TimerMessage | None, bool]:
        """Empty a slot as a guest does; the message, and whether the guest must write EOM."""
        message = self.message(number)
        self.vcpu.vm.memory.write(MESSAGES + 256 * number, bytes(4))
        return message, self.pending(number)

    def pending(self, number: int) -> bool:
        """MessagePending of a slot."""
        return self.vcpu.vm.memory.read(MESSAGES + 256 * number + 5, 1)[0] & 1 == 1

    def end_of_message(self) -> None:
        self.set(msrs.HV_X64_MSR_EOM, 0)
