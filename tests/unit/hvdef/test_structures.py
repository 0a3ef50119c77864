"""Every structure of `vtlkit.hvdef`: arbitrary contents round-trip, other sizes are refused, offsets are the TLFS's."""

from __future__ import annotations

import importlib
import pkgutil
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vtlkit.hvdef
from vtlkit.hvdef import assist, hypercall_io, intercepts, messages, ports, register_values, state_pages, synic, vsm
from vtlkit.layout import Bits, Struct

MODULES = [importlib.import_module(f"vtlkit.hvdef.{m.name}") for m in pkgutil.iter_modules(vtlkit.hvdef.__path__)]
STRUCTURES = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Struct) and value is not Struct
    },
    key=lambda cls: cls.__name__,
)


@given(st.sampled_from(STRUCTURES), st.data())
def test_round_trip(cls: type[Struct], data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=cls.SIZE, max_size=cls.SIZE))
    value = cls.unpack(raw)
    assert value.pack() == raw
    assert value.copy() == value


@pytest.mark.parametrize("cls", STRUCTURES, ids=lambda cls: cls.__name__)
def test_other_sizes_are_refused_and_the_default_is_zero(cls: type[Struct]) -> None:
    for size in (cls.SIZE - 1, cls.SIZE + 1, 0):
        with pytest.raises(struct.error):
            cls.unpack(bytes(size))
    if cls not in (ports.HV_DOORBELL_PORT_INFO, ports.HV_DOORBELL_CONNECTION_INFO):
        assert cls().pack() == bytes(cls.SIZE)


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(STRUCTURES) > 60


SIZES: dict[type[Struct], int] = {
    vsm.HV_X64_SEGMENT_REGISTER: 16,
    vsm.HV_X64_TABLE_REGISTER: 16,
    vsm.HV_INITIAL_VP_CONTEXT: 224,
    messages.HV_MESSAGE: 256,
    messages.HV_X64_INTERCEPT_MESSAGE_HEADER: 0x28,
    messages.HV_X64_MEMORY_INTERCEPT_MESSAGE: 0xF0,
    messages.HV_X64_EXCEPTION_INTERCEPT_MESSAGE: 0xF0,
    assist.HV_VP_ASSIST_PAGE: 4096,
    assist.HV_REFERENCE_TSC_PAGE: 4096,
    synic.HV_SYNIC_EVENT_FLAGS: 256,
    state_pages.HV_X64_REGISTER_PAGE: 4096,
    hypercall_io.HV_INPUT_MAP_VP_STATE_PAGE: 24,
    hypercall_io.HV_INPUT_UNMAP_VP_STATE_PAGE: 16,
    register_values.HV_X64_PENDING_EVENT: 32,
    hypercall_io.HV_INPUT_ENABLE_VP_VTL: 240,
    hypercall_io.HV_INPUT_POST_MESSAGE: 256,
    hypercall_io.HV_REGISTER_ASSOC: 32,
    hypercall_io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS_EX: 64,
}


@pytest.mark.tlfs("numbers.structures")
@pytest.mark.parametrize("cls", SIZES, ids=lambda cls: cls.__name__)
def test_published_sizes(cls: type[Struct]) -> None:
    assert SIZES[cls] == cls.SIZE
    if cls in (messages.HV_X64_MEMORY_INTERCEPT_MESSAGE, messages.HV_X64_EXCEPTION_INTERCEPT_MESSAGE):
        assert cls.SIZE <= messages.HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT


OFFSETS: list[tuple[type[Struct], dict[str, int]]] = [
    (hypercall_io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK, {"MapFlags": 8, "TargetVtl": 12}),
    (hypercall_io.HV_INPUT_ENABLE_PARTITION_VTL, {"TargetVtl": 8, "Flags": 9}),
    (hypercall_io.HV_INPUT_ENABLE_VP_VTL, {"VpIndex": 8, "TargetVtl": 12, "VpVtlContext": 16}),
    (hypercall_io.HV_INPUT_GET_VP_REGISTERS, {"VpIndex": 8, "TargetVtl": 12}),
    (hypercall_io.HV_REGISTER_ASSOC, {"RegisterName": 0, "RegisterValue": 16}),
    (hypercall_io.HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS, {"ControlFlags": 16, "GvaPage": 24}),
    (hypercall_io.HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS, {"TranslationResult": 0, "GpaPage": 8}),
    (hypercall_io.HV_INPUT_START_VIRTUAL_PROCESSOR, {"VpIndex": 8, "TargetVtl": 12, "VpContext": 16}),
    (hypercall_io.HV_INPUT_GET_VP_INDEX_FROM_APIC_ID, {"TargetVtl": 8}),
    (hypercall_io.HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI, {"TargetVtl": 4, "ProcessorMask": 8}),
    (hypercall_io.HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI_EX, {"TargetVtl": 4, "ProcessorSet": 8}),
    (hypercall_io.HV_INPUT_ASSERT_VIRTUAL_INTERRUPT, {"TargetVtl": 28}),
    (hypercall_io.HV_INPUT_SIGNAL_EVENT_DIRECT, {"TargetVtl": 12, "TargetSint": 13, "FlagNumber": 14}),
    (hypercall_io.HV_INPUT_POST_MESSAGE_DIRECT, {"Vtl": 12}),
    (hypercall_io.HV_INPUT_MAP_VP_STATE_PAGE, {"InputVtl": 14}),
    (hypercall_io.HV_INPUT_UNMAP_VP_STATE_PAGE, {"VpIndex": 8, "Type": 12, "InputVtl": 14, "Reserved0": 15}),
    (
        state_pages.HV_X64_REGISTER_PAGE,
        {"IsValid": 2, "Vtl": 3, "Dirty": 4, "GpRegisters": 8, "Rip": 136, "Rflags": 144, "Xmm": 160, "Es": 256}
        | {"Cs": 272, "Gs": 336, "Cr0": 352, "Cr8": 376, "Efer": 384, "Dr7": 392, "PendingInterruption": 400}
        | {"InterruptState": 408, "InstructionEmulationHints": 416, "ReservedEnd": 424},
    ),
    (hypercall_io.HV_INPUT_GET_VP_SET_FROM_MDA, {"TargetVtl": 16}),
    (ports.HV_INPUT_CREATE_PORT, {"PortVtl": 12, "MinConnectionVtl": 13}),
    (ports.HV_INPUT_CONNECT_PORT, {"ConnectionVtl": 12}),
    (intercepts.HV_INPUT_INSTALL_INTERCEPT, {"AccessType": 8, "InterceptType": 12, "InterceptParameter": 16}),
    (
        messages.HV_X64_MEMORY_INTERCEPT_MESSAGE,
        {
            "CacheType": 0x28,
            "InstructionByteCount": 0x2C,
            "MemoryAccessInfo": 0x2D,
            "GuestVirtualAddress": 0x30,
            "GuestPhysicalAddress": 0x38,
            "InstructionBytes": 0x40,
            "Ds": 0x50,
            "Ss": 0x60,
            "Gprs": 0x70,
        },
    ),
    (
        messages.HV_X64_INTERCEPT_MESSAGE_HEADER,
        {"VpIndex": 0, "InstructionLengthCr8": 4, "InterceptAccessType": 5, "ExecutionState": 6, "Cs": 8, "Rip": 0x18},
    ),
    (
        assist.HV_VP_ASSIST_PAGE,
        {"VtlControl": 8, "NestedEnlightenmentsControl": 32, "InterceptMessage": 0x70, "VtlReturnActions": 0x170},
    ),
    (assist.HV_VP_VTL_CONTROL, {"EntryReason": 0, "VinaStatus": 4, "VtlReturnX64Rax": 8, "VtlReturnX64Rcx": 16}),
]


@pytest.mark.tlfs("numbers.structures")
@pytest.mark.parametrize(("cls", "offsets"), OFFSETS, ids=lambda value: getattr(value, "__name__", ""))
def test_published_offsets(cls: type[Struct], offsets: dict[str, int]) -> None:
    assert {name: cls.OFFSETS[name] for name in offsets} == offsets


@pytest.mark.tlfs("numbers.structures")
def test_vp_context_in_memory() -> None:
    context = vsm.HV_INITIAL_VP_CONTEXT(Rip=0x1122334455667788, Cr3=0x99)
    context.Cs.Selector = 0xABCD
    context.Gdtr.Limit = 0x7F
    data = context.pack()
    assert data[:8] == bytes.fromhex("8877665544332211")
    assert data[24 + 12 : 24 + 14] == b"\xcd\xab"
    assert data[168 + 6 : 168 + 8] == b"\x7f\x00"
    assert data[200:208] == b"\x99" + bytes(7)


def test_make_message() -> None:
    message = messages.make_message(messages.HvMessageType.HvMessageTypeGpaIntercept, b"abc", sender=5)
    assert message.pack() == bytes.fromhex("01000080030000000500000000000000") + b"abc" + bytes(237)
    with pytest.raises(struct.error):
        messages.make_message(1, bytes(241)).pack()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_bit_fields_fit_64_bits(module: object) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Bits):
            assert value.mask < 1 << 64, name
