"""The whole machine as its owner sees it: how runs end, what a reset leaves, and that nothing is left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vmm.loaders.image_rig import elf
from tests.unit.vmm.vsm.vsm_rig import CR0, CR4, EFER, FREE, PAGE, U32, Guest, Script, Taken
from vtlkit import guests
from vtlkit.engine.scripted import ScriptedEngine, ScriptedFactory, ops
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.vmm.devices.acpi_pm import PM1_CONTROL_PORT, SLP_EN, SLP_TYP_SHIFT
from vtlkit.vmm.loaders import LoadError
from vtlkit.vmm.machine import Machine, MachineConfig, Outcome, RunResult
from vtlkit.x86.registers import Segment

MEMORY = 4 << 20
ENTRY = 0x100000
VTL1_ENTRY = 0x110000
WAKING_VECTOR = 0x9000
SECOND_NS = 1_000_000_000
LONG_NS = 60 * SECOND_NS
SECRET = 0x5EC2E7


class UncountedFactory(ScriptedFactory):
    """Engines that nobody gives a budget: they run until something exits."""

    def create(self, vcpu_name: str) -> ScriptedEngine:
        engine = super().create(vcpu_name)
        engine.left = 1 << 62
        return engine


class ScriptedMachine:
    """A machine whose guest is a Python generator: `vtl0` begins at each boot, `vtl1` where VTL 1 is entered first."""

    def __init__(
        self,
        tmp_path: Path,
        vtl0: Any,
        vtl1: Any = None,
        *,
        host: RunnableHost | None = None,
        waking: Any = None,
        **config: Any,
    ) -> None:
        self.log: list[Any] = []
        self.taken: list[Taken] = []
        self.console = bytearray()
        factory = ScriptedFactory if host is None or host.deterministic else UncountedFactory
        self.factory = factory(
            {ENTRY: self._begin(vtl0), VTL1_ENTRY: self._begin(vtl1), WAKING_VECTOR: self._begin(waking)}
        )
        self.host = Simulator() if host is None else host
        options = {"memory": MEMORY, **config}
        self.machine = Machine(MachineConfig(**options), self.host, self.factory, self.console.extend)
        self.partition = self.machine.partition
        image = tmp_path / "image.elf"
        image.write_bytes(elf(64, [(ENTRY, b"\xf4" * 16, 16)], entry=ENTRY))
        self.machine.load(image)

    def _begin(self, body: Any) -> Any:
        def program(engine: ScriptedEngine) -> Script:
            guest = Guest(self, engine)
            sregs = engine.regs.sregs
            sregs.cs = Segment(8, sregs.cs.base, U32, 0xA9B)
            sregs.cr0, sregs.cr4, sregs.efer = CR0, CR4, EFER
            self.partition.vtls[guest.vtl].vm.hv.set_guest_os_id(1)
            yield from body(guest)

        return program

    def run(self, timeout_ns: int | None = None) -> RunResult:
        try:
            return self.machine.run(timeout_ns)
        finally:
            self.factory.close()

    # --- what a Guest needs ---

    def end(self) -> None:
        self.machine.power_off()

    def entry(self, vp: int, vtl: int) -> int:
        return VTL1_ENTRY

    def write(self, gpa: int, data: bytes) -> None:
        self.machine.ram.view[gpa : gpa + len(data)] = data

    def read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.machine.ram.view[gpa : gpa + size], "little")

    def read_vtl(self, vtl: int, gpa: int, size: int) -> int:
        return int.from_bytes(self.partition.vtls[vtl].vm.memory.read(gpa, size), "little")


def spin() -> Script:
    while True:
        yield ops.Compute(1000)


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


# --- reset ------------------------------------------------------------------------------------------------------------

RESETS: dict[str, Callable[[Guest], Script]] = {
    "0xcf9": lambda guest: _out(0xCF9, 6),
    "i8042": lambda guest: _out(0x64, 0xFE),
    "HV_X64_MSR_RESET": lambda guest: guest.wrmsr(0x40000003, 1),
}


def _out(port: int, value: int, size: int = 1) -> Script:
    yield ops.Out(port, size, value)
    yield from spin()


def reset_and_boot_again(
    tmp_path: Path, how: Any, *, from_vtl: int = 0, host: RunnableHost | None = None, cpus: int = 1, config: int = 0x3F
) -> tuple[ScriptedMachine, RunResult]:
    """Boot, enable VTL 1, have it protect a secret, reset; boot again and look at what there is."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic()
        assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, config)) == HvStatus.SUCCESS
        guest.rig.write(FREE, SECRET.to_bytes(8, "little"))
        yield from guest.protect([FREE], 0)
        if from_vtl == 1:
            yield from RESETS[how](guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        boots = guest.rig.log
        boots.append("boot")
        partition = guest.rig.partition
        assert (yield from guest.get(Name.HvRegisterVsmPartitionStatus))[1] & 0xFFFF == 1
        assert (yield from guest.get(Name.HvRegisterVsmVpStatus))[1] == 1 << 16
        assert int(partition.vtl0.vm.memory.attributes.at(FREE)) == 7
        assert sorted(partition.vtls) == [0]
        if len(boots) == 3:
            guest.note(guest.rig.read(FREE, 8))
            yield from guest.end()
        guest.rig.write(FREE + PAGE, b"\1")
        yield from guest.enable(1)
        yield from guest.vtl_call()
        assert int(partition.vtl0.vm.memory.attributes.at(FREE)) == 0
        yield from RESETS[how](guest)
        yield from spin()

    scripted = ScriptedMachine(tmp_path, vtl0, vtl1, host=host, cpus=cpus)
    return scripted, scripted.run(LONG_NS)


@pytest.mark.parametrize("from_vtl", [0, 1])
@pytest.mark.parametrize("how", RESETS)
def test_a_reset_leaves_vtl0_only_and_boots_again(tmp_path: Path, how: str, from_vtl: int) -> None:
    scripted, result = reset_and_boot_again(tmp_path, how, from_vtl=from_vtl)
    # Twice round: what the first reset left does not disturb the second. The secret is gone.
    assert scripted.log == ["boot"] * 3 + [0]
    assert (result.outcome, result.status) == (Outcome.POWER_OFF, 0)
    # Vcpus that are gone are counted still.
    assert result.vtl_switches == (4 if from_vtl == 0 else 2)
    assert result.user_exits["HYPERV"] > 10


def test_vtl1_may_ask_that_memory_survives_a_reset(tmp_path: Path) -> None:
    scripted, _ = reset_and_boot_again(tmp_path, "0xcf9", config=0x1F)
    assert scripted.log[-1] == SECRET


@pytest.mark.parametrize("seed", range(8))
def test_a_reset_of_several_processors_under_any_schedule(tmp_path: Path, seed: int) -> None:
    scripted, result = reset_and_boot_again(tmp_path, "0xcf9", host=Simulator(seed=seed, instrument=True), cpus=3)
    assert scripted.log == ["boot"] * 3 + [0]
    assert result.outcome is Outcome.POWER_OFF


@pytest.mark.parametrize("attempt", range(5))
def test_a_reset_on_threads(tmp_path: Path, attempt: int) -> None:
    with ThreadHost() as host:
        scripted, result = reset_and_boot_again(tmp_path, "0xcf9", host=host, cpus=3)
    assert scripted.log == ["boot"] * 3 + [0]
    assert result.outcome is Outcome.POWER_OFF


# --- suspend ----------------------------------------------------------------------------------------------------------


def suspend_to_memory(guest: Guest, *, alarm: bool = True) -> Script:
    """S3 with the real-time clock's alarm as the wake event, one second from now."""
    if alarm:
        # Alarm every second, its interrupt enabled; RTC_EN in the PM1 enable register.
        for register in (1, 3, 5):
            yield ops.Out(0x70, 1, register)
            yield ops.Out(0x71, 1, 0xC0)
        yield ops.Out(0x70, 1, 0xB)
        yield ops.Out(0x71, 1, 0x22)
        yield ops.Out(0x602, 2, 1 << 10)
    yield ops.Out(PM1_CONTROL_PORT, 2, SLP_EN | 1 << SLP_TYP_SHIFT)
    yield from spin()


def test_suspend_and_wake(tmp_path: Path) -> None:
    def vtl0(guest: Guest) -> Script:
        guest.rig.write(FREE, SECRET.to_bytes(8, "little"))
        gpa = scripted.machine.pc.tables.facs_gpa
        guest.rig.write(gpa + 12, WAKING_VECTOR.to_bytes(4, "little"))
        yield from suspend_to_memory(guest)

    def waking(guest: Guest) -> Script:
        guest.note("awake")
        guest.note(guest.rig.read(FREE, 8))
        yield from guest.end()

    scripted = ScriptedMachine(tmp_path, vtl0, waking=waking)
    result = scripted.run(LONG_NS)
    assert scripted.log == ["awake", SECRET]
    assert result.outcome is Outcome.POWER_OFF
    # The machine slept; nothing ran meanwhile.
    assert result.instructions is not None
    assert result.virtual_ns > 100 * 10 * result.instructions


def test_suspend_with_vtl1_is_refused(tmp_path: Path) -> None:
    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_partition_vtl(1)
        yield from suspend_to_memory(guest)

    result = ScriptedMachine(tmp_path, vtl0).run(LONG_NS)
    assert result.outcome is Outcome.INTERNAL_ERROR
    assert "suspend" in result.message


def test_power_off_by_acpi(tmp_path: Path) -> None:
    scripted = ScriptedMachine(tmp_path, lambda guest: _out(PM1_CONTROL_PORT, SLP_EN, 2))
    result = scripted.run(LONG_NS)
    assert (result.outcome, result.status) == (Outcome.POWER_OFF, 0)


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
