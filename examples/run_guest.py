"""Run the demonstration guest on a machine made by hand, and say what the run came to."""

from __future__ import annotations

from vtlkit import guests
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine


def main() -> None:
    console = bytearray()
    engines = UnicornFactory()
    try:
        machine = Machine(MachineConfig(cpus=2, vtls=2), Simulator(), engines, console.extend)
        machine.load(guests.path("demo"))
        result = machine.run()
    finally:
        engines.close()

    print(console.decode(), end="")
    print(f"{result.outcome.value}: {result.message}")
    print(f"{result.vtl_switches} VTL switches, {result.instructions} instructions, {result.virtual_ns} ns")
    for reason, count in result.exits.most_common(3):
        print(f"  {reason}: {count}")


if __name__ == "__main__":
    main()
