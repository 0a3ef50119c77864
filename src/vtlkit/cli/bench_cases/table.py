"""The rows of `vtlkit bench`: what is measured against what, how long, and what is promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vtlkit.cli.bench_cases import devkvm_loop, qemu_tcg, raw_unicorn, whole_process
from vtlkit.cli.bench_cases.guest_loops import GuestLoop, timer_jitter_ns
from vtlkit.cli.bench_cases.raw_unicorn import RawUnicorn
from vtlkit.cli.measure import Case, Figure, SecondsPerOperation

NEARLY_RAW: Final = 1 / 0.9
"""At least 0.9 of the rival's speed."""
EXIT_LIMIT: Final = 2.0
VTL_SWITCH_LIMIT: Final = 10.0
IPI_LIMIT: Final = 10.0
GROWTH_LIMIT: Final = 1.5
START_SECONDS: Final = 0.6
RESIDENT_MEGABYTES: Final = 150.0
SOME_CPUS: Final = 8
MANY_CPUS: Final = 16


@dataclass(frozen=True, slots=True)
class Lengths:
    """How often each loop is turned in a round: long enough that the loop takes most of it."""

    compute: int = 1_000_000
    compute_realtime: int = 20_000_000
    memory: int = 1_000_000
    memory_realtime: int = 4_000_000
    exits: int = 50_000
    vtl_calls: int = 10_000
    apic_writes: int = 500_000
    pings: int = 5_000
    qemu_exits: int = 5_000_000
    kvm_exits: int = 50_000
    exits_each: int = 4_000
    flushes: int = 10_000
    broadcasts: int = 500
    messages: int = 2_000
    beats: int = 2_000


def cases(lengths: Lengths | None = None) -> list[Case | Figure]:
    """The table. Nothing runs, and no engine is loaded, before a row is measured."""
    lengths = lengths or Lengths()
    return [*_loops(lengths), *_exits(lengths), *_virtualisation(lengths), *_hyperv(lengths), *_processes()]


def _loops(lengths: Lengths) -> list[Case | Figure]:
    rows: list[Case | Figure] = []
    for realtime, suffix, way in ((False, "", "count=N"), (True, "-realtime", "count=0")):
        for word, code, address, turns in (
            ("compute", raw_unicorn.COMPUTE, 0, lengths.compute_realtime if realtime else lengths.compute),
            (
                "memory",
                raw_unicorn.MEMORY,
                raw_unicorn.MEMORY_START,
                lengths.memory_realtime if realtime else lengths.memory,
            ),
        ):
            rival = _raw(code, turns, counting=not realtime, address=address)
            loop = _loop(GuestLoop(word, realtime), turns)
            if realtime:
                loop, rival = _middle_of_three(loop), _middle_of_three(rival)
            rows.append(Case(word + suffix, loop, f"raw Unicorn, {way}", rival, NEARLY_RAW))
    return rows


def _exits(lengths: Lengths) -> list[Case | Figure]:
    turns = lengths.exits
    exit_, exit_realtime = _loop(GuestLoop("cpuid"), turns), _loop(GuestLoop("cpuid", True), turns)
    port, writes = _loop(GuestLoop("portout"), turns), lengths.apic_writes
    return [
        Case("cpuid", exit_, "raw Unicorn, stop and start, count=N", _raw_exits(turns, counting=True), EXIT_LIMIT),
        Case(
            "cpuid-realtime",
            exit_realtime,
            "raw Unicorn, stop and start, count=0",
            _raw_exits(turns, counting=False),
            EXIT_LIMIT,
        ),
        Case("cpuid-qemu", exit_, "QEMU TCG", lambda: qemu_tcg.per_iteration("cpuid", lengths.qemu_exits)),
        Case("cpuid-kvm", exit_, "C on /dev/kvm", lambda: devkvm_loop.seconds_per_exit("cpuid", lengths.kvm_exits)),
        Case("port-kvm", port, "C on /dev/kvm", lambda: devkvm_loop.seconds_per_exit("out", lengths.kvm_exits)),
        Case(
            "apic-write", _loop(GuestLoop("apicwrite"), writes), "raw mmio_map, count=N", _raw_mmio(writes), EXIT_LIMIT
        ),
    ]


def _virtualisation(lengths: Lengths) -> list[Case | Figure]:
    exit_ = _loop(GuestLoop("cpuid"), lengths.exits)
    one = _loop(GuestLoop("cpuidall"), lengths.exits_each * MANY_CPUS)
    many = GuestLoop("cpuidall", cpus=MANY_CPUS)
    return [
        Case("vtl-call", _loop(GuestLoop("vtlcall"), lengths.vtl_calls), "one CPUID exit", exit_, VTL_SWITCH_LIMIT),
        Case("ipi", _loop(GuestLoop("pingpong", cpus=2), lengths.pings), "one CPUID exit", exit_, IPI_LIMIT),
        Case(
            f"exit-{MANY_CPUS}-vps",
            lambda: many.per_iteration(lengths.exits_each) / MANY_CPUS,
            "an exit with 1 VP",
            one,
            GROWTH_LIMIT,
        ),
    ]


def _hyperv(lengths: Lengths) -> list[Case | Figure]:
    exit_ = _loop(GuestLoop("cpuid"), lengths.exits)
    rows: list[Case | Figure] = []
    for word, name, turns, few in (
        ("pvflush", "pv-flush", lengths.flushes, 1),
        ("pvipi", "pv-ipi", lengths.broadcasts, 2),
    ):
        some, many, least = (_loop(GuestLoop(word, cpus=cpus), turns) for cpus in (SOME_CPUS, MANY_CPUS, few))
        rows.append(Case(f"{name}-{SOME_CPUS}-vps", some, "one CPUID exit", exit_))
        rows.append(Case(f"{name}-{MANY_CPUS}-vps", many, f"the same with {few} VP{'s' * (few > 1)}", least))
    message = _loop(GuestLoop("synicmsg", cpus=2), lengths.messages)
    return [
        *rows,
        Case("synic-message", message, "one CPUID exit", exit_),
        Figure("stimer-jitter", lambda: timer_jitter_ns(lengths.beats), "ns of virtual time", 0.0),
    ]


def _processes() -> list[Case | Figure]:
    return [
        Figure("start", whole_process.start_and_exit, "s", START_SECONDS),
        Figure("resident", whole_process.resident_megabytes, "MB", RESIDENT_MEGABYTES),
    ]


def _middle_of_three(measure: SecondsPerOperation) -> SecondsPerOperation:
    """Uncounted loops have two speeds on processors that rename memory: which one a run gets is chance."""
    return lambda: sorted(measure() for _ in range(3))[1]


def _loop(loop: GuestLoop, turns: int) -> SecondsPerOperation:
    return lambda: loop.per_iteration(turns)


def _raw(code: bytes, turns: int, *, counting: bool, address: int) -> SecondsPerOperation:
    return lambda: _with_raw(code, counting, address, lambda raw: raw.run(turns) / turns)


def _raw_exits(turns: int, *, counting: bool) -> SecondsPerOperation:
    return lambda: _with_raw(raw_unicorn.CPUID, counting, 0, lambda raw: raw.run_with_exits(turns) / turns)


def _raw_mmio(turns: int) -> SecondsPerOperation:
    def measure(raw: RawUnicorn) -> float:
        raw.map_callbacks(lambda _offset, _size: 0, lambda _offset, _size, _value: None)
        return raw.run(turns) / turns

    return lambda: _with_raw(raw_unicorn.APIC_WRITE, True, raw_unicorn.APIC_TPR, measure)


def _with_raw(code: bytes, counting: bool, address: int, measure: Callable[[RawUnicorn], float]) -> float:
    raw = RawUnicorn(code, counting=counting, address=address)
    try:
        return measure(raw)
    finally:
        raw.close()
