"""The i8254 interval timer and the speaker port.

Mirrors arch/x86/kvm/i8254.c, with its choices: counts are binary (the BCD bit is kept and reported, not applied), modes
0, 1 and 4 of channel 0 pulse GSI 0 once per load, modes 2 and 3 periodically, mode 5 waits for a gate that never rises.

Promise: with re-injection (KVM's default) a guest that keeps up on average gets as many ticks as periods have passed.

Shared: all registers and the tick count are under the PIT's own lock (rank DEVICE). The host timer's callback runs in
interrupt context, where no lock may be taken: it stores `_expired` and wakes the worker task ("kvm-pit", as KVM's
kernel thread), which counts the ticks under the lock and drives GSI 0 without it. `acked` and `mask_changed` come
with the IRQCHIP lock held and take the PIT's: IRQCHIP ranks before DEVICE. The PIT never calls out with its lock held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from vtlkit.host.api import Cell, Host, LockRank, Task

KVM_PIT_FREQ = 1193182
"""Hz of all three channels."""
SPEAKER_PORT = 0x61
MIN_PERIOD_NS = 200_000
"""The shortest period channel 0 may have (KVM's module parameter min_timer_period_us)."""

_NSEC_PER_SEC = 1_000_000_000
_MAX_COUNT = 0x10000
_COUNTER_MASK = 0xFFFF
_COMMAND_PORT = 3
_READ_BACK = 3
_READ_BACK_NO_COUNT = 0x20
_READ_BACK_NO_STATUS = 0x10
_MODE_NONE = 0xFF
_SPEAKER_GATE, _SPEAKER_DATA, _SPEAKER_REFRESH_SHIFT, _SPEAKER_OUT_SHIFT = 1, 2, 4, 5
_REFRESH_CLOCK_SHIFT = 14
_PERIODIC_MODES = (2, 3)
_ONE_SHOT_MODES = (0, 1, 4)
_RETRIGGERED_MODES = (1, 2, 3, 5)
_GATED_CHANNEL = 2


class RwState(IntEnum):
    """Which byte of a count comes next; the first three are also the access modes of the control word."""

    LSB = 1
    MSB = 2
    WORD0 = 3
    WORD1 = 4


@dataclass(slots=True)
class PitChannel:
    """One counter (`struct kvm_pit_channel_state`); `load_ns` is the host time at which it began to count."""

    count: int = _MAX_COUNT
    latched_count: int = 0
    count_latched: int = 0
    status_latched: bool = False
    status: int = 0
    read_state: int = RwState.LSB
    write_state: int = RwState.LSB
    write_latch: int = 0
    rw_mode: int = 0
    mode: int = _MODE_NONE
    bcd: int = 0
    gate: int = 1
    load_ns: int = 0

    def counter(self, now_ns: int) -> int:
        """The value a read would get."""
        ticks = self._ticks(now_ns)
        if self.mode in (0, 1, 4, 5):
            return (self.count - ticks) & _COUNTER_MASK
        if self.mode == 3:
            ticks *= 2
        return self.count - ticks % self.count

    def out(self, now_ns: int) -> int:
        """The level of the OUT pin."""
        ticks = self._ticks(now_ns)
        if self.mode == 1:
            return int(ticks < self.count)
        if self.mode == 2:
            return int(ticks % self.count == 0 and ticks != 0)
        if self.mode == 3:
            return int(ticks % self.count < (self.count + 1) >> 1)
        if self.mode in (4, 5):
            return int(ticks == self.count)
        return int(ticks >= self.count)

    def _ticks(self, now_ns: int) -> int:
        return (now_ns - self.load_ns) * KVM_PIT_FREQ // _NSEC_PER_SEC

    def latch_count(self, now_ns: int) -> None:
        if not self.count_latched:
            self.latched_count = self.counter(now_ns)
            self.count_latched = self.rw_mode

    def latch_status(self, now_ns: int) -> None:
        if not self.status_latched:
            self.status = self.out(now_ns) << 7 | self.rw_mode << 4 | (self.mode & 7) << 1 | self.bcd
            self.status_latched = True

    def read(self, now_ns: int) -> int:
        """The next byte for the guest: latched status, latched count, or the running counter."""
        if self.status_latched:
            self.status_latched = False
            return self.status
        if self.count_latched:
            state = self.count_latched
            self.count_latched = RwState.MSB if state == RwState.WORD0 else 0
            return (self.latched_count >> 8 if state == RwState.MSB else self.latched_count) & 0xFF
        state = self.read_state
        if state == RwState.WORD0:
            self.read_state = RwState.WORD1
        elif state == RwState.WORD1:
            self.read_state = RwState.WORD0
        value = self.counter(now_ns)
        return (value >> 8 if state in (RwState.MSB, RwState.WORD1) else value) & 0xFF

    def write(self, value: int) -> int | None:
        """The next byte from the guest; the whole count if it is complete."""
        if self.write_state == RwState.MSB:
            return value << 8
        if self.write_state == RwState.WORD0:
            self.write_latch = value
            self.write_state = RwState.WORD1
            return None
        if self.write_state == RwState.WORD1:
            self.write_state = RwState.WORD0
            return self.write_latch | value << 8
        return value


@dataclass(frozen=True, slots=True)
class PitState:
    """KVM_GET_PIT2: `load_ns` of each channel is relative to the moment of saving (0 or negative)."""

    channels: tuple[PitChannel, PitChannel, PitChannel]
    speaker_data_on: bool


class Pit:
    """Three channels: 0 drives GSI 0, 2 drives the speaker and bit 5 of its port."""

    __slots__ = (
        "_channels",
        "_expired",
        "_host",
        "_irq_ack",
        "_lock",
        "_on_tick",
        "_pending",
        "_period",
        "_queue",
        "_reinject",
        "_set_irq",
        "_speaker_data_on",
        "_stopped",
        "_target",
        "_timer",
        "_worker",
    )

    def __init__(
        self,
        host: Host,
        set_irq: Callable[[int], object],
        on_tick: Callable[[], None] | None = None,
        *,
        reinject: bool = True,
    ) -> None:
        """`set_irq(level)` drives GSI 0; `on_tick` is the NMI watchdog (`IpiBus.nmi_watchdog`). Both run in the worker.

        With `reinject`, register the PIT as GSI 0's notifier (`IrqRouting.register_notifier(0, pit)`).
        """
        self._host = host
        self._set_irq = set_irq
        self._on_tick = on_tick
        self._reinject = reinject
        self._lock = host.lock("pit", LockRank.DEVICE)
        self._queue = host.wait_queue("pit-work")
        self._expired: Cell[bool] = host.cell(False, "pit-expired")
        self._stopped: Cell[bool] = host.cell(False, "pit-stopped")
        self._timer = host.timer(self._pit_timer_fn, "pit")
        self._channels = self._reset_channels()
        self._speaker_data_on = False
        self._period = 0
        self._target = 0
        self._pending = 0
        self._irq_ack = True
        self._worker: Task = host.spawn(self._work, "kvm-pit", daemon=True)

    def _reset_channels(self) -> tuple[PitChannel, PitChannel, PitChannel]:
        now = self._host.now_ns()
        return PitChannel(load_ns=now), PitChannel(load_ns=now), PitChannel(load_ns=now, gate=0)

    def destroy(self) -> None:
        """Stop the timer and end the worker task. Does not wait for it."""
        self._timer.cancel()
        self._stopped.store(True)
        self._queue.wake()

    def reset(self) -> None:
        """`kvm_pit_reset`: no channel has a mode, and channel 0 does not tick. Takes the PIT's lock."""
        with self._lock:
            self._timer.cancel()
            self._period = self._target = 0
            self._channels = self._reset_channels()
            self._speaker_data_on = False
            self._reset_reinject()

    # Guest access

    def port_read(self, port: int, size: int) -> int:
        """IN from 0x40 to 0x43 or 0x61: one byte in the low bits whatever `size`. Takes the PIT's lock."""
        now = self._host.now_ns()
        with self._lock:
            if port == SPEAKER_PORT:
                return self._speaker_read(now)
            index = port & 3
            return 0 if index == _COMMAND_PORT else self._channels[index].read(now)

    def port_write(self, port: int, size: int, value: int) -> None:
        """OUT to 0x40 to 0x43 or 0x61: the low byte counts. Takes the PIT's lock."""
        value &= 0xFF
        now = self._host.now_ns()
        with self._lock:
            if port == SPEAKER_PORT:
                self._speaker_data_on = value & _SPEAKER_DATA != 0
                self._set_gate(_GATED_CHANNEL, value & _SPEAKER_GATE, now)
            elif port & 3 == _COMMAND_PORT:
                self._control(value, now)
            else:
                count = self._channels[port & 3].write(value)
                if count is not None:
                    self._load_count(port & 3, count, now)

    def _speaker_read(self, now: int) -> int:
        channel = self._channels[_GATED_CHANNEL]
        refresh = now >> _REFRESH_CLOCK_SHIFT & 1
        return (
            channel.gate
            | (_SPEAKER_DATA if self._speaker_data_on else 0)
            | refresh << _SPEAKER_REFRESH_SHIFT
            | channel.out(now) << _SPEAKER_OUT_SHIFT
        )

    def _set_gate(self, index: int, gate: int, now: int) -> None:
        channel = self._channels[index]
        if channel.mode in _RETRIGGERED_MODES and channel.gate < gate:
            channel.load_ns = now
        channel.gate = gate

    def _control(self, value: int, now: int) -> None:
        index = value >> 6
        if index == _READ_BACK:
            for number, channel in enumerate(self._channels):
                if value & 2 << number:
                    if not value & _READ_BACK_NO_COUNT:
                        channel.latch_count(now)
                    if not value & _READ_BACK_NO_STATUS:
                        channel.latch_status(now)
            return
        channel = self._channels[index]
        access = value >> 4 & 3
        if access == 0:
            channel.latch_count(now)
            return
        channel.rw_mode = channel.read_state = channel.write_state = access
        mode = value >> 1 & 7
        channel.mode = mode - 4 if mode > 5 else mode
        channel.bcd = value & 1

    def _load_count(self, index: int, count: int, now: int) -> None:
        channel = self._channels[index]
        channel.count = count or _MAX_COUNT
        channel.load_ns = now
        if index == 0:
            self._create_timer(now)

    # Channel 0's ticks

    def _create_timer(self, now: int) -> None:
        channel = self._channels[0]
        self._timer.cancel()
        self._reset_reinject()
        self._period = self._target = 0
        if channel.mode not in _PERIODIC_MODES and channel.mode not in _ONE_SHOT_MODES:
            return
        interval = channel.count * _NSEC_PER_SEC // KVM_PIT_FREQ
        if channel.mode in _PERIODIC_MODES:
            self._period = max(interval, MIN_PERIOD_NS)
        self._target = channel.load_ns + interval
        if self._period and self._target <= now:
            self._target += ((now - self._target) // self._period + 1) * self._period
        if self._target > now:
            self._timer.start(self._target)
        else:
            self._target = 0

    def _pit_timer_fn(self) -> None:
        self._expired.store(True)
        self._queue.wake()

    def _work(self) -> None:
        """The worker task: sleeps until the timer has fired or an acknowledgement lets a held-back tick go."""
        while True:
            self._host.wait_event(self._queue, self._has_work, interruptible=False)
            if self._stopped.load():
                return
            self._expired.store(False)
            if self._take_tick():
                self._set_irq(1)
                self._set_irq(0)
                if self._on_tick is not None:
                    self._on_tick()

    def _has_work(self) -> bool:
        return self._expired.load() or self._stopped.load()

    def _take_tick(self) -> bool:
        """Count the periods that have ended and re-arm; whether a tick may go to the guest now."""
        with self._lock:
            late = self._host.now_ns() - self._target
            fired = 0
            if self._target and late >= 0:
                fired = late // self._period + 1 if self._period else 1
                self._target = self._target + fired * self._period if self._period else 0
                if self._target:
                    self._timer.start(self._target)
            if not self._reinject:
                return fired > 0
            self._pending += fired
            if not self._pending or not self._irq_ack:
                return False
            self._irq_ack = False
            return True

    def _reset_reinject(self) -> None:
        self._pending = 0
        self._irq_ack = True

    def acked(self, pin: int) -> None:
        """The guest ended GSI 0's interrupt: the next held-back tick may go. With the IRQCHIP lock held."""
        with self._lock:
            self._irq_ack = True
            if self._pending:
                self._pending -= 1
            more = self._pending > 0
        if more:
            self._expired.store(True)
            self._queue.wake()

    def mask_changed(self, pin: int, masked: bool) -> None:
        """GSI 0 was unmasked: ticks from before do not count, nor does the lost acknowledgement. IRQCHIP lock held."""
        if not masked:
            with self._lock:
                self._reset_reinject()

    # State

    def get_state(self) -> PitState:
        """KVM_GET_PIT2. Takes the PIT's lock."""
        now = self._host.now_ns()
        with self._lock:
            first, second, third = (replace(channel, load_ns=channel.load_ns - now) for channel in self._channels)
            return PitState((first, second, third), self._speaker_data_on)

    def set_state(self, state: PitState) -> None:
        """KVM_SET_PIT2: every channel goes on counting from where it was saved. Takes the PIT's lock."""
        now = self._host.now_ns()
        with self._lock:
            first, second, third = (replace(channel, load_ns=channel.load_ns + now) for channel in state.channels)
            self._channels = (first, second, third)
            self._speaker_data_on = state.speaker_data_on
            self._create_timer(now)
