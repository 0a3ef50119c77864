"""The same guests on the embedded CPU in the simulator, and on /dev/kvm on threads: the same consoles, exits and ends.

What engines may differ in is listed in `vtlkit.testing.differential`; what a guest says of it is masked here. With
several processors the order of events is compared for each of them, not between them, and halts are not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.conformance import devkvm_here
from tests.guests import feature_images
from tests.guests.test_features import MEMORY, images, why_not_on_kvm
from tests.unit.vmm.loaders.image_rig import elf
from vtlkit import guests
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.differential import Mask, Recording, compare, record
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.devices.bus import PortBus
from vtlkit.vmm.devices.testdev import MMIO_BASE, SCRATCH_PORT
from vtlkit.vmm.machine import Machine

__all__ = ["images"]

LONG_NS: Final = 60_000_000_000
MASKS: Final[list[Mask]] = [
    # The hypercall page holds the engine's hypercall instruction, and engines' differ in length.
    (r"VTL (call|return) at \+?0x[0-9a-f]+", r"VTL \1 at (an offset)"),
    # A guest that has measured it.
    (r"reference time is [123] ms", "reference time is (about 1) ms"),
]
ENTRY: Final = 0x100000


def embedded(image: Path, config: MachineConfig, prepare: Callable[[Machine], None] = lambda _: None) -> Recording:
    host, engines = Simulator(), UnicornFactory()
    try:
        return record(image, config, host, engines, masks=MASKS, prepare=prepare)
    finally:
        host.stop()
        engines.close()


def on_threads(image: Path, config: MachineConfig) -> Recording:
    engines = UnicornFactory(counting=False, threaded=True)
    try:
        with ThreadHost() as host:
            return record(image, config, host, engines, timeout_ns=LONG_NS, masks=MASKS)
    finally:
        engines.close()


def on_kvm(image: Path, config: MachineConfig) -> Recording:
    engines = DevKvmFactory()
    try:
        with ThreadHost() as host:
            return record(image, config, host, engines, timeout_ns=LONG_NS, masks=MASKS)
    finally:
        engines.close()


@pytest.fixture
def kvm() -> None:
    """Skips where there is none."""
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)


def same(left: Recording, right: Recording, name: str) -> None:
    found = [difference.describe("unicorn", name) for difference in compare(left, right)]
    assert not found, "\n" + "\n".join(found)
    assert sum(map(len, left.stories.values())) > 10, "a comparison of nothing"


# --- guests that are there ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize("cpus", [1, 2])
def test_demo(cpus: int) -> None:
    config = MachineConfig(cpus=cpus, memory=MEMORY)
    same(embedded(guests.path("demo"), config), on_kvm(guests.path("demo"), config), "kvm")


@pytest.mark.usefixtures("kvm")
def test_three_vtls_until_one_is_not_to_execute_its_data() -> None:
    """VTL2 has VTL1's data not be executed, and among it are VTL1's page tables: where KVM does not find them
    (docs/LIMITS.md) VTL1 cannot go on, and what all have lived through until then is compared."""
    config = MachineConfig(memory=MEMORY, vtls=3)
    whole, part = embedded(guests.path("vtls3"), config), on_kvm(guests.path("vtls3"), config)
    if part.outcome == whole.outcome:
        same(whole, part, "kvm")
        return
    assert part.outcome == "triple fault, status 3: triple fault on VP 0"
    assert part.stories["vtl1-vcpu0"].pop() == "triple fault"
    assert part.stories.keys() == whole.stories.keys()
    for vcpu, story in part.stories.items():
        assert len(story) > 10
        assert whole.stories[vcpu][: len(story)] == story, vcpu
    assert whole.console.startswith(part.console)


@pytest.mark.usefixtures("kvm")
def test_three_vtls_where_two_are_offered() -> None:
    config = MachineConfig(cpus=2, memory=MEMORY, vtls=2)
    same(embedded(guests.path("vtls3"), config), on_kvm(guests.path("vtls3"), config), "kvm")


ALONE: Final = frozenset({"guest_idle", "pending_event", "start_vp", "vtl_call", "vtl_interrupts"})
"""Feature tests that run on one processor too: what halts, and what one says only if there are no others."""


@pytest.mark.parametrize("name", feature_images.names())
def test_feature(images: Path, name: str) -> None:
    if (reason := why_not_on_kvm(name)) is not None:
        pytest.skip(reason)
    for cpus in (1, 2) if name in ALONE else (2,):
        config = MachineConfig(cpus=cpus, memory=MEMORY, vtls=16)
        image = images / f"{name}.elf"
        same(embedded(image, config), on_kvm(image, config), "kvm")


# --- other pairs, on any machine ------------------------------------------------------------------------------------


def test_on_threads_as_in_the_simulator() -> None:
    config = MachineConfig(cpus=2, memory=MEMORY)
    same(embedded(guests.path("demo"), config), on_threads(guests.path("demo"), config), "threads")


def test_vendors_differ_in_nothing_that_guests_do() -> None:
    """Both preempt in ways of their own, which is no guest's affair."""
    svm = embedded(guests.path("demo"), MachineConfig(cpus=2, memory=MEMORY))
    vmx = embedded(guests.path("demo"), MachineConfig(cpus=2, memory=MEMORY, vendor="vmx"))
    same(svm, vmx, "vmx")


# --- a guest of each kind of access, and devices that lie -----------------------------------------------------------


def accesses() -> bytes:
    """Ports and device memory of each size, MSRs, polls, a value passed on, a fault that nobody catches."""
    a = Assembler(64, ENTRY)
    a.mov("eax", 0x12345678)
    a.out(SCRATCH_PORT, "eax")
    # A strange number of polls.
    a.mov("ecx", 5)
    a.label("poll")
    a.in_("al", SCRATCH_PORT)
    a.dec("ecx")
    a.jne("poll")
    a.out(0x80, "al")
    a.in_("ax", SCRATCH_PORT)
    a.out(0x80, "ax")
    a.mov("rbx", MMIO_BASE)
    a.mov("rax", 0x1122334455667788)
    a.mov(Mem("rbx"), "rax")
    a.mov(Mem("rbx", 8), "eax")
    a.mov("dx", Mem("rbx", 2))
    a.mov("eax", "edx")
    a.out(0x80, "eax")
    a.cpuid()
    a.mov("ecx", 0x1B)
    a.rdmsr()
    a.mov("ecx", 0x4000_0FFF)
    a.wrmsr()
    return a.code()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "accesses.elf"
    path.write_bytes(elf(64, [(ENTRY, accesses(), 0x100)], entry=ENTRY))
    return path


SMALL: Final = MachineConfig(memory=4 << 20, vtls=1)


def test_what_a_guest_does_is_told(small: Path) -> None:
    run = embedded(small, SMALL)
    assert run.stories == {
        "vtl0-vcpu0": [
            "out 0xe0 size 4: 0x12345678",
            "in 0xe0 size 1: 0x78",
            "out 0x80 size 1: 0x78",
            "in 0xe0 size 2: 0x5678",
            "out 0x80 size 2: 0x5678",
            "store to 0xff000000 size 8: 0x1122334455667788",
            "store to 0xff000008 size 4: 0x55667788",
            "load from 0xff000002 size 2: 0x5566",
            "out 0x80 size 4: 0x5566",
            "rdmsr 0x1b: 0xfee00900",
            "wrmsr 0x40000fff: 0xfee00900, #GP",
            "inj_exception: #GP (0x0)",
            "triple fault",
        ]
    }
    assert run.outcome.startswith("triple fault")


@pytest.mark.usefixtures("kvm")
def test_and_the_same_on_kvm(small: Path) -> None:
    same(embedded(small, SMALL), on_kvm(small, SMALL), "kvm")


class LyingPorts:
    """One answer of many is not the device's."""

    def __init__(self, honest: PortBus) -> None:
        self._honest = honest
        self.write = honest.write

    def read(self, port: int, size: int) -> int:
        return self._honest.read(port, size) ^ (port == SCRATCH_PORT and size == 2)


def lying(machine: Machine) -> None:
    machine.pc.ports = LyingPorts(machine.pc.ports)  # type: ignore[assignment]


def test_an_answer_that_is_not_the_devices_is_found_and_shown(small: Path) -> None:
    (found,) = compare(embedded(small, SMALL), embedded(small, SMALL, lying))
    assert found.where == "vtl0-vcpu0"
    assert found.same[-1] == "out 0x80 size 1: 0x78"
    assert (found.left[0], found.right[0]) == ("in 0xe0 size 2: 0x5678", "in 0xe0 size 2: 0x5679")


def test_a_feature_that_is_missing_is_found() -> None:
    demo = guests.path("demo")
    found = compare(embedded(demo, MachineConfig(memory=MEMORY)), embedded(demo, MachineConfig(memory=MEMORY, vtls=1)))
    assert {"vtl0-vcpu0", "vtl1-vcpu0", "console"} <= {difference.where for difference in found}
