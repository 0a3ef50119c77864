"""VP state pages: a lower VTL's registers and intercept messages, in a page of the VTL that intercepts it.

TLFS, HvCallMapVpStatePage and HvCallUnmapVpStatePage; HvX64RegisterRegisterPage as OpenHCL uses it. The protocol, and
why only RSP of the general registers is taken: docs/design/vp-registers.md, "State pages".

`Vp.state_pages` is replaced whole under the partition's lock; the processor's task takes the reference once. It alone
writes pages, in a switch, and `StatePage.filled_for`. A page has guest-written contents: it is copied, then judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import state_pages as layout
from vtlkit.hvdef.hypercall_io import HvVpStatePageType as Type
from vtlkit.hvdef.identifiers import HV_PAGE_SIZE, HV_PARTITION_ID_SELF
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.state_pages import HV_X64_REGISTER_PAGE
from vtlkit.hvdef.state_pages import HvX64RegisterPageDirty as Dirty
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HvOverlayPage, HypercallParameters, Vcpu
from vtlkit.vmm.vsm.intercepts.messages import XMM0_TO_XMM5, gprs, segment
from vtlkit.vmm.vsm.registers import events, general, segments, synthetic
from vtlkit.vmm.vsm.registers.table import Register, Scope
from vtlkit.vmm.vsm.targets import input_vtl, target_vp

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_ANY: Final = -1
"""Instead of a lower VTL: those that have no page of their own (the register's page)."""
_TYPES: Final = frozenset({Type.HvVpStatePageRegisters, Type.HvVpStatePageInterceptMessage})
_SEGMENTS: Final = ("Es", "Cs", "Ss", "Ds", "Fs", "Gs")


class Key(NamedTuple):
    """Which page: of VTL `owner`, about VTL `lower` of the same processor."""

    type: int
    owner: int
    lower: int


class StatePage:
    """A page that its owner has mapped."""

    __slots__ = ("filled_for", "overlay", "register")

    def __init__(self, overlay: HvOverlayPage) -> None:
        self.overlay: Final = overlay
        self.register = 0
        """HvX64RegisterRegisterPage, if that is what has mapped it."""
        self.filled_for: int | None = None
        """Whose registers the owner has there to change; the processor's task alone."""


StatePages: TypeAlias = Mapping[Key, StatePage]


# --- filled and taken -------------------------------------------------------------------------------------------------


def intercepted(vp: Vp, level: int, owner: int, message: bytes) -> bool:
    """VTL `owner` is about to be entered by an intercept of VTL `level`: fill its pages.

    Whether the message is in one. The processor's task, VTL `level` between two instructions.
    """
    pages = vp.state_pages
    registers = pages.get(Key(Type.HvVpStatePageRegisters, owner, level)) or pages.get(
        Key(Type.HvVpStatePageRegisters, owner, _ANY)
    )
    if registers is not None:
        registers.overlay.write(0, _contents(vp, level).pack())
        registers.filled_for = level
    messages = pages.get(Key(Type.HvVpStatePageInterceptMessage, owner, level))
    if messages is None:
        return False
    messages.overlay.write(0, message)
    return True


def take_back(vp: Vp, owner: int) -> None:
    """VTL `owner` returns: take what it has changed in its register pages. The processor's task, holding no lock."""
    for key, page in vp.state_pages.items():
        if key.owner != owner or page.filled_for is None:
            continue
        lower, page.filled_for = page.filled_for, None
        contents = HV_X64_REGISTER_PAGE.unpack(bytes(page.overlay.view))
        if contents.IsValid:
            refused = _take(vp, lower, owner, contents)
            page.overlay.write(HV_X64_REGISTER_PAGE.OFFSETS["Dirty"], int(refused).to_bytes(4, "little"))
        page.overlay.write(HV_X64_REGISTER_PAGE.OFFSETS["IsValid"], b"\0")


def _contents(vp: Vp, level: int) -> HV_X64_REGISTER_PAGE:
    vcpu = vp.vcpus[level]
    sregs = vcpu.get_sregs()

    def value(registers: Mapping[int, Register], name: Name) -> int:
        return registers[name].get(vp, level, vcpu)

    contents = HV_X64_REGISTER_PAGE(
        Version=layout.HV_X64_REGISTER_PAGE_VERSION,
        IsValid=1,
        Vtl=level,
        GpRegisters=gprs(vcpu),
        Rip=vcpu.engine.regs.rip,
        Rflags=vcpu.engine.rflags,
        Xmm=vcpu.engine.get_fpu()[XMM0_TO_XMM5],
        Cr0=sregs.cr0,
        Cr3=sregs.cr3,
        Cr4=sregs.cr4,
        Cr8=sregs.cr8,
        Efer=sregs.efer,
        Dr7=vcpu.engine.get_debugregs()[5],
        PendingInterruption=value(events.REGISTERS, Name.HvRegisterPendingInterruption),
        InterruptState=value(events.REGISTERS, Name.HvRegisterInterruptState),
        InstructionEmulationHints=value(synthetic.REGISTERS, Name.HvRegisterInstructionEmulationHints),
    )
    for field in _SEGMENTS:
        setattr(contents, field, segment(getattr(sregs, field.lower())))
    return contents


def _take(vp: Vp, lower: int, owner: int, contents: HV_X64_REGISTER_PAGE) -> Dirty:
    """Load the changed groups; those that VTL `lower` can not have, which stay as they are."""
    dirty = Dirty(contents.Dirty & sum(Dirty))
    refused = Dirty(0)
    vcpu = vp.vcpus[lower]
    with vp.waits.alone(vcpu):
        for group, load in _PRIVATE_GROUPS.items():
            if group in dirty and load(vp, lower, vcpu, contents):
                refused |= group
    if Dirty.Xmm in dirty:
        # Shared: the returning VTL has them, and hands them over.
        engine = vp.vcpus[owner].engine
        with vp.waits.alone(vp.vcpus[owner]):
            image = engine.get_fpu()
            engine.set_fpu(image[: XMM0_TO_XMM5.start] + contents.Xmm + image[XMM0_TO_XMM5.stop :])
    return refused


def _load(registers: Mapping[int, Register], name: Name, vp: Vp, level: int, vcpu: Vcpu, value: int) -> HvStatus:
    write = registers[name].set
    assert write is not None
    return write(vp, level, vcpu, value)


def _load_rsp(vp: Vp, level: int, vcpu: Vcpu, contents: HV_X64_REGISTER_PAGE) -> HvStatus:
    rsp = contents.GpRegisters[layout.HV_X64_REGISTER_PAGE_RSP]
    return _load(general.REGISTERS, Name.HvX64RegisterRsp, vp, level, vcpu, rsp)


def _load_rip(vp: Vp, level: int, vcpu: Vcpu, contents: HV_X64_REGISTER_PAGE) -> HvStatus:
    return _load(general.REGISTERS, Name.HvX64RegisterRip, vp, level, vcpu, contents.Rip)


def _load_rflags(vp: Vp, level: int, vcpu: Vcpu, contents: HV_X64_REGISTER_PAGE) -> HvStatus:
    return _load(general.REGISTERS, Name.HvX64RegisterRflags, vp, level, vcpu, contents.Rflags)


def _load_segments(vp: Vp, level: int, vcpu: Vcpu, contents: HV_X64_REGISTER_PAGE) -> HvStatus:
    """All six or none."""
    before = vcpu.get_sregs()
    for field in _SEGMENTS:
        value = int.from_bytes(getattr(contents, field).pack(), "little")
        status = _load(segments.REGISTERS, Name[f"HvX64Register{field}"], vp, level, vcpu, value)
        if status:
            vcpu.set_sregs(before)
            return status
    return HvStatus.SUCCESS


_PRIVATE_GROUPS: Final[Mapping[Dirty, Callable[[Vp, int, Vcpu, HV_X64_REGISTER_PAGE], HvStatus]]] = {
    Dirty.GeneralPurpose: _load_rsp,
    Dirty.InstructionPointer: _load_rip,
    Dirty.Segments: _load_segments,
    Dirty.Flags: _load_rflags,
}


# --- mapped and unmapped ----------------------------------------------------------------------------------------------


def _target(
    vp: Vp, level: int, request: io.HV_INPUT_MAP_VP_STATE_PAGE | io.HV_INPUT_UNMAP_VP_STATE_PAGE
) -> tuple[HvStatus, Vp, Key]:
    """(status, processor, page) that the caller names."""
    target = input_vtl(request.InputVtl, level)
    key = Key(request.Type, level, _ANY if target is None else target)
    other = target_vp(vp, request.VpIndex)
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, vp, key
    if other is None:
        return HvStatus.INVALID_VP_INDEX, vp, key
    if request.Type not in _TYPES or target is None:
        return HvStatus.INVALID_PARAMETER, vp, key
    if target >= level:
        return HvStatus.ACCESS_DENIED, vp, key
    if target not in other.vcpus or level not in other.vcpus:
        return HvStatus.INVALID_VTL_STATE, vp, key
    return HvStatus.SUCCESS, other, key


def map_vp_state_page(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallMapVpStatePage: into the caller's VTL, at the place it names; a page that is mapped already moves there."""
    request = io.HV_INPUT_MAP_VP_STATE_PAGE.unpack_from(call.data)
    status, other, key = _target(vp, level, request)
    if status:
        return status, 0
    hv = vp.partition.vtls[level].vm.hv
    page, gpa = request.RequestedMapLocation, request.RequestedMapLocation * HV_PAGE_SIZE
    if request.Flags != io.HV_MAP_VP_STATE_PAGE_MAP_LOCATION_PROVIDED or gpa >> hv.physical_address_bits:
        return HvStatus.INVALID_PARAMETER, 0
    _place(other, key, gpa)
    call.write_output(page.to_bytes(8, "little"))
    return HvStatus.SUCCESS, 0


def unmap_vp_state_page(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallUnmapVpStatePage: the page is gone with its contents; NOT_FOUND if there is none."""
    request = io.HV_INPUT_UNMAP_VP_STATE_PAGE.unpack_from(call.data)
    status, other, key = _target(vp, level, request)
    if status:
        return status, 0
    if request.Reserved0:
        return HvStatus.INVALID_PARAMETER, 0
    hv = vp.partition.vtls[level].vm.hv
    with vp.partition.lock:
        pages = dict(other.state_pages)
        page = pages.pop(key, None)
        if page is None:
            return HvStatus.NOT_FOUND, 0
        other.state_pages = pages
        hv.claim_overlay(page.overlay, None)
    hv.overlays.apply()
    return HvStatus.SUCCESS, 0


def _place(vp: Vp, key: Key, gpa: int | None, register: int = 0) -> None:
    """Let a page, new or not, lie there in its owner's memory. May block; the caller holds no lock."""
    hv = vp.partition.vtls[key.owner].vm.hv
    with vp.partition.lock:
        page = vp.state_pages.get(key)
        if page is None:
            page = StatePage(hv.state_page())
            vp.state_pages = {**vp.state_pages, key: page}
        page.register = register
        hv.claim_overlay(page.overlay, gpa)
    hv.overlays.apply()


# --- HvX64RegisterRegisterPage ----------------------------------------------------------------------------------------


def _get_register(vp: Vp, level: int, _vcpu: Vcpu) -> int | HvStatus:
    if level == 0:
        return HvStatus.ACCESS_DENIED
    page = vp.state_pages.get(Key(Type.HvVpStatePageRegisters, level, _ANY))
    return 0 if page is None else page.register


def _set_register(vp: Vp, level: int, _vcpu: Vcpu, value: int) -> HvStatus:
    if level == 0:
        return HvStatus.ACCESS_DENIED
    if value >> 64 or layout.HV_REGISTER_PAGE_RESERVED.get(value):
        return HvStatus.INVALID_REGISTER_VALUE
    enabled = layout.HV_REGISTER_PAGE_ENABLED.get(value)
    gpa = layout.HV_REGISTER_PAGE_GPA_PAGE_NUMBER.get(value) * HV_PAGE_SIZE
    _place(vp, Key(Type.HvVpStatePageRegisters, level, _ANY), gpa if enabled else None, value)
    return HvStatus.SUCCESS


REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvX64RegisterRegisterPage: Register(_get_register, _set_register, Scope.PARTITION)
}
"""VTLs above 0 have it: a register page for all lower VTLs without one of their own. Disabled, contents stay."""
