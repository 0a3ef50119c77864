"""An event loop of its own waits for events of the vCPU of an inactive VTL: `Vcpu.fileno` and asyncio.

A VMM that is built around an event loop needs no thread per VTL: the vCPU is one more descriptor, readable while a wake
event is pending.
"""

from __future__ import annotations

import asyncio
import threading

from vtlkit.engine.scripted import ScriptedFactory
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.x86.apic import APIC_SPIV, APIC_SPIV_APIC_ENABLED

VECTOR = 0x41


async def events_of(vcpu: Vcpu) -> str:
    """Return once the vCPU has something to be woken for."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        # The descriptor may be readable for nothing; the look tells, and makes it unreadable then.
        if vcpu.wake_event_pending():
            woken.set()

    loop.add_reader(vcpu, look)
    try:
        await woken.wait()
    finally:
        loop.remove_reader(vcpu)
    return "woken, with few looks" if looks < 20 else "woken, by looking all the time"


async def user_space(vcpu: Vcpu, send: threading.Event) -> None:
    waiting = asyncio.create_task(events_of(vcpu))
    for _ in range(3):
        await asyncio.sleep(0.01)
        print("VTL1 has nothing to do; the loop is free for other things")
    send.set()
    print("VTL1's vCPU:", await waiting)


def main() -> None:
    host = ThreadHost()
    vm = Kvm(host, ScriptedFactory({})).create_vm("vtl1")
    vcpu = vm.create_vcpu(0)
    vcpu.apic.mmio_write(APIC_SPIV, 4, APIC_SPIV_APIC_ENABLED | 0xFF)
    # Inactive: RFLAGS.IF, which is clear, does not count.
    vcpu.vtl_inactive = True

    send = threading.Event()

    def interrupt() -> None:
        send.wait()
        vm.send_ipi(1, VECTOR)

    device = threading.Thread(target=interrupt)
    device.start()
    asyncio.run(user_space(vcpu, send))
    device.join()
    vcpu.close()


if __name__ == "__main__":
    main()
