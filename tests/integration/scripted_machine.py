"""A machine whose guest is a Python generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.vmm.loaders.image_rig import elf
from tests.unit.vmm.vsm.vsm_rig import CR0, CR4, EFER, U32, Guest, Script, Taken
from vtlkit.engine.scripted import ScriptedEngine, ScriptedFactory, ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine, RunResult
from vtlkit.x86.registers import Segment

MEMORY = 4 << 20
ENTRY = 0x100000
VTL1_ENTRY = 0x110000
WAKING_VECTOR = 0x9000
LONG_NS = 60_000_000_000
"""A limit that no run comes near."""


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
