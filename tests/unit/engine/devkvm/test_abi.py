"""Our tables of /dev/kvm's interface against the headers that are installed here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from vtlkit.engine.devkvm import abi, run_page
from vtlkit.layout import Struct

STRUCTS: dict[str, tuple[type[Struct], dict[str, str]]] = {
    "kvm_userspace_memory_region": (abi.UserspaceMemoryRegion, {}),
    "kvm_vcpu_events": (
        abi.VcpuEvents,
        {
            "exception_injected": "exception.injected",
            "exception_nr": "exception.nr",
            "exception_has_error_code": "exception.has_error_code",
            "exception_pending": "exception.pending",
            "exception_error_code": "exception.error_code",
            "interrupt_injected": "interrupt.injected",
            "interrupt_nr": "interrupt.nr",
            "interrupt_soft": "interrupt.soft",
            "interrupt_shadow": "interrupt.shadow",
            "nmi_injected": "nmi.injected",
            "nmi_pending": "nmi.pending",
            "nmi_masked": "nmi.masked",
            "nmi_pad": "nmi.pad",
            "rest": "smi",
        },
    ),
    "kvm_segment": (abi.SegmentRecord, {}),
    "kvm_dtable": (abi.TableRecord, {}),
    "kvm_sregs": (abi.SregsRecord, {}),
    "kvm_debugregs": (abi.DebugRegs, {}),
    "kvm_guest_debug": (abi.GuestDebug, {"debugreg": "arch.debugreg"}),
    "kvm_msr_entry": (abi.MsrEntry, {}),
    "kvm_cpuid_entry2": (abi.CpuidEntry2, {}),
    "kvm_enable_cap": (abi.EnableCap, {}),
    "kvm_device_attr": (abi.DeviceAttr, {}),
    "kvm_msr_filter_range": (abi.MsrFilterRange, {"hole": ""}),
}
NUMBERS: dict[str, int] = {
    "KVM_API_VERSION": abi.API_VERSION,
    **{
        f"KVM_{name}": getattr(abi, name)
        for name in (
            *("GET_API_VERSION", "CREATE_VM", "CHECK_EXTENSION", "GET_VCPU_MMAP_SIZE", "GET_SUPPORTED_CPUID"),
            *("CREATE_VCPU", "SET_USER_MEMORY_REGION", "SET_TSS_ADDR", "RUN", "SET_SREGS", "GET_MSRS", "SET_MSRS"),
            *("SET_SIGNAL_MASK", "SET_CPUID2", "SET_GUEST_DEBUG", "GET_DEBUGREGS", "SET_DEBUGREGS", "ENABLE_CAP"),
            *("GET_TSC_KHZ", "GET_XSAVE", "SET_XSAVE", "GET_XCRS", "SET_XCRS", "X86_SET_MSR_FILTER"),
            *("SET_DEVICE_ATTR", "GET_DEVICE_ATTR"),
            *("EXIT_IO", "EXIT_HYPERCALL", "EXIT_DEBUG", "EXIT_HLT", "EXIT_MMIO", "EXIT_IRQ_WINDOW_OPEN"),
            *("EXIT_SHUTDOWN", "EXIT_FAIL_ENTRY", "EXIT_INTR", "EXIT_SET_TPR", "EXIT_INTERNAL_ERROR"),
            *("EXIT_X86_RDMSR", "EXIT_X86_WRMSR", "MSR_EXIT_REASON_INVAL", "MSR_EXIT_REASON_UNKNOWN"),
            *("MSR_EXIT_REASON_FILTER", "MSR_FILTER_READ", "MSR_FILTER_WRITE", "MSR_FILTER_DEFAULT_DENY"),
            *("CAP_USER_MEMORY", "CAP_SET_TSS_ADDR", "CAP_NR_MEMSLOTS", "CAP_SET_GUEST_DEBUG", "CAP_VCPU_EVENTS"),
            *("CAP_DEBUGREGS", "CAP_XSAVE", "CAP_XCRS", "CAP_TSC_CONTROL", "CAP_GET_TSC_KHZ", "CAP_SYNC_REGS"),
            *("CAP_HYPERV", "CAP_IMMEDIATE_EXIT", "CAP_X86_USER_SPACE_MSR", "CAP_X86_MSR_FILTER"),
            *("GUESTDBG_ENABLE", "GUESTDBG_SINGLESTEP", "GUESTDBG_USE_HW_BP"),
        )
    },
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX": abi.CPUID_FLAG_SIGNIFICANT_INDEX,
    "KVM_SYNC_X86_REGS": abi.SYNC_REGS,
    "KVM_SYNC_X86_SREGS": abi.SYNC_SREGS,
    "KVM_SYNC_X86_EVENTS": abi.SYNC_EVENTS,
    "KVM_VCPUEVENT_VALID_SHADOW": abi.EVENT_VALID_SHADOW,
    "KVM_X86_SHADOW_INT_MOV_SS": abi.SHADOW_MOV_SS,
    "KVM_X86_SHADOW_INT_STI": abi.SHADOW_STI,
    "KVM_INTERNAL_ERROR_EMULATION": abi.INTERNAL_ERROR_EMULATION,
    "KVM_INTERNAL_ERROR_DELIVERY_EV": abi.INTERNAL_ERROR_DELIVERY,
    "sizeof(struct kvm_msr_filter)": abi.MSR_FILTER_SIZE,
    "sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)": abi.OneMsr.SIZE,
    "sizeof(struct kvm_xcrs)": abi.OneXcr.SIZE,
    "sizeof(struct kvm_regs)": ctypes.sizeof(run_page.LiveRegs),
    "sizeof(struct kvm_segment)": ctypes.sizeof(run_page.LiveSegment),
    "sizeof(struct kvm_run)": abi.RUN_SIZE,
    "offsetof(struct kvm_run, request_interrupt_window)": abi.RUN_INTERRUPT_WINDOW,
    "offsetof(struct kvm_run, immediate_exit)": abi.RUN_IMMEDIATE_EXIT,
    "offsetof(struct kvm_run, exit_reason)": abi.RUN_EXIT_REASON,
    "offsetof(struct kvm_run, cr8)": abi.RUN_CR8,
    "offsetof(struct kvm_run, io)": abi.RUN_UNION,
    "offsetof(struct kvm_run, s.regs.regs)": abi.RUN_SYNC,
    "offsetof(struct kvm_run, s.regs.sregs)": abi.RUN_SREGS,
    "offsetof(struct kvm_run, s.regs.events)": abi.RUN_EVENTS,
    "offsetof(struct kvm_run, mmio.is_write)": abi.RUN_UNION + 20,
    "offsetof(struct kvm_run, msr.data)": abi.RUN_UNION + 16,
    "offsetof(struct kvm_run, debug.arch.dr6)": abi.RUN_UNION + 16,
    "offsetof(struct kvm_run, internal.data)": abi.RUN_UNION + 8,
    "offsetof(struct kvm_sregs, cr0)": run_page.LiveSregs.cr0.offset,  # type: ignore[attr-defined]
    "offsetof(struct kvm_sregs, apic_base)": run_page.LiveSregs.apic_base.offset,  # type: ignore[attr-defined]
}
LATER: dict[str, int] = {
    "KVM_CAP_EXIT_ON_EMULATION_FAILURE": abi.CAP_EXIT_ON_EMULATION_FAILURE,
    "KVM_CAP_XSAVE2": abi.CAP_XSAVE2,
    "KVM_CAP_DISABLE_QUIRKS2": abi.CAP_DISABLE_QUIRKS2,
    "KVM_GET_XSAVE2": abi.GET_XSAVE2,
    "KVM_EXIT_MEMORY_FAULT": abi.EXIT_MEMORY_FAULT,
    "KVM_VCPU_TSC_CTRL": abi.VCPU_TSC_CTRL,
    "KVM_VCPU_TSC_OFFSET": abi.VCPU_TSC_OFFSET,
    "KVM_X86_QUIRK_FIX_HYPERCALL_INSN": abi.QUIRK_FIX_HYPERCALL_INSN,
}
"""Macros that older headers do not have."""


def _lines() -> list[str]:
    lines = []
    for struct, (table, names) in STRUCTS.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        for field in table.OFFSETS:
            if name := names.get(field, field):
                lines.append(f'printf("{struct}.{field} %zu\\n", offsetof(struct {struct}, {name}));')
    for number, (name, _) in enumerate(NUMBERS.items()):
        lines.append(f'printf("number{number} %llu\\n", (unsigned long long)({name}));')
    for name in LATER:
        lines.append(f'#ifdef {name}\nprintf("{name} %llu\\n", (unsigned long long)({name}));\n#endif')
    for register in ("rax", "rbx", "rsi", "rsp", "r15", "rip", "rflags"):
        lines.append(f'printf("kvm_regs.{register} %zu\\n", offsetof(struct kvm_regs, {register}));')
    return lines


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the headers say, by name."""
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("comparing with linux/kvm.h needs gcc and the kernel's headers")
    directory = tmp_path_factory.mktemp("abi")
    source = directory / "abi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/kvm.h>\n"
        "int main(void) {\n" + "\n".join(_lines()) + "\nreturn 0; }\n"
    )
    subprocess.run([compiler, "-o", directory / "abi", source], check=True)
    text = subprocess.run([directory / "abi"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


@pytest.mark.parametrize("struct", STRUCTS)
def test_structures(installed: dict[str, int], struct: str) -> None:
    table, names = STRUCTS[struct]
    assert installed[struct] == table.SIZE
    ours = {field: offset for field, offset in table.OFFSETS.items() if names.get(field, field)}
    assert {field: installed[f"{struct}.{field}"] for field in ours} == ours


def test_numbers(installed: dict[str, int]) -> None:
    theirs = {name: installed[f"number{number}"] for number, name in enumerate(NUMBERS)}
    assert theirs == NUMBERS
    assert {name: installed[name] for name in LATER if name in installed} == {
        name: value for name, value in LATER.items() if name in installed
    }


def test_live_registers(installed: dict[str, int]) -> None:
    for register in ("rax", "rbx", "rsi", "rsp", "r15", "rip", "rflags"):
        assert getattr(run_page.LiveRegs, register).offset == installed[f"kvm_regs.{register}"]
