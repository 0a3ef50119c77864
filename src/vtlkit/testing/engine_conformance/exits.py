"""Every reason to exit: its fields, RIP at the instruction, its length; nothing happens until it is skipped."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Exit, Intercept
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.testing.engine_conformance.suite import Bench, Need, Running, case
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_TF

MSR_INTERCEPTED = 0x10
MSR_FREE = 0xC0000081
"""IA32_TIME_STAMP_COUNTER; STAR, which is native."""


def _exits_and_skips(running: Running, index: int, kind: type[api.Instruction]) -> api.Instruction:
    """The instruction exits, exits again unless skipped, and is stepped over by its own length."""
    engine = running.engine
    before = (engine.regs.rax, engine.regs.rcx, engine.rflags)
    reason = running.run_at(kind, running.at(index))
    assert reason.length == running.length(index)
    assert (engine.regs.rax, engine.regs.rcx, engine.rflags) == before
    running.run_at(kind, running.at(index))
    assert engine.at_boundary
    engine.skip(reason.length)
    assert engine.regs.rip == running.at(index + 1)
    return reason


@case(Need.INTERCEPTS)
def instructions_that_always_exit(bench: Bench) -> None:
    """CPUID, the hypercall, HLT and instructions of no special kind."""
    program: list[tuple[Op, type[api.Instruction]]] = [
        (ops.Cpuid(), api.Cpuid),
        (ops.Vmmcall(), api.Hypercall),
        (ops.Hlt(), api.Hlt),
        (ops.Intercepted("rdpmc"), api.Other),
        (ops.Cpuid(), api.Cpuid),
        (ops.Intercepted("stgi"), api.Other),
    ]
    running = bench.start(*(op for op, _ in program))
    for index, (op, kind) in enumerate(program):
        reason = _exits_and_skips(running, index, kind)
        if isinstance(reason, api.Other):
            assert isinstance(op, ops.Intercepted)
            assert reason.mnemonic == op.mnemonic
    running.run_at(api.Hlt, running.at(len(program)))


@case()
def results_are_the_hypervisors(bench: Bench) -> None:
    """What the hypervisor leaves in the registers is what the guest goes on with."""
    running = bench.start(ops.Cpuid(), ops.Out(0x80, 4), ops.Hlt())
    running.run(api.Cpuid)
    running.engine.regs.rax = 0x1234_5678
    running.engine.skip(running.length(0))
    assert running.run(api.PortOut).value == 0x1234_5678


@case(Need.INTERCEPTS)
def optional_intercepts(bench: Bench) -> None:
    """PAUSE, RDTSC and control registers exit when asked for, and only then."""
    program: list[tuple[Op, type[api.Instruction]]] = [
        (ops.Pause(), api.Pause),
        (ops.Rdtsc(), api.Rdtsc),
        (ops.MovFromCr(0), api.ControlRegister),
        (ops.MovToCr(0), api.ControlRegister),
        (ops.MovFromCr(4), api.ControlRegister),
        (ops.MovToCr(4), api.ControlRegister),
    ]
    running = bench.start(*(op for op, _ in program))
    running.engine.set_intercepts(Intercept.PAUSE | Intercept.RDTSC | Intercept.CR_READ | Intercept.CR_WRITE)
    for index, (op, kind) in enumerate(program):
        reason = _exits_and_skips(running, index, kind)
        if isinstance(op, ops.MovToCr | ops.MovFromCr):
            assert isinstance(reason, api.ControlRegister)
            assert (reason.register, reason.gpr) == (op.number, 0)
            assert reason.write is isinstance(op, ops.MovToCr)
        if isinstance(reason, api.Rdtsc):
            assert not reason.with_aux
    free = bench.start(ops.Pause(), ops.MovFromCr(0), ops.MovToCr(0), ops.Pause())
    free.run_at(api.Hlt, free.at(4))


@case(Need.INTERCEPTS)
def task_priority_always_exits(bench: Bench) -> None:
    """CR8 belongs to the hypervisor's local APIC."""
    running = bench.start(ops.MovFromCr(8), ops.MovToCr(8))
    for index, write in enumerate((False, True)):
        reason = _exits_and_skips(running, index, api.ControlRegister)
        assert isinstance(reason, api.ControlRegister)
        assert (reason.register, reason.write) == (8, write)


@case()
def msr_exits(bench: Bench) -> None:
    """An MSR exits by read and by write as `intercept_msr` says; a native one that does not exit is the engine's."""
    running = bench.start(
        ops.Set(MSR_INTERCEPTED, "rcx"),
        ops.Rdmsr(),
        ops.Wrmsr(),
        ops.Set(MSR_FREE, "rcx"),
        ops.Set(0x5678),
        ops.Wrmsr(),
        ops.Set(0),
        ops.Rdmsr(),
        ops.Rdmsr(),
    )
    engine = running.engine
    engine.intercept_msr(MSR_FREE, False, False)
    running.run_at(api.Rdmsr, running.at(1))
    engine.skip(running.length(1))
    running.run_at(api.Wrmsr, running.at(2))
    engine.skip(running.length(2))
    running.run_at(api.Hlt, running.at(9))
    assert engine.get_msr(MSR_FREE) == engine.regs.rax == 0x5678
    engine.intercept_msr(MSR_FREE, True, False)
    engine.regs.rip = running.at(0)
    running.run(api.Rdmsr)
    engine.skip(running.length(1))
    running.run(api.Wrmsr)
    engine.skip(running.length(2))
    running.run_at(api.Rdmsr, running.at(7))


@case(Need.MACHINE_CODE)
def every_other_msr_exits(bench: Bench) -> None:
    """Inside and outside the ranges that a permission map covers."""
    guest = bench.guest()
    guest.long_mode()
    for index in (0x0, 0x1B, 0x174F, 0x1FFF, 0x2000, 0x40000000, 0xC0000080, 0xC0001FFF, 0xC0010117, 0xFFFFFFFF):
        for mnemonic, kind in (("rdmsr", api.Rdmsr), ("wrmsr", api.Wrmsr)):
            a = guest.assembler()
            a.mov("ecx", index)
            getattr(a, mnemonic)()
            guest.load(a)
            guest.engine.regs.rip = a.base
            reason = guest.engine.run(10)
            assert type(reason) is kind, (hex(index), reason)
            assert guest.engine.regs.rcx == index


@case(Need.INTERCEPTS)
def intercepted_exceptions(bench: Bench) -> None:
    """An intercepted exception exits undelivered, another one reaches its handler."""
    running = bench.start(ops.Fault(Vector.UD), handlers={Vector.UD: [ops.Hlt()]})
    engine = running.engine
    engine.set_intercepts(Intercept.NONE, 1 << Vector.UD)
    reason = running.run_at(api.ExceptionExit, running.at(0))
    assert (reason.vector, reason.error_code, reason.vectoring) == (Vector.UD, None, None)
    engine.set_intercepts(Intercept.NONE)
    running.run_at(api.Hlt, running.handler_at(Vector.UD))


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def intercepted_breakpoints_and_page_faults(bench: Bench) -> None:
    """INT3 exits with RIP at it; a page fault with its address and error code, and CR2 as the guest left it is not the
    exit's business."""
    guest = bench.guest()
    guest.long_mode()
    guest.engine.set_intercepts(Intercept.NONE, 1 << Vector.BP | 1 << Vector.PF)
    a = guest.assembler()
    a.int3()
    a.mov("rax", 0x123450000)
    a.label("faults")
    a.raw(b"\x48\x89\x18")  # mov [rax], rbx
    guest.load(a)
    reason: Exit = guest.engine.run(10)
    assert isinstance(reason, api.ExceptionExit)
    assert (reason.vector, guest.engine.regs.rip) == (Vector.BP, a.base)
    guest.engine.skip(1)
    reason = guest.engine.run(10)
    assert isinstance(reason, api.ExceptionExit)
    assert guest.engine.regs.rip == a.at("faults")
    assert (reason.vector, reason.error_code, reason.address) == (Vector.PF, 2, 0x123450000)


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def operands_of_control_and_debug_registers(bench: Bench) -> None:
    """The register pair is decoded, REX prefixes included."""
    guest = bench.guest()
    guest.long_mode()
    everything = Intercept.CR_READ | Intercept.CR_WRITE | Intercept.DR_READ | Intercept.DR_WRITE
    guest.engine.set_intercepts(everything)
    wanted = [
        ("cr0", "r11", True, 0, 11),
        ("cr4", "rbx", True, 4, 3),
        ("cr8", "rdi", True, 8, 7),
        ("cr0", "rcx", False, 0, 1),
        ("cr4", "r15", False, 4, 15),
        ("cr8", "r8", False, 8, 8),
        ("dr7", "rsi", True, 16 + 7, 6),
        ("dr0", "r9", True, 16, 9),
        ("dr6", "rax", False, 16 + 6, 0),
        ("dr3", "r14", False, 16 + 3, 14),
    ]
    a = guest.assembler()
    for special, general, write, _, _ in wanted:
        a.mov(*((special, general) if write else (general, special)))
    guest.load(a)
    for special, general, write, register, gpr in wanted:
        reason = guest.engine.run(10)
        assert isinstance(reason, api.ControlRegister), (special, general, reason)
        assert (reason.register, reason.gpr, reason.write) == (register, gpr, write)
        guest.engine.skip(reason.length)


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def descriptor_tables_and_friends(bench: Bench) -> None:
    """Intercepts by name: descriptor table loads and stores, INVLPG, IRET, XSETBV, RDTSCP."""
    guest = bench.guest()
    guest.long_mode()
    guest.engine.set_intercepts(
        Intercept.DESCRIPTOR_TABLE_READ
        | Intercept.DESCRIPTOR_TABLE_WRITE
        | Intercept.INVLPG
        | Intercept.IRET
        | Intercept.RDTSC
    )
    a = guest.assembler()
    a.mov("ebx", 0x60000)
    code = [
        (b"\x0f\x01\x03", "sgdt"),
        (b"\x0f\x01\x0b", "sidt"),
        (b"\x0f\x01\x13", "lgdt"),
        (b"\x0f\x01\x1b", "lidt"),
        (b"\x0f\x00\xc0", "sldt"),
        (b"\x0f\x00\xc8", "str"),
        (b"\x0f\x00\xd0", "lldt"),
        (b"\x0f\x00\xd8", "ltr"),
        (b"\x0f\x01\x3b", "invlpg"),
        (b"\x0f\x01\xd8", "vmrun"),
        (b"\x0f\x01\xdf", "invlpga"),
        (b"\x48\xcf", "iretq"),
    ]
    for data, _ in code:
        a.raw(data)
    a.raw(b"\x0f\x01\xf9")  # rdtscp
    guest.load(a)
    for data, mnemonic in code:
        reason = guest.engine.run(10)
        assert isinstance(reason, api.Other), (mnemonic, reason)
        assert reason.mnemonic in (mnemonic, mnemonic.removesuffix("q"))
        assert reason.length == len(data)
        guest.engine.skip(reason.length)
    last = guest.engine.run(10)
    assert isinstance(last, api.Rdtsc)
    assert (last.with_aux, last.length) == (True, 3)


@case(Need.MACHINE_CODE, Need.INTERCEPTS)
def prefixed_instructions_exit_with_their_length(bench: Bench) -> None:
    """And the same address with other code in it has the new code's length."""
    guest = bench.guest()
    guest.long_mode()
    for code, kind in (
        (b"\x0f\xa2", api.Cpuid),
        (b"\x66\x0f\xa2", api.Cpuid),
        (b"\x48\x66\x0f\xa2", api.Cpuid),
        (b"\xf4", api.Hlt),
        (b"\x48\xf4", api.Hlt),
        (b"\x2e\x0f\x32", api.Rdmsr),
        (b"\x0f\x01\xd9", api.Hypercall),
        (b"\x66\xf3\x90", api.Pause),
    ):
        guest.engine.set_intercepts(Intercept.PAUSE)
        guest.write(0x10000, code + b"\xf4" * 4)
        guest.engine.regs.rip = 0x10000
        reason = guest.engine.run(10)
        assert isinstance(reason, api.Instruction)
        assert type(reason) is kind
        assert reason.length == len(code), (code.hex(), reason.length)


@case(Need.MACHINE_CODE)
def skip_traps_if_single_stepping(bench: Bench) -> None:
    """RFLAGS.TF: every instruction traps after it, one that was skipped too; DR6.BS says why."""
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    for name in ("nop", "cpuid", "nop"):
        getattr(a, name)()
    guest.load(a)
    engine = guest.engine
    rsp = engine.regs.rsp
    for expected in (a.base + 1, a.base + 3, a.base + 4):
        engine.rflags |= RFLAGS_TF
        reason = engine.run(10)
        if isinstance(reason, bench.marker):
            engine.skip(2)
            reason = engine.run(10)
        assert isinstance(reason, api.Hlt)
        assert engine.regs.rip == guest.handler(Vector.DB)
        rip, _, rflags, *_ = guest.frame(5)
        assert rip == expected
        assert rflags & RFLAGS_TF
        assert not engine.rflags & RFLAGS_TF
        dr = engine.get_debugregs()
        assert dr[4] & 1 << 14
        engine.regs.rip, engine.regs.rsp = rip, rsp
