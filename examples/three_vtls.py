"""Run the guest with three VTLs: an operating system, a secure kernel above it, and a supervisor above that.

What to look for in the transcript: VTL0 reads VTL1's key, and VTL1 refuses. VTL1 patches its own code and runs its own
data, and VTL2 refuses, as VTL1 is as little trusted from above. VTL0 writes to a page that both have closed: the lower
VTL hears of it first, and only when it permits the access does the higher one.
"""

from __future__ import annotations

import re
from collections import Counter

from vtlkit import guests
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine

LEVELS = ("operating system", "secure kernel", "supervisor")


def main() -> None:
    console = bytearray()
    engines = UnicornFactory()
    try:
        machine = Machine(MachineConfig(cpus=2, vtls=3), Simulator(), engines, console.extend)
        machine.load(guests.path("vtls3"))
        result = machine.run()
    finally:
        engines.close()

    for level, name in enumerate(LEVELS):
        print(f"VTL{level} is the {name}" + (", above VTL" + str(level - 1) if level else ""))
    said: Counter[str] = Counter()
    for vtl, vp, text in re.findall(r"\[VTL(\d) VP(\d+)\] (.*)", console.decode()):
        said[vtl] += 1
        print("    " * int(vtl) + f"VTL{vtl} VP{vp}: {text}")
    print("lines said " + ", ".join(f"by VTL{vtl}: {count}" for vtl, count in sorted(said.items())))
    print(f"{result.message}; {result.vtl_switches} VTL switches, {result.user_exits['MEMORY_FAULT']} intercepts")


if __name__ == "__main__":
    main()
