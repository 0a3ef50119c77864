"""What a trace amounts to: how long wakes, kicks and VTL switches took, which exits there were, and who woke whom.

One pass over the events. Counterpart: `perf kvm stat`, which knows no causes. All times in ns.

* wake: from the kick to the moment when the vCPU goes on, and to its next entry into the guest
* kick: from a kick that finds the vCPU in the guest to the exit that it brings about
* VTL switch: from the exit in which one VTL is left to the entry of the other
* an exit takes until the vCPU enters the guest again, sleeps, or gives the processor to another VTL
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, TypeVar

from vtlkit.trace import events
from vtlkit.trace.events import Event, vcpu_name

Key = TypeVar("Key", str, tuple[str, str])
KICKS_REMEMBERED: Final = 4096
"""Kicks whose effect may still come: of older ones, nothing is expected."""

FIGURES: Final = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""What is told of a latency -> the share of its samples that do not exceed it."""


def most_first(counts: Counter[Key]) -> list[tuple[Key, int]]:
    """The counts in descending order, those that are equal in the order of their keys."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass(slots=True)
class Latency:
    """How long something took, each time that it happened."""

    samples: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, ns: int) -> None:
        # A deterministic host's clock may still lack an exit whose time another task's event does not know.
        self.samples.append(max(ns, 0))

    def quantiles(self, shares: Iterable[float]) -> list[int]:
        """For each, the smallest time that at least this share of the samples (0 to 1) does not exceed."""
        ordered = sorted(self.samples)
        return [ordered[max(ceil(share * len(ordered)) - 1, 0)] for share in shares]

    def figures(self) -> dict[str, int]:
        """What `FIGURES` names; there is at least one sample."""
        return dict(zip(FIGURES, self.quantiles(FIGURES.values()), strict=True))

    def buckets(self) -> list[tuple[int, int, int]]:
        """(low, high, count): times from `low` up to, not including, `high`; powers of two, none left out between."""
        counts = Counter(sample.bit_length() for sample in self.samples)
        if not counts:
            return []
        bits = range(min(counts), max(counts) + 1)
        return [((1 << n) >> 1, 1 << n, counts[n]) for n in bits]

    def to_json(self) -> dict[str, Any]:
        if not self.samples:
            return {"count": 0}
        return {"count": len(self.samples), **self.figures(), "buckets": self.buckets()}


@dataclass(slots=True)
class Summary:
    """See the module. `woke` counts by (source, woken vCPU)."""

    events: Counter[str] = field(default_factory=Counter)
    first_ns: int = 0
    last_ns: int = 0
    wake: Latency = field(default_factory=Latency)
    wake_to_entry: Latency = field(default_factory=Latency)
    kick_to_exit: Latency = field(default_factory=Latency)
    vtl_switch: Latency = field(default_factory=Latency)
    blocked: Latency = field(default_factory=Latency)
    exit_counts: Counter[str] = field(default_factory=Counter)
    exit_ns: Counter[str] = field(default_factory=Counter)
    woke: Counter[tuple[str, str]] = field(default_factory=Counter)

    def latencies(self) -> dict[str, Latency]:
        """Each under the name that users see."""
        return {
            "wake: kick to woken": self.wake,
            "wake: kick to entry": self.wake_to_entry,
            "kick: kick to exit": self.kick_to_exit,
            "VTL switch": self.vtl_switch,
            "blocked": self.blocked,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "events": dict(sorted(self.events.items())),
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "latency_ns": {
                "wake": self.wake.to_json(),
                "wake_to_entry": self.wake_to_entry.to_json(),
                "kick_to_exit": self.kick_to_exit.to_json(),
                "vtl_switch": self.vtl_switch.to_json(),
                "blocked": self.blocked.to_json(),
            },
            "exits": [
                {"reason": reason, "count": count, "ns": self.exit_ns[reason]}
                for reason, count in most_first(self.exit_counts)
            ],
            "woke": [
                {"source": source, "target": target, "count": count}
                for (source, target), count in sorted(self.woke.items())
            ],
        }


def summarise(trace: Iterable[Event]) -> Summary:
    """Read a trace to its end. Events may be out of order by as much as threads overtake each other."""
    reading = _Reading()
    for event in trace:
        reading.take(event)
    return reading.summary


class _Reading:
    """What is under way while a trace is read."""

    def __init__(self) -> None:
        self.summary = Summary()
        self._kicks: dict[int, tuple[int, str]] = {}
        """ID -> time and source."""
        self._exits: dict[str, tuple[int, str]] = {}
        """vCPU -> time and reason of the exit that is being handled."""
        self._woken: dict[str, int] = {}
        """vCPU that has not entered the guest since -> time of the kick."""
        self._switching: dict[int, tuple[int, str]] = {}
        """VP -> when it left a VTL, and that VTL's vCPU."""

    def take(self, event: Event) -> None:
        summary = self.summary
        if not summary.events:
            summary.first_ns = event.time_ns
        summary.events[event.name] += 1
        summary.first_ns = min(summary.first_ns, event.time_ns)
        summary.last_ns = max(summary.last_ns, event.time_ns)
        vcpu = vcpu_name(event.vm, event.vcpu)
        if isinstance(event, events.KvmEntry):
            self._entry(event, vcpu)
        elif isinstance(event, events.KvmExit):
            self._exit(event, vcpu)
        elif isinstance(event, events.KvmVcpuKick):
            self._kicks[event.id] = (event.time_ns, event.source)
            if len(self._kicks) > KICKS_REMEMBERED:
                del self._kicks[next(iter(self._kicks))]
        elif isinstance(event, events.KvmVcpuBlock):
            self._woken.pop(vcpu, None)
            self._handled(vcpu, event.time_ns)
        elif isinstance(event, events.KvmVcpuWakeup):
            self._wakeup(event, vcpu)
        elif isinstance(event, events.VtlSwitch):
            left = self._handled(vcpu, event.time_ns)
            self._switching[event.vcpu] = (event.time_ns if left is None else left, vcpu)

    def _entry(self, event: events.KvmEntry, vcpu: str) -> None:
        self._handled(vcpu, event.time_ns)
        kicked = self._woken.pop(vcpu, None)
        if kicked is not None:
            self.summary.wake_to_entry.add(event.time_ns - kicked)
        switch = self._switching.get(event.vcpu)
        if switch is not None and switch[1] != vcpu:
            del self._switching[event.vcpu]
            self.summary.vtl_switch.add(event.time_ns - switch[0])

    def _exit(self, event: events.KvmExit, vcpu: str) -> None:
        self.summary.exit_counts[event.reason] += 1
        self._exits[vcpu] = (event.time_ns, event.reason)
        kick = self._kicks.pop(event.kicked_by, None)
        if kick is not None:
            self.summary.kick_to_exit.add(event.time_ns - kick[0])

    def _wakeup(self, event: events.KvmVcpuWakeup, vcpu: str) -> None:
        if event.waited:
            self.summary.blocked.add(event.ns)
        kick = self._kicks.pop(event.woken_by, None)
        if kick is not None:
            self.summary.wake.add(event.time_ns - kick[0])
            self.summary.woke[kick[1], vcpu] += 1
            self._woken[vcpu] = kick[0]

    def _handled(self, vcpu: str, now: int) -> int | None:
        """The exit that the vCPU was handling is over; when it had come."""
        exit_ = self._exits.pop(vcpu, None)
        if exit_ is None:
            return None
        self.summary.exit_ns[exit_[1]] += max(now - exit_[0], 0)
        return exit_[0]
