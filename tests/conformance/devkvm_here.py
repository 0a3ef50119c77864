"""/dev/kvm on this machine, for tests that need it: whether it can be used, and where it differs from a processor.

A difference is a conformance case that a KVM does not pass, with the reason. Those of every KVM are in what the kernel
offers to user space; the others are of kernels that do not execute guest code at CPL 0 but emulate it, instruction by
instruction (CONFIG_KVM_PVM with a guest that is not its own), which a guest can tell in many ways.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from vtlkit.engine.api import EngineError
from vtlkit.engine.devkvm import DevKvmFactory

EVERY_KVM: Final = {
    "events.shadow_of_sti_and_hlt": "KVM has moved past HLT when it exits, and the shadow is gone",
    "mmio.exits_of_loads_and_stores": "KVM has moved past a store to a device when it exits",
    "mmio.exits_of_a_read_modify_write": "KVM has moved past a store to a device when it exits",
    "ports.repeated_strings_can_be_interrupted": "KVM has counted the element of OUTS when it exits",
}
SHADOW_PAGING: Final = {
    "memory.hidden_page_tables": "where KVM walks the guest's tables itself, one that it cannot read is a page fault",
}
_NO_FPU: Final = "the emulator knows no x87 or SSE arithmetic"
_CHECKS: Final = "the emulator delivers events without all of a processor's checks and effects"
_SYSCALL: Final = "SYSCALL at CPL 3 goes to LSTAR with CS as it was, whatever EFER.SCE says"
_SYSENTER: Final = "SYSENTER is #UD in long mode, as on AMD processors"
EMULATED_KERNEL_MODE: Final = {
    "fast_calls.syscall_is_invalid_while_disabled": _SYSCALL,
    "fast_calls.a_single_step_over_syscall_follows_the_mask": _SYSCALL,
    "fast_calls.sysenter_enters_the_kernel": _SYSENTER,
    "fast_calls.sysenter_without_a_segment": _SYSENTER,
    "legacy_modes.real_mode_table_limit": _CHECKS,
    "legacy_modes.protected_32_software": _CHECKS,
    "legacy_modes.sixteen_bit_gates": _CHECKS,
    "legacy_modes.task_gates_are_refused": _CHECKS,
    "legacy_modes.virtual_8086": _CHECKS,
    "legacy_modes.virtual_8086_software_interrupts": _CHECKS,
    "legacy_modes.modes_in_turn": "virtual-8086 mode is not emulated",
    "long_mode.error_codes_and_resume_flag": _CHECKS,
    "long_mode.software_interrupts_ask_for_privilege": _CHECKS,
    "long_mode.gates_that_are_wrong": _CHECKS,
    "long_mode.selectors_that_are_wrong": _CHECKS,
    "long_mode.conforming_handlers_keep_the_privilege": _CHECKS,
    "long_mode.stacks_that_are_wrong": _CHECKS,
    "long_mode.double_faults": _CHECKS,
    "long_mode.accessed_bit_of_the_code_segment": _CHECKS,
    "memory.faulting_stores_of_every_kind": _NO_FPU,
    "memory.faults_of_event_delivery": _CHECKS,
    "ports.granted_ports": "the emulator does not look at the I/O permission bitmap",
    "state.fpu_image": _NO_FPU,
    "state.fpu_modes_take_effect": _NO_FPU,
}


@cache
def why_not() -> str | None:
    """The reason to skip; None where it can be used."""
    try:
        DevKvmFactory().close()
    except EngineError as error:
        return str(error)
    return None


@cache
def emulates_kernel_mode() -> bool:
    """Whether the KVM of this machine does not execute guest code at CPL 0."""
    factory = DevKvmFactory()
    try:
        return factory.quirks.emulates_kernel_mode
    finally:
        factory.close()


@cache
def described() -> str:
    """What this machine's KVM is, as the engine finds it out: one line."""
    factory = DevKvmFactory()
    try:
        paging = "page-table based" if factory.capabilities.shadows else "EPT or nested paging"
        emulates = factory.quirks.emulates_kernel_mode
    finally:
        factory.close()
    return f"{paging}, {'emulates' if emulates else 'executes'} kernel mode"


def differences() -> dict[str, str]:
    """Conformance cases that the KVM of this machine need not pass, with the reason."""
    return EVERY_KVM | SHADOW_PAGING | (EMULATED_KERNEL_MODE if emulates_kernel_mode() else {})
