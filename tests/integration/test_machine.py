"""The whole machine as its owner sees it: how runs end, what a reset leaves, and that nothing is left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.scripted_machine import LONG_NS, MEMORY, ScriptedMachine, spin
from tests.unit.vmm.vsm.vsm_rig import PAGE, Guest, Script
from vtlkit import guests
from vtlkit.engine.scripted import ScriptedFactory, ops
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.vmm import firmware
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.loaders import LoadError
from vtlkit.vmm.loaders.memory import HOLE_END, HOLE_START
from vtlkit.vmm.machine import Machine, Outcome

SECOND_NS = 1_000_000_000


@contextmanager
def bench(word: str, *, realtime: bool = False, cpus: int = 1) -> Iterator[Machine]:
    """A machine with the benchmark guest."""
    engines = UnicornFactory(counting=not realtime, threaded=realtime)
    try:
        if realtime:
            with ThreadHost() as threads:
                yield _loaded(word, threads, engines, cpus)
        else:
            simulator = Simulator()
            try:
                yield _loaded(word, simulator, engines, cpus)
            finally:
                simulator.stop()
    finally:
        engines.close()


def _loaded(word: str, host: RunnableHost, engines: UnicornFactory, cpus: int) -> Machine:
    machine = Machine(MachineConfig(cpus=cpus, memory=32 << 20, append=word), host, engines, lambda _data: None)
    machine.load(guests.path("bench"))
    return machine


# --- how runs end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize(
    ("word", "outcome", "status"),
    [
        ("compute 5", Outcome.POWER_OFF, 0),
        ("exit", Outcome.DEBUG_EXIT, 1),
        ("nonsense", Outcome.DEBUG_EXIT, 3),
        ("triple", Outcome.TRIPLE_FAULT, 3),
    ],
)
def test_how_a_guest_ends_the_run(word: str, outcome: Outcome, status: int, realtime: bool) -> None:
    with bench(word, realtime=realtime, cpus=2) as machine:
        result = machine.run(LONG_NS if realtime else None)
    assert (result.outcome, result.status) == (outcome, status)
    assert bool(result.crash) == (outcome is Outcome.TRIPLE_FAULT)


def test_the_report_of_a_triple_fault() -> None:
    with bench("triple") as machine:
        result = machine.run()
    assert result.message == "triple fault on VP 0"
    lines = result.crash.splitlines()
    assert lines[0].startswith("VP 0 (vtl0-vcpu0), CPL 0")
    for name in ("RIP", "RFLAGS", "RAX", "R15", "CS", "TR", "GDT base", "IDT base", "CR3", "EFER", "code at RIP:"):
        assert any(name in line for line in lines), name


@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize("word", ["spin", "hlt"])
def test_a_timeout(word: str, realtime: bool) -> None:
    with bench(word, realtime=realtime, cpus=2) as machine:
        result = machine.run(SECOND_NS // 20)
    assert (result.outcome, result.status) == (Outcome.TIMEOUT, 124)
    assert result.message == "the run was ended: timeout"


@pytest.mark.parametrize("word", ["spin", "hlt"])
def test_stop_from_another_thread(word: str) -> None:
    with bench(word, realtime=True, cpus=2) as machine:
        timer = threading.Timer(0.05, lambda: machine.stop("interrupted"))
        timer.start()
        result = machine.run(LONG_NS)
        timer.join()
    assert (result.outcome, result.status) == (Outcome.INTERRUPTED, 130)


def test_stop_in_the_middle_of_a_simulated_run() -> None:
    with bench("spin", cpus=2) as machine:
        timer = machine.host.timer(lambda: machine.stop("interrupted"), "interrupt")
        timer.start(SECOND_NS // 100)
        result = machine.run()
    assert (result.outcome, result.status) == (Outcome.INTERRUPTED, 130)
    assert result.virtual_ns >= SECOND_NS // 100


def test_stop_before_the_run() -> None:
    with bench("spin", realtime=True) as machine:
        machine.stop("interrupted")
        assert machine.run(LONG_NS).outcome is Outcome.INTERRUPTED


def test_a_guest_that_can_never_wake_is_a_deadlock() -> None:
    with bench("hlt") as machine, pytest.raises(Deadlock):
        machine.run()
    assert machine.result().outcome is Outcome.DEADLOCK


def test_a_machine_without_an_image_does_not_start(tmp_path: Path) -> None:
    machine = Machine(MachineConfig(memory=MEMORY), Simulator(), ScriptedFactory({}), lambda _data: None)
    with pytest.raises(LoadError):
        machine.load(tmp_path / "missing")


@pytest.mark.parametrize(
    "wrong", [{"cpus": 0}, {"cpus": 256}, {"vtls": 0}, {"vtls": 17}, {"memory": 4096}, {"memory": MEMORY + 1}]
)
def test_machines_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"give "):
        MachineConfig(**wrong)  # type: ignore[arg-type]


def test_a_crash_that_the_guest_reports(tmp_path: Path) -> None:
    def vtl0(guest: Guest) -> Script:
        for number in range(5):
            yield from guest.wrmsr(0x40000100 + number, 0xA0 + number)
        yield from guest.wrmsr(0x40000105, 1 << 63)
        yield from spin()

    result = ScriptedMachine(tmp_path, vtl0).run()
    assert result.outcome is Outcome.INTERNAL_ERROR
    assert result.message.startswith("the guest reported a crash: 0xa0 0xa1 0xa2 0xa3 0xa4")


@pytest.mark.parametrize("gigabytes", [4, 5])
def test_memory_beyond_the_hole_below_4_gib(tmp_path: Path, gigabytes: int) -> None:
    """The last page is where the loaders' memory map says it is, and a guest runs."""
    size = gigabytes << 30
    last = HOLE_END + size - HOLE_START - PAGE

    def vtl0(guest: Guest) -> Script:
        yield ops.Write(last, 8, 0xFEED)
        yield from guest.end()

    scripted = ScriptedMachine(tmp_path, vtl0, memory=size)
    assert scripted.run().outcome is Outcome.POWER_OFF
    memory = scripted.machine.partition.vtl0.vm.memory
    assert memory.read(last, 2) == b"\xed\xfe"
    assert [memory.find(gpa) is None for gpa in (HOLE_START - PAGE, HOLE_START, last + PAGE)] == [False, True, True]
    assert bytes(scripted.machine.ram.view[size - PAGE : size - PAGE + 2]) == b"\xed\xfe"


def test_every_vtl_has_the_rom_and_it_is_not_ram(tmp_path: Path) -> None:
    seen = []

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_partition_vtl(1)
        seen.append([guest.rig.read_vtl(vtl, firmware.ROM_GPA, PAGE) for vtl in (0, 1)])
        yield from guest.end()

    scripted = ScriptedMachine(tmp_path, vtl0)
    scripted.run()
    rom = int.from_bytes(firmware.rom(), "little")
    assert seen == [[rom, rom]]
    assert not scripted.partition.is_ram(firmware.ROM_GPA)
    assert list(scripted.partition.ram_ranges()) == [(0, MEMORY)]


# --- nothing is left --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("realtime", [False, True])
def test_one_machine_after_the_other(realtime: bool) -> None:
    """The second does what the first did; no thread and no engine of the first is left."""
    threads = threading.active_count()
    results = []
    for _ in range(3):
        with bench("compute 50", realtime=realtime, cpus=2) as machine:
            results.append(machine.run(LONG_NS if realtime else None))
    assert threading.active_count() == threads
    assert {result.outcome for result in results} == {Outcome.POWER_OFF}
    if not realtime:
        assert results[0] == results[1] == results[2]


def test_tasks_end_and_engines_are_closed(tmp_path: Path) -> None:
    def vtl1(guest: Guest) -> Script:
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        yield from guest.end()

    scripted = ScriptedMachine(tmp_path, vtl0, vtl1, cpus=3)
    scripted.run()
    assert scripted.machine._tasks == 0
    assert len(scripted.factory._engines) == 4
    assert all(engine._closed for engine in scripted.factory._engines)


def test_a_finished_machine_is_garbage() -> None:
    with bench("compute 5", cpus=2) as machine:
        machine.run()
        ram = weakref.ref(machine.partition.vps[0].vcpus[0])
    del machine
    gc.collect()
    assert ram() is None
