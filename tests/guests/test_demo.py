"""The demonstration guest says what VSM did, in order: every line is read for its meaning, not for its addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from tests.conformance import devkvm_here
from vtlkit import guests
from vtlkit.engine.api import EngineFactory
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine, Outcome, RunResult

MEMORY = 64 << 20
SEEDS = 20
WRITTEN = "0x1234567890abcdef"
LINE = re.compile(r"\[VTL(\d+) VP(\d+)\] (.*)")


@dataclass
class Run:
    """What one run left behind."""

    result: RunResult
    console: str
    lines: list[tuple[int, int, str]] = field(default_factory=list)
    """(VTL, VP, text) of each line."""

    def __post_init__(self) -> None:
        assert self.console.endswith("\n")
        for line in self.console.splitlines():
            match = LINE.fullmatch(line.rstrip("\r"))
            assert match, line
            self.lines.append((int(match[1]), int(match[2]), match[3]))


def run_on(
    host: RunnableHost,
    config: MachineConfig,
    *,
    image: str = "demo",
    realtime: bool = False,
    timeout_ns: int | None = None,
    kvm: bool = False,
) -> Run:
    console = bytearray()
    engines: EngineFactory = DevKvmFactory() if kvm else UnicornFactory(counting=not realtime, threaded=realtime)
    try:
        machine = Machine(config, host, engines, console.extend)
        machine.load(guests.path(image))
        return Run(machine.run(timeout_ns), console.decode())
    finally:
        engines.close()


def run_demo(cpus: int = 2, *, seed: int | None = None, append: str = "", vtls: int = 2, vendor: str = "svm") -> Run:
    host = Simulator() if seed is None else Simulator(seed=seed)
    try:
        return run_on(host, MachineConfig(cpus=cpus, memory=MEMORY, append=append, vtls=vtls, vendor=vendor))
    finally:
        host.stop()


class Story:
    """The lines of a run, taken one after the other."""

    def __init__(self, run: Run) -> None:
        self._lines = list(run.lines)

    def take(self, vtl: int, vp: int, pattern: str) -> re.Match[str]:
        """The next line: who must say it, and what it must say in full."""
        assert self._lines, f"nothing after the lines so far; VTL{vtl} VP{vp} should say: {pattern}"
        said_vtl, said_vp, text = self._lines.pop(0)
        match = re.fullmatch(pattern, text)
        assert (said_vtl, said_vp) == (vtl, vp), (text, pattern)
        assert match, (text, pattern)
        return match

    def end(self) -> None:
        assert not self._lines


def check_story(run: Run, cpus: int) -> None:
    """Everything that the guest must have lived through, in order."""
    story = Story(run)
    last = cpus - 1
    story.take(0, 0, "1 VP up" if cpus == 1 else f"{cpus} VPs up")
    story.take(0, 0, r'CPUID: hypervisor "Microsoft Hv", interface "Hv#1", VSM privileges present')
    story.take(0, 0, r"hypercall page on at GPA 0x[0-9a-f]+")
    offsets = story.take(
        0,
        0,
        r"VSM: enabled VTLs 0x1, highest VTL 1, VTL call at \+(0x\w+), VTL return at \+(0x\w+) of the hypercall page",
    )
    assert 0 < int(offsets[1], 16) < int(offsets[2], 16) < 4096
    story.take(0, 0, "VTL1 enabled on the partition and on VP0; calling it")
    story.take(1, 0, "first entry: own stack, tables, hypercall page, VP assist page, SynIC and local APIC")
    protected = story.take(
        1, 0, r"protection on: (\d+) pages are mine alone, (\d+) pages of code are read-only for VTL0"
    )
    assert int(protected[1]) > 0
    assert int(protected[2]) > 0
    for vp in range(1, cpus):
        story.take(1, 0, f"VTL1 enabled on VP{vp}")
    story.take(0, 0, "back from VTL1: enabled VTLs 0x3, partition 0x3")
    for vp in range(1, cpus):
        story.take(1, vp, "first entry: .*")
        story.take(0, vp, "back from VTL1: enabled VTLs 0x3")
    tags = {
        story.take(0, vp, rf"VTL call: VTL1 signs {1000 + vp}: (0x\w+) \(verified; a forged tag is rejected\)")[1]
        for vp in range(cpus)
    }
    assert len(tags) == cpus

    board = story.take(1, 0, r"took all access to GPA (0x\w+) away from VTL0")[1]
    story.take(0, 0, rf"writing {WRITTEN} to the closed page at GPA {board}")
    story.take(1, 0, rf"intercept on SINT0: VP0 of VTL0 wrote GPA {board} at RIP 0x\w+")
    story.take(1, 0, "allowed: access restored")
    story.take(0, 0, f"the write landed: the page holds {WRITTEN}")

    key = story.take(0, last, r"reading the key of VTL1 at GPA (0x\w+)")[1]
    rip = story.take(1, last, rf"intercept on SINT0: VP{last} of VTL0 read GPA {key} at RIP (0x\w+)")[1]
    story.take(1, last, "refused: #GP injected")
    story.take(0, last, rf"the read took #GP at RIP {rip}; going on without it")
    story.take(0, 0, "done")
    story.end()
    assert (run.result.outcome, run.result.status) == (Outcome.POWER_OFF, 0)


@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
def test_the_whole_story(cpus: int) -> None:
    check_story(run_demo(cpus), cpus)


def test_the_whole_story_on_vmx() -> None:
    check_story(run_demo(2, vendor="vmx"), 2)


def test_summary_counts_what_happened() -> None:
    cpus = 2
    result = run_demo(cpus).result
    # Per VP: the first call, sign and verify twice; close once, sign and verify after the refusal; there and back.
    calls = cpus * (1 + 3) + 1 + 2
    intercepts = 2
    assert result.vtl_switches == 2 * (calls + intercepts)
    assert result.user_exits["MEMORY_FAULT"] == intercepts
    assert result.exits["memory_fault"] >= intercepts
    # A VTL switch of the guest's own is a hypercall; two switches were made by intercepts.
    assert result.user_exits["HYPERV"] >= result.vtl_switches - intercepts
    assert result.exits["io"] > 0
    assert result.exits["cpuid"] > 0
    assert result.instructions is not None
    assert result.instructions > 10_000
    assert result.virtual_ns >= 10 * result.instructions
    assert result.crash == ""


def test_same_seed_same_run() -> None:
    first, second = run_demo(3, seed=11), run_demo(3, seed=11)
    assert first.console == second.console
    assert first.result == second.result


def test_every_seed_passes_and_seeds_differ() -> None:
    counts = set()
    for seed in range(SEEDS):
        run = run_demo(2, seed=seed)
        check_story(run, 2)
        counts.add((run.result.instructions, run.result.virtual_ns))
    assert len(counts) > 1


def test_x2apic() -> None:
    plain, x2apic = run_demo(4), run_demo(4, append="x2apic")
    check_story(x2apic, 4)
    # In x2APIC mode the IPIs that start the VPs are WRMSRs, in xAPIC mode they are stores to a device page.
    assert x2apic.result.exits["wrmsr"] > plain.result.exits["wrmsr"]


@pytest.mark.parametrize(("vtls", "append"), [(1, ""), (2, "vtls=0")])
def test_without_vsm_it_says_so_and_powers_off(vtls: int, append: str) -> None:
    run = run_demo(2, vtls=vtls, append=append)
    assert (run.result.outcome, run.result.status) == (Outcome.POWER_OFF, 0)
    assert run.lines[0] == (0, 0, "2 VPs up")
    assert any(text.startswith("no VSM here: ") for _, _, text in run.lines)
    assert run.lines[-1] == (0, 0, "done")
    assert {vtl for vtl, _, _ in run.lines} == {0}
    assert run.result.vtl_switches == 0


def test_three_vtls_are_offered() -> None:
    run = run_demo(2, vtls=3)
    story = "\n".join(text for _, _, text in run.lines)
    assert "highest VTL 2" in story
    assert run.result.status == 0
    assert run.lines[-1] == (0, 0, "done")


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("cpus", [2, 4])
def test_on_threads_in_real_time(cpus: int, attempt: int) -> None:
    with ThreadHost() as host:
        run = run_on(host, MachineConfig(cpus=cpus, memory=MEMORY), realtime=True, timeout_ns=60_000_000_000)
    check_story(run, cpus)
    assert run.result.instructions is None


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_on_kvm(cpus: int) -> None:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    with ThreadHost() as host:
        run = run_on(host, MachineConfig(cpus=cpus, memory=MEMORY), kvm=True, timeout_ns=60_000_000_000)
    check_story(run, cpus)
