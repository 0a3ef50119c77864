"""Fields of registers, input values and flags: which bits they are, against the published layouts."""

from __future__ import annotations

from types import ModuleType

import pytest

from vtlkit.hvdef import hypercall_io, hypercalls, msrs, register_values, synic, vsm
from vtlkit.hvdef.ports import HV_INPUT_CONNECT_PORT, HV_INPUT_CREATE_PORT
from vtlkit.hvdef.vsm import HV_INITIAL_VP_CONTEXT
from vtlkit.layout import Bits

Field = tuple[int, int]
"""(highest bit, lowest bit)"""

LAYOUTS: list[tuple[str, ModuleType, str, dict[str, Field]]] = [
    ("HV_INPUT_VTL", vsm, "HV_INPUT_VTL_", {"TARGET_VTL": (3, 0), "USE_TARGET_VTL": (4, 4), "RESERVED_MASK": (7, 5)}),
    (
        "hypercall input value",
        hypercalls,
        "HV_HYPERCALL_",
        {
            "CALL_CODE": (15, 0),
            "FAST": (16, 16),
            "VARIABLE_HEADER_SIZE": (26, 17),
            "IS_NESTED": (31, 31),
            "REP_COUNT": (43, 32),
            "REP_START_INDEX": (59, 48),
        },
    ),
    (
        "hypercall result value",
        hypercalls,
        "HV_HYPERCALL_",
        {"RESULT_STATUS": (15, 0), "REP_COMPLETED": (43, 32)},
    ),
    ("VsmCodePageOffsets", vsm, "HV_VSM_VTL_", {"CALL_OFFSET": (11, 0), "RETURN_OFFSET": (23, 12)}),
    (
        "VsmVpStatus",
        vsm,
        "HV_VSM_VP_",
        {"ACTIVE_VTL": (3, 0), "ACTIVE_MBEC_ENABLED": (4, 4), "ENABLED_VTL_SET": (31, 16)},
    ),
    (
        "VsmPartitionStatus",
        vsm,
        "HV_VSM_PARTITION_",
        {"ENABLED_VTL_SET": (15, 0), "MAXIMUM_VTL": (19, 16), "MBEC_ENABLED_VTL_SET": (35, 20)},
    ),
    (
        "VsmVina",
        vsm,
        "HV_VSM_VINA_",
        {"VECTOR": (7, 0), "ENABLED": (8, 8), "AUTO_RESET": (9, 9), "AUTO_EOI": (10, 10)},
    ),
    (
        "VsmCapabilities",
        vsm,
        "HV_VSM_CAPABILITIES_",
        {"DR6_SHARED": (0, 0), "MBEC_VTL_MASK": (16, 1), "DENY_LOWER_VTL_STARTUP": (17, 17)},
    ),
    (
        "VsmPartitionConfig",
        vsm,
        "HV_VSM_PARTITION_CONFIG_",
        {
            "ENABLE_VTL_PROTECTION": (0, 0),
            "DEFAULT_VTL_PROTECTION_MASK": (4, 1),
            "ZERO_MEMORY_ON_RESET": (5, 5),
            "DENY_LOWER_VTL_STARTUP": (6, 6),
            "INTERCEPT_VP_STARTUP": (9, 9),
        },
    ),
    ("VsmVpSecureConfig", vsm, "HV_VSM_VP_SECURE_CONFIG_", {"MBEC_ENABLED": (0, 0), "TLB_LOCKED": (1, 1)}),
    ("VsmVpWaitForTlbLock", vsm, "HV_VSM_VP_WAIT_FOR_TLB_LOCK_", {"WAIT": (0, 0)}),
    ("HV_ENABLE_PARTITION_VTL_FLAGS", vsm, "HV_ENABLE_PARTITION_VTL_", {"ENABLE_MBEC": (0, 0)}),
    ("control input of VTL return", vsm, "HV_VTL_RETURN_", {"FAST": (0, 0)}),
    (
        "HV_MAP_GPA_FLAGS",
        vsm,
        "HV_MAP_GPA_",
        {"READABLE": (0, 0), "WRITABLE": (1, 1), "KERNEL_EXECUTABLE": (2, 2), "USER_EXECUTABLE": (3, 3)},
    ),
    (
        "HV_TRANSLATE_GVA_CONTROL_FLAGS",
        hypercall_io,
        "HV_TRANSLATE_GVA_",
        {
            "VALIDATE_READ": (0, 0),
            "VALIDATE_WRITE": (1, 1),
            "VALIDATE_EXECUTE": (2, 2),
            "PRIVILEGE_EXEMPT": (3, 3),
            "SET_PAGE_TABLE_BITS": (4, 4),
            "TLB_FLUSH_INHIBIT": (5, 5),
            "SUPERVISOR_ACCESS": (6, 6),
            "USER_ACCESS": (7, 7),
            "ENFORCE_SMAP": (8, 8),
            "OVERRIDE_SMAP": (9, 9),
            "SHADOW_STACK": (10, 10),
            "INPUT_VTL": (63, 56),
        },
    ),
    (
        "HV_TRANSLATE_GVA_RESULT",
        hypercall_io,
        "HV_TRANSLATE_GVA_",
        {"RESULT_CODE": (31, 0), "CACHE_TYPE": (39, 32), "OVERLAY_PAGE": (40, 40)},
    ),
    (
        "HV_X64_PENDING_EVENT",
        register_values,
        "HV_PENDING_",
        {"EVENT_PENDING": (0, 0), "EVENT_TYPE": (3, 1)},
    ),
    (
        "DeliverabilityNotifications",
        register_values,
        "HV_DELIVERABILITY_",
        {
            "NMI_NOTIFICATION": (0, 0),
            "INTERRUPT_NOTIFICATION": (1, 1),
            "INTERRUPT_PRIORITY": (5, 2),
            "SINTS": (63, 48),
        },
    ),
    (
        "HV_X64_MSR_SINTx",
        synic,
        "HV_SYNIC_SINT_",
        {"VECTOR": (7, 0), "MASKED": (16, 16), "AUTO_EOI": (17, 17), "POLLING": (18, 18)},
    ),
    (
        "HV_X64_MSR_NPIEP_CONFIG",
        msrs,
        "HV_NPIEP_PREVENT_",
        {"SGDT": (0, 0), "SIDT": (1, 1), "SLDT": (2, 2), "STR": (3, 3)},
    ),
    ("HV_X64_MSR_HYPERCALL", msrs, "HV_X64_MSR_HYPERCALL_", {"LOCKED": (1, 1)}),
    ("overlay MSRs", msrs, "HV_MSR_PAGE_", {"ENABLE": (0, 0), "GPA": (63, 12)}),
]


@pytest.mark.tlfs("numbers.layouts")
@pytest.mark.parametrize(("module", "prefix", "fields"), [each[1:] for each in LAYOUTS], ids=[e[0] for e in LAYOUTS])
def test_bits(module: ModuleType, prefix: str, fields: dict[str, Field]) -> None:
    found = {}
    for name in fields:
        value = getattr(module, prefix + name)
        found[name] = value.mask if isinstance(value, Bits) else value
    assert found == {name: (2 << high) - (1 << low) for name, (high, low) in fields.items()}


@pytest.mark.tlfs("numbers.structures")
def test_the_initial_context_field_by_field() -> None:
    segments = ("Cs", "Ds", "Es", "Fs", "Gs", "Ss", "Tr", "Ldtr")
    offsets = {"Rip": 0, "Rsp": 8, "Rflags": 16}
    offsets |= {name: 24 + 16 * number for number, name in enumerate(segments)}
    offsets |= {"Idtr": 152, "Gdtr": 168, "Efer": 184, "Cr0": 192, "Cr3": 200, "Cr4": 208, "MsrCrPat": 216}
    assert dict(HV_INITIAL_VP_CONTEXT.OFFSETS) == offsets
    assert HV_INITIAL_VP_CONTEXT.SIZE == 224


@pytest.mark.tlfs("numbers.structures")
def test_where_the_lists_of_rep_calls_begin_and_what_their_elements_are() -> None:
    """Behind the fixed part of 16 bytes: GPA page numbers, register names, register assignments."""
    for head in (hypercall_io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK, hypercall_io.HV_INPUT_GET_VP_REGISTERS):
        assert head.SIZE == 16
    assert hypercall_io.HV_REGISTER_ASSOC.SIZE == 32
    assert dict(hypercall_io.HV_REGISTER_ASSOC.OFFSETS)["RegisterValue"] == 16
    assert (HV_INPUT_CREATE_PORT.OFFSETS["PortVtl"], HV_INPUT_CREATE_PORT.OFFSETS["MinConnectionVtl"]) == (12, 13)
    assert HV_INPUT_CONNECT_PORT.OFFSETS["ConnectionVtl"] == 12
