"""The rivals run what the guest runs, every row can be measured, and rows that cannot be say why. No time is judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vtlkit import guests
from vtlkit.cli.bench_cases import cases, devkvm_loop, qemu_tcg, raw_unicorn, table, whole_process
from vtlkit.cli.bench_cases.guest_loops import GuestLoop
from vtlkit.cli.bench_cases.raw_unicorn import RawUnicorn
from vtlkit.cli.bench_cases.table import Lengths
from vtlkit.cli.measure import Case, Figure, Unavailable

TINY = Lengths(*([20] * len(Lengths.__dataclass_fields__)))


@pytest.mark.parametrize("loop", ["COMPUTE", "MEMORY", "CPUID", "APIC_WRITE"])
def test_the_rivals_loops_are_the_guests(loop: str) -> None:
    assert guests.path("bench").read_bytes().count(getattr(raw_unicorn, loop)) == 1


@pytest.mark.parametrize("case", [case for case in cases(TINY) if isinstance(case, Case)], ids=lambda case: case.name)
def test_a_row_runs_on_both_sides(case: Case) -> None:
    assert math.isfinite(case.run())
    try:
        assert math.isfinite(case.rival())
    except Unavailable as error:
        assert case.limit is None, "a promise is measured everywhere"
        pytest.skip(str(error))


def test_figures_have_the_promised_limits() -> None:
    figures = {case.name: (case.unit, case.limit) for case in cases() if isinstance(case, Figure)}
    assert figures == {
        "start": ("s", 0.6),
        "resident": ("MB", 150.0),
        "stimer-jitter": ("ns of virtual time", 0.0),
    }


def test_a_timer_of_the_guest_beats_evenly() -> None:
    (jitter,) = [case for case in cases(TINY) if isinstance(case, Figure) and case.name == "stimer-jitter"]
    assert jitter.take() == 0


def test_speed_is_promised_as_a_limit_on_time() -> None:
    limits = {case.name: case.limit for case in cases() if isinstance(case, Case)}
    for name in ("compute", "memory", "compute-realtime", "memory-realtime"):
        assert limits[name] == pytest.approx(1 / 0.9)
    assert (limits["cpuid"], limits["apic-write"], limits["vtl-call"], limits["ipi"]) == (2, 2, 10, 10)
    assert limits[f"exit-{table.MANY_CPUS}-vps"] == 1.5


@pytest.mark.parametrize("counting", [True, False])
def test_the_rival_turns_its_loop_as_often_as_it_is_told(counting: bool) -> None:
    writes = []
    raw = RawUnicorn(raw_unicorn.APIC_WRITE, counting=counting, address=raw_unicorn.APIC_TPR)
    try:
        raw.map_callbacks(lambda _offset, _size: 0, lambda offset, size, _value: writes.append((offset, size)))
        assert raw.run(100) > 0
        assert writes == [(0x80, 4)] * 101
    finally:
        raw.close()


@pytest.mark.parametrize("counting", [True, False])
def test_the_rival_stops_at_each_exit(counting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RawUnicorn(raw_unicorn.CPUID, counting=counting)
    starts: list[object] = []
    start = raw._lib.emu_start

    def counted(*words: object) -> int:
        starts.append(words)
        return start(*words)

    monkeypatch.setattr(raw._lib, "emu_start", counted)
    try:
        assert raw.run_with_exits(50) > 0
        assert len(starts) >= 51
    finally:
        raw.close()


def test_a_guest_that_fails_is_not_measured() -> None:
    with pytest.raises(RuntimeError, match="needs two processors"):
        GuestLoop("pingpong").seconds(10)


def test_a_missing_rival_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemu_tcg, "PROGRAM", "qemu-that-is-not-here")
    with pytest.raises(Unavailable, match="not installed"):
        qemu_tcg.seconds("cpuid", 1)
    monkeypatch.setattr(devkvm_loop, "KVM_DEVICE", str(tmp_path / "kvm"))
    with pytest.raises(Unavailable, match="No such file"):
        devkvm_loop.seconds_per_exit("cpuid", 1)


def test_without_a_compiler_there_is_no_kvm_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devkvm_loop, "COMPILERS", ())
    devkvm_loop.built.cache_clear()
    with pytest.raises(Unavailable, match="no C compiler"):
        devkvm_loop.built(devkvm_loop.SOURCE)


def test_a_whole_process_is_weighed_by_itself() -> None:
    ballast = bytearray(400 << 20)
    for page in range(0, len(ballast), 4096):
        ballast[page] = 1
    megabytes = whole_process.resident_megabytes()
    assert 10 < megabytes < len(ballast) / 1e6
