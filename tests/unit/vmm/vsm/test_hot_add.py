"""Memory that is added to a running partition: default protection masks hold for it too, from the first moment."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.unit.vmm.vsm.test_protection import ladder
from tests.unit.vmm.vsm.vsm_rig import PAGE, RAM_SIZE, Guest, Script, VsmRig, input_vtl
from vtlkit.engine.api import Access, RamBlock
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Io, KvmError, KvmRun, MemoryRegion, Vcpu
from vtlkit.vmm.vsm.vp import Vp

R, W, KX, UX = 1, 2, 4, 8
ALL = R | W | KX | UX
ADDED = 0x400000
VALUE = 0x1234
PORT = 0x80


class HotAddRig(VsmRig):
    """User space that acts when the guest writes to PORT."""

    def __init__(self, guests: Any, action: Callable[[VsmRig], None], **options: Any) -> None:
        super().__init__(guests, **options)
        self.action = action

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        if isinstance(exit_, Io) and exit_.port == PORT:
            self.action(self)
            return
        super().handle(vp, vcpu, exit_)


ADD: Final = ops.Out(PORT, 1, 1)
"""What a guest asks user space by."""


def add(rig: VsmRig) -> None:
    rig.partition.add_memory(region())


def region(slot: int = 7, gpa: int = ADDED, pages: int = 4) -> MemoryRegion:
    return MemoryRegion(slot, gpa, pages * PAGE, RamBlock(pages * PAGE))


def access(guest: Guest, vtl: int, gpa: int = ADDED) -> int:
    memory = guest.rig.partition.vtls[vtl].vm.memory
    assert memory.find(gpa) is not None
    return int(memory.attributes.at(gpa))


@pytest.mark.tlfs("protection.default-mask")
@pytest.mark.parametrize(("mask", "expected"), [(0, 0), (R, 1), (R | W, 3), (R | KX | UX, 5), (ALL, 7)])
def test_added_memory_has_the_default_protection(mask: int, expected: int) -> None:
    """In every lower VTL, and not in the one that has set it; the VTL may then protect it otherwise."""
    seen: list[Any] = []

    def vtl2(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | mask << 1)
        # No memory yet: no page to protect.
        seen.append((yield from guest.protect([ADDED], R, vtl=input_vtl(0))))
        yield ADD
        seen.append([access(guest, vtl, ADDED + offset) for vtl in range(3) for offset in (0, 3 * PAGE)])
        seen.append((yield from guest.protect([ADDED + PAGE], R, vtl=input_vtl(0))))
        seen.append([access(guest, vtl, ADDED + PAGE) for vtl in range(3)])
        yield from guest.end()

    HotAddRig(ladder(vtl2, vtls=3), add, vtls=3).run()
    assert seen == [HvStatus.INVALID_PARAMETER, [expected] * 4 + [7, 7], 1 << 32, [1, expected, 7]]


@pytest.mark.tlfs("protection.default-mask")
def test_no_vtl_ever_sees_added_memory_unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | R << 1)
        yield ADD
        yield from guest.end()

    def watch(rig: VsmRig) -> None:
        memory = rig.partition.vtl0.vm.memory
        changed = memory.on_change

        def look() -> None:
            if memory.find(ADDED) is not None:
                seen.append(int(memory.attributes.at(ADDED)))
            changed()

        monkeypatch.setattr(memory, "on_change", look)
        add(rig)

    HotAddRig(ladder(vtl1, vtls=2), watch).run()
    assert set(seen) == {1}


@pytest.mark.tlfs("protection.default-mask")
def test_a_vtl_that_comes_later_finds_added_memory_and_its_restrictions() -> None:
    seen: list[int] = []

    def vtl2(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | (R | W) << 1)
        yield ADD
        assert (yield from guest.enable_partition_vtl(1)) == HvStatus.SUCCESS
        seen.extend(access(guest, vtl) for vtl in (0, 1, 2))
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()

    HotAddRig({(0, 0): vtl0, (0, 2): vtl2}, add, vtls=3).run()
    assert seen == [3, 3, 7]


@pytest.mark.tlfs("protection.default-mask")
def test_guests_use_added_memory_and_are_intercepted_there() -> None:
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | R << 1)
        yield ADD
        yield ops.Write(ADDED, 8, VALUE)
        yield from guest.vtl_return()
        seen.append(guest.entry_reason)
        yield from guest.end()

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        seen.append((yield ops.Read(ADDED, 8)))
        yield ops.Write(ADDED, 8, 0)

    HotAddRig({(0, 0): vtl0, (0, 1): vtl1}, add).run()
    assert seen == [VALUE, 3]


@pytest.mark.tlfs("protection.zero-on-reset")
def test_a_reset_zeroes_added_memory_and_opens_it() -> None:
    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | 1 << 5)
        yield ADD
        yield ops.Write(ADDED, 8, VALUE)
        yield from guest.end()

    rig = HotAddRig(ladder(vtl1, vtls=2), add)
    partition = rig.partition

    def reset() -> None:
        while not rig.ending():
            rig.host.relax()
        memory = partition.vtl0.vm.memory
        assert memory.attributes.at(ADDED) is Access.NONE
        assert int.from_bytes(memory.read(ADDED, 8), "little") == VALUE
        partition.reset()
        assert memory.attributes.at(ADDED) is Access.ALL
        assert memory.read(ADDED, 8) == bytes(8)
        rig.log.append("reset")

    rig.host.spawn(reset, "reset")
    rig.run()
    assert rig.log == ["reset"]


@pytest.mark.parametrize(
    ("bad", "number"),
    [
        (region(slot=0), errno.EEXIST),
        (region(gpa=RAM_SIZE - PAGE), errno.EEXIST),
        (region(gpa=ADDED + 1), errno.EINVAL),
        (MemoryRegion(7, ADDED, 0), errno.EINVAL),
    ],
)
def test_regions_that_cannot_be_added(bad: MemoryRegion, number: int) -> None:
    """The caller's mistake, and nothing is changed by it: neither memory nor protections."""
    seen: list[Any] = []

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvRegisterVsmPartitionConfig, 1 | R << 1)
        yield from guest.protect([RAM_SIZE - PAGE], ALL)
        yield ADD
        yield from guest.end()

    def add_badly(rig: VsmRig) -> None:
        partition = rig.partition
        with pytest.raises(KvmError) as raised:
            partition.add_memory(bad)
        seen.append(raised.value.errno)
        seen.append(list(partition.ram_ranges()))
        seen.append(int(partition.vtl0.vm.memory.attributes.at(RAM_SIZE - PAGE)))

    HotAddRig(ladder(vtl1, vtls=2), add_badly).run()
    assert seen == [number, [(0, RAM_SIZE)], 7]
