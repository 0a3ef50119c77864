"""Two processors play ping-pong by IPI. The seed decides who runs when: one seed is one run, another is another."""

from __future__ import annotations

from vtlkit import guests
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine, RunResult


def run(seed: int) -> RunResult:
    """One run of 200 rounds under one seed."""
    engines = UnicornFactory()
    try:
        config = MachineConfig(cpus=2, memory=64 << 20, append="pingpong 200")
        machine = Machine(config, Simulator(seed=seed), engines, console=lambda _data: None)
        machine.load(guests.path("bench"))
        return machine.run()
    finally:
        engines.close()


def main() -> None:
    again = {seed: (run(seed), run(seed)) for seed in range(1, 6)}
    for seed, (first, second) in again.items():
        same = (first.exits, first.virtual_ns) == (second.exits, second.virtual_ns)
        print(f"seed {seed}: {first.outcome.value}, {first.virtual_ns} ns, the same again: {same}")
    print(f"{len({first.virtual_ns for first, _ in again.values()})} different runs")


if __name__ == "__main__":
    main()
