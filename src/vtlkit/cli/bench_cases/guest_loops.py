"""vtlkit's side of the benchmarks: words of bench.elf on a machine, timed by the difference of two lengths.

The shorter run is everything but the loop (start-up, translation, the guest's preparations, power-off): what the longer
one takes more is the loop's, and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from vtlkit.cli.compose import EngineChoice, Mode, composed

SHORT: Final = 2
"""Turns of the loop in the shorter run."""
_MEMORY: Final = 64 << 20
"""The memory loop walks 16 MiB from 16 MiB on."""


@dataclass(frozen=True, slots=True)
class GuestLoop:
    """One word of bench.elf's, in one mode, with so many processors."""

    word: str
    realtime: bool = False
    cpus: int = 1
    vendor: str = "svm"
    engine: EngineChoice = EngineChoice.UNICORN
    port_exits: bool = False
    """Every access to a port leaves `run`, also where the engine could have it answered inside."""

    def seconds(self, iterations: int) -> float:
        """What a machine takes from its start to the guest's power-off; making the machine is left out."""
        return self.run(iterations)[0]

    def run(self, iterations: int) -> tuple[float, str]:
        """That, and what the guest printed."""
        from vtlkit import guests
        from vtlkit.vmm.config import MachineConfig
        from vtlkit.vmm.machine import Outcome

        config = MachineConfig(cpus=self.cpus, memory=_MEMORY, append=f"{self.word} {iterations}", vendor=self.vendor)
        printed = bytearray()
        with composed(Mode(self.engine, self.realtime), config, printed.extend) as machine:
            machine.load(guests.path("bench"))
            if self.port_exits:
                machine.partition.vtl0.vm.port_bus.others = None
            begin = time.perf_counter()
            result = machine.run()
            taken = time.perf_counter() - begin
        if result.outcome is not Outcome.POWER_OFF:
            raise RuntimeError(
                f"'{self.word} {iterations}' ended with {result.message}: {printed.decode()}{result.crash}"
            )
        return taken, printed.decode()

    def per_iteration(self, iterations: int) -> float:
        """Seconds that one turn of the loop takes; too few turns drown in the noise and may come out negative."""
        short = self.seconds(SHORT)
        return (self.seconds(SHORT + iterations) - short) / iterations


def timer_jitter_ns(beats: int) -> float:
    """By how much the distance of two beats of a periodic direct-mode synthetic timer varies, in ns of virtual time."""
    _, printed = GuestLoop("stimer").run(beats)
    words = printed.split()
    # One TSC cycle is one nanosecond.
    return float(words[words.index("jitter") + 1])
