"""The feature tests of guests/tests on the embedded engine: each says what it checks, and every line must be a PASS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.conformance import devkvm_here
from tests.guests import feature_images
from vtlkit.engine.api import EngineFactory
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.devices.debugexit import exit_status
from vtlkit.vmm.machine import Machine, Outcome, RunResult

MEMORY: Final = 32 << 20
VIRTUAL_TIMEOUT_NS: Final = 60_000_000_000
LINE: Final = re.compile(r"\[VTL(\d+) VP(\d+)\] (.*)")
SUMMARY: Final = re.compile(r"(\d+) checks, (\d+) failed")

# The feature tests, and the items of the checklist that each proves.
GUESTS: Final = [
    pytest.param("apic_ids", marks=pytest.mark.tlfs("hypercalls.vp-index-from-apic-id")),
    pytest.param("apic_msrs", marks=pytest.mark.tlfs("msrs.apic")),
    pytest.param("cluster_ipi", marks=pytest.mark.tlfs("hypercalls.cluster-ipi")),
    pytest.param("code_page_32", marks=pytest.mark.tlfs("vsm.code-page", "vsm.modes")),
    pytest.param("crash", marks=pytest.mark.tlfs("msrs.crash")),
    pytest.param("dma", marks=pytest.mark.tlfs("protection.dma")),
    pytest.param("eoi_assist", marks=pytest.mark.tlfs("msrs.eoi-assist")),
    pytest.param("flush_vtl", marks=pytest.mark.tlfs("hypercalls.flush-vtl")),
    pytest.param("guest_idle", marks=pytest.mark.tlfs("msrs.guest-idle")),
    pytest.param("hypercall_caller", marks=pytest.mark.tlfs("hypercalls.caller")),
    pytest.param("hypercall_fast", marks=pytest.mark.tlfs("hypercalls.xmm")),
    pytest.param("hypercall_input", marks=pytest.mark.tlfs("hypercalls.input-value")),
    pytest.param("hypercall_page", marks=pytest.mark.tlfs("msrs.guest-os-id", "msrs.hypercall")),
    pytest.param("hypercall_parameters", marks=pytest.mark.tlfs("hypercalls.parameters")),
    pytest.param("hypercall_rep", marks=pytest.mark.tlfs("hypercalls.continuation")),
    pytest.param("intercept_cpuid", marks=pytest.mark.tlfs("intercepts.cpuid")),
    pytest.param("intercept_exception", marks=pytest.mark.tlfs("intercepts.exception")),
    pytest.param("intercept_io", marks=pytest.mark.tlfs("intercepts.io-port")),
    pytest.param("intercept_msr", marks=pytest.mark.tlfs("intercepts.msr")),
    pytest.param("intercept_registers", marks=pytest.mark.tlfs("intercepts.registers")),
    pytest.param("nested"),
    pytest.param("npiep", marks=pytest.mark.tlfs("msrs.npiep")),
    pytest.param("overlays", marks=pytest.mark.tlfs("msrs.overlay-contents")),
    pytest.param("pending_event", marks=pytest.mark.tlfs("intercepts.handling")),
    pytest.param("ports", marks=pytest.mark.tlfs("synic.post-message", "synic.signal-event", "synic.ports")),
    pytest.param(
        "protection_access", marks=pytest.mark.tlfs("intercepts.gpa", "intercepts.handling", "protection.combinations")
    ),
    pytest.param("protection_default", marks=pytest.mark.tlfs("protection.order")),
    pytest.param("protection_status", marks=pytest.mark.tlfs("protection.modify", "protection.combinations")),
    pytest.param("reference_time", marks=pytest.mark.tlfs("msrs.frequencies")),
    pytest.param("registers_other", marks=pytest.mark.tlfs("hypercalls.get-set-registers")),
    pytest.param("registers_synthetic", marks=pytest.mark.tlfs("hypercalls.registers-synthetic")),
    pytest.param("reset", marks=pytest.mark.tlfs("msrs.reset")),
    pytest.param("start_vp", marks=pytest.mark.tlfs("hypercalls.start-vp")),
    pytest.param(
        "stimers",
        marks=pytest.mark.tlfs(
            "synic.stimer-one-shot", "synic.stimer-direct", "synic.stimer-auto-enable", "synic.stimer-message"
        ),
    ),
    pytest.param("synic_sints", marks=pytest.mark.tlfs("synic.sints")),
    pytest.param("tlb_flush", marks=pytest.mark.tlfs("hypercalls.flush-space", "hypercalls.flush-list")),
    pytest.param("tlb_lock", marks=pytest.mark.tlfs("tlb.secure-config", "tlb.flusher", "tlb.release")),
    pytest.param("translate", marks=pytest.mark.tlfs("hypercalls.translate")),
    pytest.param("vina", marks=pytest.mark.tlfs("interrupts.vina")),
    pytest.param("vp_assist", marks=pytest.mark.tlfs("vsm.entry-reason", "vsm.return")),
    pytest.param("vp_index", marks=pytest.mark.tlfs("msrs.vp-index")),
    pytest.param("vp_runtime", marks=pytest.mark.tlfs("msrs.vp-runtime")),
    pytest.param("vtl_call", marks=pytest.mark.tlfs("vsm.call", "vsm.return", "vsm.code-page")),
    pytest.param("vtl_enable", marks=pytest.mark.tlfs("vsm.enable-partition", "vsm.enable-vp", "vsm.enable-elsewhere")),
    pytest.param("vtl_every_vp", marks=pytest.mark.tlfs("vsm.call", "vsm.return", "vsm.three")),
    pytest.param(
        "vtl_interrupts", marks=pytest.mark.tlfs("interrupts.apic-per-vtl", "interrupts.higher", "interrupts.lower")
    ),
    pytest.param("vtl_registers", marks=pytest.mark.tlfs("vsm.private-registers", "vsm.shared-registers")),
    pytest.param("vtl_reset", marks=pytest.mark.tlfs("vsm.reset", "protection.zero-on-reset")),
    pytest.param("vtl_status", marks=pytest.mark.tlfs("vsm.status-registers")),
]
GOOD: Final = (Outcome.DEBUG_EXIT, exit_status(0))
ENDINGS: Final = {"crash": (Outcome.INTERNAL_ERROR, 4)}
"""How those end that do not end by the exit port."""


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest) -> Path:
    if missing := feature_images.missing_tools():
        pytest.skip(f"building the feature tests needs {' and '.join(missing)}")
    assert request.config.cache is not None
    return feature_images.build(request.config.cache.mkdir("feature-images"))


def test_every_feature_test_is_listed() -> None:
    assert [parameter.values[0] for parameter in GUESTS] == feature_images.names()


@pytest.mark.parametrize(("cpus", "vendor"), [(1, "svm"), (4, "svm"), (2, "vmx")])
@pytest.mark.parametrize("name", GUESTS)
def test_feature(images: Path, name: str, cpus: int, vendor: str) -> None:
    config = MachineConfig(cpus=cpus, memory=MEMORY, vtls=16, vendor=vendor, nested=name == "nested")
    run(images, name, config)


def test_l2_under_vmx(images: Path) -> None:
    """The timer of L1 is an exit of the preemption timer while L2 runs: the slow path makes it a #VMEXIT."""
    result = run(images, "nested", MachineConfig(memory=MEMORY, nested=True, vendor="vmx"))
    assert result.exits["preemption_timer"] > 0


NO_EXIT: Final = "KVM has no exit for what VTL1 wants to hear of, and says so to it"
NOT_ON_KVM: Final = {
    "hypercall_caller": "the hypercall's instruction is an OUT, which at CPL 3 is #GP and no #UD",
    "intercept_cpuid": NO_EXIT,
    "intercept_exception": NO_EXIT,
    "intercept_io": NO_EXIT,
    "intercept_registers": NO_EXIT,
    "nested": NO_EXIT,
}
NOT_EMULATED: Final = {
    "intercept_msr": "this KVM offers no RDTSCP, and so no TSC_AUX",
    "npiep": "this KVM executes user mode with the host's UMIP",
}
"""Where KVM emulates kernel mode."""


def why_not_on_kvm(name: str) -> str | None:
    """The reason to skip a feature test on this machine's /dev/kvm; None where it passes."""
    if (reason := devkvm_here.why_not() or NOT_ON_KVM.get(name)) is not None:
        return reason
    return NOT_EMULATED.get(name) if devkvm_here.emulates_kernel_mode() else None


@pytest.mark.parametrize("name", feature_images.names())
def test_feature_on_kvm(images: Path, name: str) -> None:
    if (reason := why_not_on_kvm(name)) is not None:
        pytest.skip(reason)
    engines = DevKvmFactory()
    try:
        with ThreadHost() as host:
            run_on(images, name, MachineConfig(cpus=2, memory=MEMORY, vtls=16), host, engines)
    finally:
        engines.close()


def run(images: Path, name: str, config: MachineConfig) -> RunResult:
    """Run a feature test on the embedded engine: every line that it says must be a PASS."""
    engines = UnicornFactory()
    host = Simulator()
    try:
        return run_on(images, name, config, host, engines)
    finally:
        host.stop()
        engines.close()


def run_on(images: Path, name: str, config: MachineConfig, host: RunnableHost, engines: EngineFactory) -> RunResult:
    """Run a feature test: every line that it says must be a PASS."""
    console = bytearray()
    machine = Machine(config, host, engines, console.extend)
    machine.load(images / f"{name}.elf")
    result = machine.run(VIRTUAL_TIMEOUT_NS)
    text = console.decode(errors="replace")
    story = f"{result.message}\n{result.crash}\n{text}"
    assert (result.outcome, result.status) == ENDINGS.get(name, GOOD), story
    lines = [match for line in text.splitlines() if (match := LINE.fullmatch(line))]
    assert len(lines) == len(text.splitlines()), story
    assert "FAIL" not in text, story
    # A guest that has the machine reset says at the end of each of its lives what it has checked.
    summaries = [match for line in lines if (match := SUMMARY.fullmatch(line[3]))]
    assert SUMMARY.fullmatch(lines[-1][3]), story
    passed = sum(line[3].startswith("PASS: ") for line in lines)
    assert passed == sum(int(match[1]) for match in summaries) > 0, story
    return result
