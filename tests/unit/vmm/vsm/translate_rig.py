"""Guests that translate addresses by hypercall: the tables they name, the question, the answer taken apart."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import Any

from tests.unit.vmm.vsm.vsm_rig import FREE, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercall_io import HvTranslateGvaResultCode as Code
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.identifiers import HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.messages import HvCacheType
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu

READ, WRITE, EXECUTE, EXEMPT, SET_BITS, INHIBIT = 1, 2, 4, 8, 0x10, 0x20
SUPERVISOR, USER, ENFORCE_SMAP, OVERRIDE_SMAP, SHADOW_STACK = 0x40, 0x80, 0x100, 0x200, 0x400
ROOT, TABLE2, TABLE3, TABLE4 = (FREE + 0x1000 * number for number in range(4))
PAGE = FREE + 0x8000
GVA = 0x7000
P, W, U, PWT, PCD, A, D, PAT_BIT = 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80
WB, UC, WT = HvCacheType.HvCacheTypeWriteBack, HvCacheType.HvCacheTypeUncached, HvCacheType.HvCacheTypeWriteThrough
SMEP, SMAP = 1 << 20, 1 << 21


class Answer:
    """The output of a translation, taken apart."""

    def __init__(self, status: int, output: bytes, *, ex: bool) -> None:
        self.status = HvStatus(status & 0xFFFF)
        result, *rest = struct.unpack_from("<8Q" if ex else "<2Q", output)
        self.code = Code(result & 0xFFFFFFFF)
        self.cache = result >> 32 & 0xFF
        self.overlay = bool(result >> 40 & 1)
        self.reserved = result >> 41
        self.gpa = (rest[5] if ex else rest[0]) << 12
        self.event = rest[1:5] if ex else []


def ask(
    guest: Guest,
    flags: int,
    *,
    vtl: int = input_vtl(0),
    gva: int = GVA,
    vp: int = HV_VP_INDEX_SELF,
    ex: bool = False,
    partition: int = HV_PARTITION_ID_SELF,
    reserved: int = 0,
) -> Generator[Op, int, Answer]:
    code = Call.HvCallTranslateVirtualAddressEx if ex else Call.HvCallTranslateVirtualAddress
    request = io.HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS(partition, vp, reserved, flags | vtl << 56, gva >> 12)
    guest.rig.write(guest.output, bytes(64))
    status = yield from guest.call(code, request.pack())
    return Answer(status, guest.rig.read(guest.output, 64).to_bytes(64, "little"), ex=ex)


def put(rig: Any, gpa: int, entry: int) -> None:
    rig.write(gpa, entry.to_bytes(8, "little"))


def tables(rig: Any, *, leaf: int = PAGE | P | W | U) -> None:
    """GVA through four tables."""
    for table, entry in ((ROOT, TABLE2), (TABLE2, TABLE3), (TABLE3, TABLE4)):
        put(rig, table, entry | P | W | U)
    put(rig, TABLE4 + (GVA >> 12) * 8, leaf)


def context(vcpu: Vcpu, *, cr4: int = 0, cr0: int = 0, off: int = 0) -> None:
    """Put VTL 0's vCPU, which is inactive, into these tables; bits to add, and bits of CR0 to take away."""
    sregs = vcpu.get_sregs()
    sregs.cr3, sregs.cr4, sregs.cr0 = ROOT, sregs.cr4 | cr4, (sregs.cr0 | cr0) & ~off
    sregs.efer |= 0x800
    vcpu.engine.set_sregs(sregs)


def from_vtl1(body: Callable[[Guest, Vcpu], Script], **options: Any) -> VsmRig:
    """`body` runs in VTL 1 of VP 0, with VTL 0's vCPU of that processor."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        vcpu = guest.rig.partition.vps[0].vcpus[0]
        tables(guest.rig)
        context(vcpu)
        yield from body(guest, vcpu)
        yield from guest.end()

    return run_guests({(0, 0): vtl0, (0, 1): vtl1}, **options)
