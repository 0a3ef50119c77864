"""The register page: what VTL 1 finds there when VTL 0 is intercepted, and what of its changes VTL 0 gets."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vmm.vsm.instruction_rig import GPRS, Rig, program
from tests.unit.vmm.vsm.test_every_register import Bare
from tests.unit.vmm.vsm.vsm_rig import initial_context
from vtlkit.engine.scripted import ScriptedFactory
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.state_pages import HV_X64_REGISTER_PAGE
from vtlkit.hvdef.state_pages import HvX64RegisterPageDirty as Dirty
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER
from vtlkit.testing.assembler import Assembler
from vtlkit.vmm.vsm import context, vp_registers
from vtlkit.vmm.vsm.intercepts import tell

pytestmark = pytest.mark.tlfs("hypercalls.vp-state-page")

GPA = 0x170000
ALL = sum(Dirty)
XMM = [0x1111 * (number + 1) << 64 | number + 1 for number in range(6)]
CPUID_LENGTH = 2
SEGMENTS = ("Es", "Cs", "Ss", "Ds", "Fs", "Gs")
Change = Callable[[HV_X64_REGISTER_PAGE], None]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.guest.long_mode()
    rig.set(Name.HvX64RegisterRegisterPage, GPA | 1, vtl=1)
    rig.install(Type.HvInterceptTypeX64GlobalCpuid)
    yield rig
    rig.factory.close()


def page(rig: Rig) -> HV_X64_REGISTER_PAGE:
    """As VTL 1 sees it."""
    return HV_X64_REGISTER_PAGE.unpack(rig.partition.vtls[1].vm.memory.read(GPA, 4096))


def cpuid(code: Assembler) -> None:
    code.label("target")
    code.cpuid()


def intercepted(rig: Rig, change: Change = lambda _page: None) -> HV_X64_REGISTER_PAGE:
    """VTL 0 executes CPUID; VTL 1 skips it by its page, with `change` on top. What the page was."""
    found: list[HV_X64_REGISTER_PAGE] = []

    def react(rig: Rig) -> None:
        contents = page(rig)
        found.append(contents.copy())
        contents.Rip += CPUID_LENGTH
        contents.Dirty = Dirty.InstructionPointer
        change(contents)
        rig.partition.vtls[1].vm.memory.write(GPA, contents.pack())
        if not contents.Dirty & Dirty.InstructionPointer or not contents.IsValid:
            rig.skip(CPUID_LENGTH)

    rig.react = [react]
    for number, value in enumerate(XMM):
        rig.set(Name(Name.HvX64RegisterXmm0 + number), value)
    rig.run(program(rig, cpuid))
    assert len(rig.messages) == 1
    (contents,) = found
    return contents


def value(rig: Rig, name: Name) -> int:
    found = vp_registers.get(rig.vp, rig.vp, 0, name)
    assert not isinstance(found, HvStatus)
    return found


def test_the_page_has_the_registers_of_the_intercepted_vtl(rig: Rig) -> None:
    names = {
        **{field: Name[f"HvX64Register{field}"] for field in ("Cr0", "Cr3", "Cr4", "Cr8", "Efer", "Dr7")},
        "InterruptState": Name.HvRegisterInterruptState,
        "PendingInterruption": Name.HvRegisterPendingInterruption,
        "InstructionEmulationHints": Name.HvRegisterInstructionEmulationHints,
    }
    contents = intercepted(rig)
    assert (contents.Version, contents.IsValid, contents.Vtl, contents.Dirty) == (1, 1, 0, 0)
    state = rig.states[0]
    # What runs between the switch and the look changes RAX alone.
    assert contents.GpRegisters[1:] == tuple(state[name] for name in GPRS)[1:]
    assert contents.GpRegisters[0] == 0x1111_0000_0000_0000 | 0x100
    assert (contents.Rip, contents.Rflags) == (state["rip"], state["rflags"])
    assert struct.unpack("<12Q", contents.Xmm)[::2] == tuple(xmm & (1 << 64) - 1 for xmm in XMM)
    assert struct.unpack("<12Q", contents.Xmm)[1::2] == tuple(xmm >> 64 for xmm in XMM)
    assert {field: getattr(contents, field) for field in names} == {f: value(rig, name) for f, name in names.items()}
    for field in SEGMENTS:
        packed = value(rig, Name[f"HvX64Register{field}"]).to_bytes(16, "little")
        assert getattr(contents, field) == HV_X64_SEGMENT_REGISTER.unpack(packed)
    assert not any(contents.ReservedEnd)
    assert not contents.Reserved


def test_an_event_cut_short_is_in_the_page() -> None:
    bare = bare_with_vtl1()
    interruption = 1 | 3 << 1 | 6 << 16
    assert bare.set(Name.HvRegisterPendingInterruption, interruption) == HvStatus.SUCCESS
    assert bare.set(Name.HvRegisterInterruptState, 1) == HvStatus.SUCCESS
    intercept(bare)
    contents = HV_X64_REGISTER_PAGE.unpack(bare.partition.vtls[1].vm.memory.read(GPA_OF_BARE, 4096))
    assert (contents.PendingInterruption, contents.InterruptState) == (interruption, 1)


def test_changed_groups_are_taken(rig: Rig) -> None:
    ds = HV_X64_SEGMENT_REGISTER(0, 0xFFFFFFFF, 0x53, 0xC0F3)

    def change(contents: HV_X64_REGISTER_PAGE) -> None:
        registers = list(contents.GpRegisters)
        registers[GPRS.index("rsp")] = 0x123450
        registers[GPRS.index("rbx")] = 0xBAD
        contents.GpRegisters = tuple(registers)
        contents.Rflags |= 1
        contents.Ds = ds
        contents.Xmm = bytes(range(96))
        # For reading only.
        contents.Vtl, contents.Version, contents.Cr3, contents.Cr8 = 9, 77, 0x5000, 3
        contents.Dirty = ALL

    before = intercepted(rig, change)
    after = rig.vcpu.get_regs()
    assert (after.rsp, after.rflags & 1) == (0x123450, 1)
    # Shared: what VTL 1 left in the processor.
    assert after.rbx == before.GpRegisters[GPRS.index("rbx")]
    assert value(rig, Name.HvX64RegisterDs) == int.from_bytes(ds.pack(), "little")
    xmm = [value(rig, Name(Name.HvX64RegisterXmm0 + number)) for number in range(6)]
    assert b"".join(each.to_bytes(16, "little") for each in xmm) == bytes(range(96))
    assert (value(rig, Name.HvX64RegisterCr3), value(rig, Name.HvX64RegisterCr8)) == (before.Cr3, before.Cr8)
    contents = page(rig)
    assert (contents.IsValid, contents.Dirty) == (0, 0)


@pytest.mark.parametrize(("valid", "dirty"), [(1, 0), (0, ALL), (1, ~ALL & 0xFFFFFFFF)])
def test_what_is_not_marked_is_not_taken(rig: Rig, valid: int, dirty: int) -> None:
    def change(contents: HV_X64_REGISTER_PAGE) -> None:
        contents.GpRegisters = (0xBAD,) * 16
        contents.Rip, contents.Rflags, contents.Xmm = 0xBAD, 0x3, bytes(96)
        contents.Ds = HV_X64_SEGMENT_REGISTER()
        contents.IsValid, contents.Dirty = valid, dirty

    before = intercepted(rig, change)
    regs = rig.vcpu.get_regs()
    assert (regs.rsp, regs.rflags) == (before.GpRegisters[GPRS.index("rsp")], before.Rflags)
    assert regs.rip > before.Rip
    assert value(rig, Name.HvX64RegisterXmm3) == XMM[3]
    assert value(rig, Name.HvX64RegisterDs) == int.from_bytes(before.Ds.pack(), "little")
    assert page(rig).IsValid == 0


BAD_SEGMENT = HV_X64_SEGMENT_REGISTER(0, 0, 0, 0xF00)


@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (Dirty.Flags, {"Rflags": 1 << 40}),
        (Dirty.Flags, {"Rflags": 0}),
        (Dirty.Segments, {"Gs": BAD_SEGMENT, "Es": HV_X64_SEGMENT_REGISTER(0, 0xFFF, 0x33, 0x93)}),
        (Dirty.Segments, {"Fs": HV_X64_SEGMENT_REGISTER(1 << 60, 0xFFFF, 0x33, 0x93)}),
    ],
)
def test_a_group_that_no_processor_has_is_refused_as_a_whole(rig: Rig, group: Dirty, changes: dict[str, Any]) -> None:
    def change(contents: HV_X64_REGISTER_PAGE) -> None:
        contents.Dirty |= group | Dirty.GeneralPurpose
        contents.GpRegisters = (0x7770,) * 16
        for field, new in changes.items():
            setattr(contents, field, new)

    before = intercepted(rig, change)
    assert page(rig).Dirty == group
    assert rig.vcpu.get_regs().rflags == before.Rflags
    assert rig.vcpu.get_regs().rsp == 0x7770
    for field in SEGMENTS:
        assert value(rig, Name[f"HvX64Register{field}"]) == int.from_bytes(getattr(before, field).pack(), "little")


def test_a_refused_instruction_pointer_executes_the_instruction_again(rig: Rig) -> None:
    seen: list[tuple[int, int]] = []

    def away(rig: Rig) -> None:
        contents = page(rig)
        seen.append((contents.Rip, contents.Dirty))
        contents.Rip, contents.Dirty = 1 << 60, Dirty.InstructionPointer
        rig.partition.vtls[1].vm.memory.write(GPA, contents.pack())

    def lift(rig: Rig) -> None:
        contents = page(rig)
        seen.append((contents.Rip, contents.Dirty))
        rig.install(Type.HvInterceptTypeX64GlobalCpuid, 0, 0)

    rig.react = [away, lift]
    code = program(rig, cpuid)
    rig.run(code)
    assert seen == [(code.at("target"), 0)] * 2


# --- hostile contents -------------------------------------------------------------------------------------------------

GPA_OF_BARE = 0x50000


def bare_with_vtl1() -> Bare:
    """A processor that does not run, VTL 0 active, VTL 1 with a register page."""
    bare = Bare(ScriptedFactory({}))
    partition, vp = bare.partition, bare.vp
    with partition.lock:
        partition.enable_vtl(1)
        for level in (0, 1):
            state = context.decode(initial_context(0x1000 * (level + 1)), 0x620)
            assert state is not None
            vcpu = partition.create_vcpu(0, 1) if level else vp.vcpus[0]
            state.apply(vcpu)
            if level:
                vp.add_vcpu(vcpu, 1)
    assert vp_registers.set(vp, vp, 1, Name.HvX64RegisterRegisterPage, GPA_OF_BARE | 1) == HvStatus.SUCCESS
    return bare


def intercept(bare: Bare) -> None:
    tell(bare.vp, 0, 1, (HvMessageType.HvMessageTypeX64CpuidIntercept, b""))


def by_hypercall(bare: Bare, contents: HV_X64_REGISTER_PAGE) -> int:
    """Set the same registers one by one; the groups of which one is refused."""

    def segment(field: str) -> int:
        return int.from_bytes(getattr(contents, field).pack(), "little")

    groups = {
        Dirty.GeneralPurpose: {Name.HvX64RegisterRsp: contents.GpRegisters[4]},
        Dirty.InstructionPointer: {Name.HvX64RegisterRip: contents.Rip},
        Dirty.Flags: {Name.HvX64RegisterRflags: contents.Rflags},
        Dirty.Segments: {Name[f"HvX64Register{field}"]: segment(field) for field in SEGMENTS},
        Dirty.Xmm: {
            Name(Name.HvX64RegisterXmm0 + number): int.from_bytes(
                contents.Xmm[16 * number : 16 * number + 16], "little"
            )
            for number in range(6)
        },
    }
    refused = 0
    for group, registers in groups.items():
        if contents.IsValid and contents.Dirty & group:
            old = {name: bare.get(name) for name in registers}
            if any(bare.set(name, new) for name, new in registers.items()):
                refused |= group
                for name, previous in old.items():
                    assert bare.set(name, previous) == HvStatus.SUCCESS
    return refused


canonical = st.sampled_from([0, 0x1000, 0xFFFF8000_00000000, 1 << 47, 1 << 63]) | st.integers(0, (1 << 64) - 1)
attributes = st.sampled_from([0, 0x93, 0xC093, 0xA09B, 0xE09B, 0x82, 0xF93]) | st.integers(0, 0xFFFF)
limit = st.sampled_from([0, 0xFFFF, 0xFFFFF, 0x100000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
segment_register = st.builds(HV_X64_SEGMENT_REGISTER, canonical, limit, st.integers(0, 0xFFFF), attributes)
changes = st.fixed_dictionaries(
    {"Dirty": st.integers(0, ALL) | st.integers(0, 0xFFFFFFFF), "IsValid": st.integers(0, 255)},
    optional={
        "Version": st.integers(0, 0xFFFF),
        "Vtl": st.integers(0, 255),
        "GpRegisters": st.tuples(*[canonical] * 16),
        "Rip": canonical,
        "Rflags": st.sampled_from([2, 0x202, 0x20002, 0]) | st.integers(0, (1 << 64) - 1),
        "Xmm": st.binary(min_size=96, max_size=96),
        **dict.fromkeys(SEGMENTS, segment_register),
        "Cr0": canonical,
        "Cr3": canonical,
        "Efer": canonical,
        "PendingInterruption": canonical,
    },
)


@given(changes, st.none() | st.binary(min_size=4096, max_size=4096))
def test_hostile_contents_do_what_the_hypercall_would(changes: dict[str, Any], noise: bytes | None) -> None:
    """Whatever VTL 1 leaves in the page: VTL 0 is as HvCallSetVpRegisters would have made it, all else as before."""
    bare, twin = bare_with_vtl1(), bare_with_vtl1()
    memory = bare.partition.vtls[1].vm.memory
    for each in (bare, twin):
        intercept(each)
    contents = HV_X64_REGISTER_PAGE.unpack(memory.read(GPA_OF_BARE, 4096) if noise is None else noise)
    for field, new in changes.items():
        setattr(contents, field, new)
    memory.write(GPA_OF_BARE, contents.pack())
    bare.vp.switch(1, 0)
    refused = by_hypercall(twin, contents)
    twin.vp.switch(1, 0)
    assert bare.state() == twin.state()
    left = HV_X64_REGISTER_PAGE.unpack(memory.read(GPA_OF_BARE, 4096))
    assert left.IsValid == 0
    assert not contents.IsValid or left.Dirty == refused
    # What the page still holds is of no more effect.
    state = bare.state()
    memory.write(GPA_OF_BARE, contents.pack())
    bare.vp.switch(0, 1)
    bare.vp.switch(1, 0)
    assert bare.state() == state
