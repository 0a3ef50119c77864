"""Random hypercalls of random VTLs at a partition with random protections, and an oracle that knows nothing but these.

Every page of RAM is filled with words that name it. A hypercall that reads what its caller may not read would have to
put such a word somewhere; one that writes what its caller may not write changes a page: both are seen from outside.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.unit.vmm.vsm.hypercall_inputs import FLAGS, PAGES, hypercall_input
from tests.unit.vmm.vsm.vsm_rig import initial_context
from vtlkit.engine.api import RamBlock
from vtlkit.engine.scripted import ScriptedFactory, ops
from vtlkit.engine.scripted.engine import ScriptedEngine
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.hyperv.layouts import LAYOUTS
from vtlkit.kvm.uapi import HvFeatures, Kvm, KvmRun, MemoryRegion, Vcpu
from vtlkit.vmm.vsm import context
from vtlkit.vmm.vsm.hypercalls import ACCESS_OF_MAP_FLAGS
from vtlkit.vmm.vsm.partition import Partition
from vtlkit.vmm.vsm.vp import Vp

PAGE: Final = 4096
CPUS: Final = 2
VTLS: Final = 3
LENGTH: Final = 3
"""Bytes of the hypercall instruction."""
XMM0: Final = 160
"""Offset in the FXSAVE image."""
TAG: Final = b"\x5e\xc2\xe7\xa1"
"""The upper half of every word; below it stand page and number of the word."""
SWITCHES: Final = (Call.HvCallVtlCall, Call.HvCallVtlReturn)
OVERLAYS: Final = (
    msrs.HV_X64_MSR_HYPERCALL,
    msrs.HV_X64_MSR_REFERENCE_TSC,
    msrs.HV_X64_MSR_VP_ASSIST_PAGE,
    msrs.HV_X64_MSR_SIEFP,
    msrs.HV_X64_MSR_SIMP,
)
READ, WRITE = 1, 2
CODES: Final = tuple(int(code) for code in LAYOUTS if code not in SWITCHES)
SYNIC: Final = ((msrs.HV_X64_MSR_SIMP, 1), (msrs.HV_X64_MSR_SCONTROL, 1), (msrs.HV_X64_MSR_SINT0 + 5, 0x60 | 1 << 18))
"""Messages go to a polled SINT 5; the page lies at 0 until it moves."""
BEFORE_INPUT: Final = (
    HvStatus.INVALID_HYPERCALL_CODE,
    HvStatus.INVALID_HYPERCALL_INPUT,
    HvStatus.INVALID_ALIGNMENT,
)
"""Statuses that a call may end in before anybody has looked at its parameters."""
LEGAL: Final = frozenset(int(status) for status in HvStatus)


def canary(page: int) -> bytes:
    """What a page is filled with at first."""
    return b"".join(struct.pack("<HH", number, page) + TAG for number in range(PAGE // 8))


def pages_named(data: bytes, old: bytes = b"") -> Iterator[int]:
    """The pages whose words are in `data`, at any offset, and were not there in `old`."""
    at = data.find(TAG)
    while at >= 0:
        if at >= 4 and data[at - 4 : at + 4] != old[at - 4 : at + 4]:
            number, page = struct.unpack_from("<HH", data, at - 4)
            if page < PAGES and number < PAGE // 8:
                yield page
        at = data.find(TAG, at + 1)


@dataclass
class Oracle:
    """Who may do what to which page, by the partition's protections alone."""

    flags: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """(VTL that protects, VTL that is restricted) -> map flags by page."""
    ever_readable: list[set[int]] = field(default_factory=lambda: [set() for _ in range(VTLS)])

    def protect(self, setter: int, target: int, page: int, flags: int) -> None:
        self.flags.setdefault((setter, target), [0xF] * PAGES)[page] = flags

    def allows(self, vtl: int, page: int, right: int) -> bool:
        masks = [flags for (_, target), flags in self.flags.items() if target == vtl]
        return all(mask[page] & right for mask in masks)

    def note_readable(self) -> None:
        """What was readable once may lie about in queues and pages."""
        for vtl in range(VTLS):
            self.ever_readable[vtl].update(page for page in range(PAGES) if self.allows(vtl, page, READ))


class DeputyRig:
    """A partition with three VTLs on two processors, driven from outside: no guest code runs."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.host = Simulator()
        self.ram = RamBlock(PAGES * PAGE)
        factory = ScriptedFactory({0: _nothing})
        region = MemoryRegion(0, 0, PAGES * PAGE, self.ram, 0)
        self.partition = Partition(
            Kvm(self.host, factory), [region], cpus=CPUS, vtls=VTLS, hyperv=HvFeatures(), supervisor=self
        )
        self.oracle = Oracle()
        self.answers: Counter[tuple[int, int]] = Counter()
        """Hypercalls by code and status."""
        self._enable()
        for page in range(PAGES):
            self.ram.view[page * PAGE : (page + 1) * PAGE] = canary(page)
        self._protect()

    def _enable(self) -> None:
        partition = self.partition
        state = context.decode(initial_context(0), 0x620)
        assert state is not None
        with partition.lock:
            for level in range(1, VTLS):
                partition.enable_vtl(level)
                partition.vtls[level].config |= 1
        for level in range(VTLS):
            for vp in partition.vps:
                if level:
                    with partition.lock:
                        vp.add_vcpu(partition.create_vcpu(vp.index, level), level)
                state.apply(vp.vcpus[level])
            partition.vtls[level].vm.hv.set_guest_os_id(1)
            for vp in partition.vps:
                for index, value in SYNIC:
                    assert vp.vcpus[level].set_guest_msr(index, value)

    def _protect(self) -> None:
        """Random rights, of a higher VTL never fewer than of a lower one."""
        with self.partition.lock:
            for page in range(PAGES):
                if self.random.random() < 0.5:
                    continue
                for setter in range(1, VTLS):
                    below = self.random.choice(FLAGS)
                    for target in range(setter):
                        flags = below if target == 0 else self.random.choice([f for f in FLAGS if f | below == f])
                        self.oracle.protect(setter, target, page, flags)
                        self.partition.protect(setter, target, page * PAGE, PAGE, ACCESS_OF_MAP_FLAGS[flags])
        self.oracle.note_readable()

    # --- vsm.partition.Supervisor ---

    def ending(self) -> bool:
        return False

    def must_park(self) -> bool:
        return False

    def park(self) -> None:
        raise AssertionError("nothing parks here")

    def task_started(self) -> None: ...

    def task_finished(self) -> None: ...

    def vcpu_finished(self, vcpu: Vcpu) -> None: ...

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        """What a machine would do is not looked at."""

    # --- one step ---

    def run(self, steps: int, progress: Callable[[int], None] = lambda _done: None) -> None:
        """`steps` hypercalls, and half as many MSR writes and switches."""

        def task() -> None:
            for number in range(steps):
                progress(number)
                self.step()

        self.host.spawn(task, "deputy")
        self.host.run()

    def step(self) -> None:
        """A hypercall, checked; before it perhaps a switch, or an overlay that moves."""
        random = self.random
        vp = random.choice(self.partition.vps)
        level = vp.active.load()
        if random.random() < 0.3:
            target = random.randrange(VTLS)
            if target != level:
                vp.switch(level, target)
                level = target
        vcpu = vp.vcpus[level]
        _revive(vcpu)
        if random.random() < 0.2:
            self._checked(level, lambda: self._move_overlay(vcpu))
        control, input_gpa, output_gpa = self._prepare(level, vcpu)
        if control & 0xFFFF not in SWITCHES:
            # Switches are made above; they have no parameters.
            self._checked(level, lambda: self._hypercall(vp, level, control, input_gpa, output_gpa))

    def _checked(self, level: int, act: Callable[[], bytes]) -> None:
        before, messages = bytes(self.ram.view), self._messages()
        seen = set(pages_named(act()))
        seen.update(pages_named(self._messages(), messages))
        after = bytes(self.ram.view)
        if before != after:
            for page in range(PAGES):
                old, new = before[page * PAGE : (page + 1) * PAGE], after[page * PAGE : (page + 1) * PAGE]
                if old != new:
                    assert any(self.oracle.allows(vtl, page, WRITE) for vtl in range(level + 1)), (
                        f"VTL {level} changed page {page}"
                    )
                    seen.update(pages_named(new, old))
        for page in seen:
            assert any(page in self.oracle.ever_readable[vtl] for vtl in range(level + 1)), (
                f"VTL {level} learnt what is in page {page}"
            )

    def _messages(self) -> bytes:
        """All message pages, which VTLs read as soon as they are laid somewhere."""
        return b"".join(bytes(vcpu.hv.synic.message_page.view) for vcpu in self.partition.all_vcpus())

    def _move_overlay(self, vcpu: Vcpu) -> bytes:
        gpa = self.random.randrange(PAGES + 2) * PAGE
        vcpu.set_guest_msr(self.random.choice(OVERLAYS), gpa | self.random.randrange(2))
        return b""

    def _prepare(self, level: int, vcpu: Vcpu) -> tuple[int, int, int]:
        """What the guest puts into RCX, RDX and R8; its input is where it may store it."""
        random = self.random
        code = random.choice(CODES) if random.random() < 0.97 else random.randrange(0x10000)
        layout = LAYOUTS.get(code)
        reps = 0
        if layout is not None and layout.rep:
            reps = random.choice((1, 1, 2, 3, 8, 0, 200))
        elif random.random() < 0.02:
            reps = 1
        fast = random.random() < 0.15
        control = code | fast << 16 | reps << 32
        if layout is not None and layout.variable_header:
            control |= random.choice((0, 0, 1, 2)) << 17
        if random.random() < 0.03:
            control |= 1 << random.randrange(64)
        data = hypercall_input(random, code, level)
        input_gpa, output_gpa = self._gpa(), self._gpa()
        if fast:
            input_gpa, output_gpa = struct.unpack_from("<QQ", data)
            image = vcpu.engine.get_fpu()
            vcpu.engine.set_fpu(image[:XMM0] + data[16:112] + image[XMM0 + 96 :])
        elif input_gpa + len(data) <= PAGES * PAGE:
            page = input_gpa // PAGE
            size = min(len(data), PAGE - input_gpa % PAGE)
            mine = self.oracle.allows(level, page, WRITE) and self.oracle.allows(level, page, READ)
            if mine and vcpu.vm.memory.overlay_at(page * PAGE) is None:
                # The guest's own store.
                self.ram.view[input_gpa : input_gpa + size] = data[:size]
        return control, input_gpa, output_gpa

    def _hypercall(self, vp: Vp, level: int, control: int, input_gpa: int, output_gpa: int) -> bytes:
        vcpu = vp.vcpus[level]
        code, fast = control & 0xFFFF, control >> 16 & 1
        if fast:
            xmm = vcpu.engine.get_fpu()[XMM0 : XMM0 + 96]
            data = struct.pack("<QQ", input_gpa, output_gpa) + xmm
        else:
            data = self._seen(vcpu, input_gpa)
        regs = vcpu.engine.regs
        regs.rcx, regs.rdx, regs.r8, regs.rax = control, input_gpa, output_gpa, 0
        exit_ = vcpu.hv.hypercall(LENGTH)
        if exit_ is not None:
            vcpu.pending_exit = exit_
            vp._handle(level, vcpu, exit_)
            assert vp.active.load() == level or not vcpu.vtl_inactive
            vcpu.complete_exit()
        result = regs.rax
        status = result & 0xFFFF
        assert status in LEGAL, f"call {code:#x} answered {result:#x}"
        if vcpu.events.exception is None and regs.rcx == control:
            self.answers[code, status] += 1
        if status not in BEFORE_INPUT and not self._passes(vcpu, level, code, control, input_gpa, output_gpa):
            raise AssertionError(f"VTL {level} passed call {code:#x} a page that it may not access: status {status:#x}")
        if code == Call.HvCallModifyVtlProtectionMask:
            self._note_protection(level, data, control >> 48 & 0xFFF, result >> 32 & 0xFFF)
        return struct.pack("<QQQ", regs.rax, regs.rdx, regs.r8) + vcpu.engine.get_fpu()[XMM0 : XMM0 + 96]

    def _passes(self, vcpu: Vcpu, level: int, code: int, control: int, input_gpa: int, output_gpa: int) -> bool:
        """Whether the caller may have a memory-based call read and write there, by the oracle."""
        layout = LAYOUTS.get(code)
        if layout is None or control >> 16 & 1:
            return True
        reads = layout.input_size or layout.input_element
        writes = layout.output_size or layout.output_element
        return all(
            not used
            or vcpu.vm.memory.overlay_at(gpa & -PAGE) is not None
            or (gpa < PAGES * PAGE and self.oracle.allows(level, gpa // PAGE, right))
            for used, gpa, right in ((reads, input_gpa, READ), (writes, output_gpa, WRITE))
        )

    def _seen(self, vcpu: Vcpu, gpa: int) -> bytes:
        """What lies at `gpa` up to the end of its page, the VTL's overlays above RAM."""
        if gpa >= PAGES * PAGE and vcpu.vm.memory.overlay_at(gpa & -PAGE) is None:
            return b""
        return vcpu.vm.memory.read(gpa, PAGE - gpa % PAGE)

    def _note_protection(self, level: int, data: bytes, start: int, done: int) -> None:
        """The oracle's own reading of a call of which elements `start` to `done` were carried out."""
        if start >= done or len(data) < 16:
            return
        request = io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK.unpack_from(data)
        named = request.TargetVtl & 0xF if request.TargetVtl & 0x10 else level
        for index in range(start, done):
            (page,) = struct.unpack_from("<Q", data, 16 + 8 * index)
            for target in range(level) if named == level else (named,):
                self.oracle.protect(level, target, page, request.MapFlags)
        self.oracle.note_readable()

    def _gpa(self) -> int:
        random = self.random
        page = random.randrange(PAGES) if random.random() < 0.97 else random.choice((PAGES, 1 << 40, (1 << 52) // PAGE))
        offset = random.choice((0, 0, 0, 0, 8, 16, 0x800, 0xFF8, 4)) if random.random() < 0.5 else 0
        return page * PAGE + offset


def _revive(vcpu: Vcpu) -> None:
    """Undo what an earlier step did to the caller: nothing here is about faults of its own."""
    vcpu.events.exception = None
    vcpu.engine.cancel_injection()
    if vcpu.cpl() or not vcpu.protected_mode() or not vcpu.is_64bit():
        state = context.decode(initial_context(0), 0x620)
        assert state is not None
        state.apply(vcpu)


def _nothing(_engine: ScriptedEngine) -> Generator[Op, int, None]:
    yield ops.Compute()
