"""Registers in and out: system registers of every mode, MSRs, debug registers, the FPU image, what VTLs share."""

from __future__ import annotations

from vtlkit.engine import api
from vtlkit.engine.api import Engine
from vtlkit.engine.scripted import ops
from vtlkit.testing.assembler import Mem
from vtlkit.testing.engine_conformance.suite import DATA, IO, Bench, Need, case
from vtlkit.testing.guest_builder import Guest
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import PFERR_PK, PFERR_PRESENT, PFERR_USER, Vector
from vtlkit.x86.paging import PKRU_AD, PTE_P, PTE_PKEY_SHIFT, PTE_U, PTE_W
from vtlkit.x86.registers import CR4_PKE, GENERAL_REGISTERS, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_VM


@case()
def general_registers(bench: Bench) -> None:
    """64 bits each, in place; an exit changes none."""
    running = bench.start(ops.Cpuid())
    regs = running.engine.regs
    for number, name in enumerate(GENERAL_REGISTERS):
        setattr(regs, name, 0xFEDCBA9800000000 + number)
    running.run(api.Cpuid)
    assert [getattr(regs, name) for name in GENERAL_REGISTERS] == [0xFEDCBA9800000000 + number for number in range(16)]


@case()
def native_msrs(bench: Bench) -> None:
    """Each keeps its own value."""
    engine = bench.start(ops.Cpuid()).engine
    assert engine.native_msrs >= {msr.MSR_EFER, msr.MSR_FS_BASE, msr.MSR_GS_BASE, msr.MSR_LSTAR, msr.MSR_IA32_CR_PAT}
    values = {}
    for number, index in enumerate(sorted(engine.native_msrs - {msr.MSR_EFER})):
        small = index in (msr.MSR_IA32_SYSENTER_CS, msr.MSR_TSC_AUX, msr.MSR_SYSCALL_MASK)
        values[index] = 0x1000 + number if small else 0x7FFF_1234_0000 + number
        engine.set_msr(index, values[index])
    assert {index: engine.get_msr(index) for index in values} == values
    sregs = engine.get_sregs()
    assert (sregs.fs.base, sregs.gs.base) == (values[msr.MSR_FS_BASE], values[msr.MSR_GS_BASE])


@case()
def debug_registers(bench: Bench) -> None:
    engine = bench.start(ops.Cpuid()).engine
    values = (0x1000, 0x2000, 0x3000, 0x4000, 0xFFFF0FF1, 0x400)
    engine.set_debugregs(values)
    assert engine.get_debugregs() == values


@case()
def system_registers_are_copies(bench: Bench) -> None:
    """What `get_sregs` returned does not change under the caller's feet, nor does changing it change the engine."""
    engine = bench.start(ops.Cpuid()).engine
    before = engine.get_sregs()
    before.cr2 = 0x1234
    before.gs.base = 0x5000
    assert engine.get_sregs().cr2 != 0x1234
    engine.set_sregs(before)
    before.gs.base = 0x6000
    assert (engine.get_sregs().cr2, engine.get_sregs().gs.base) == (0x1234, 0x5000)


@case(Need.MACHINE_CODE)
def system_registers_of_every_mode(bench: Bench) -> None:
    """Written back and read again they are the same, hidden segment parts included; the guest goes on as before."""
    guest = bench.guest()
    for enter, rflags in (
        (guest.real_mode, RFLAGS_FIXED),
        (guest.protected_mode, RFLAGS_FIXED | RFLAGS_IF),
        (guest.virtual_8086, RFLAGS_FIXED | RFLAGS_VM),
        (guest.long_mode, RFLAGS_FIXED),
    ):
        enter(rflags=rflags)
        engine = guest.engine
        sregs, cpl = engine.get_sregs(), engine.cpl
        assert engine.rflags == rflags
        engine.set_sregs(sregs)
        assert (engine.get_sregs(), engine.cpl, engine.rflags) == (sregs, cpl, rflags)
        assert (engine.cr0, engine.cr4) == (sregs.cr0, sregs.cr4)
    for cpl in (0, 3):
        guest.long_mode(cpl)
        assert guest.engine.cpl == cpl
        guest.protected_mode(cpl)
        assert guest.engine.cpl == cpl
    sregs = guest.engine.get_sregs()
    sregs.fs.selector, sregs.fs.base, sregs.fs.limit, sregs.fs.attributes = 0x2B, 0x12345678, 0x9FFFF, 0xCF3
    guest.engine.set_sregs(sregs)
    assert guest.engine.get_sregs().fs == sregs.fs


def _fpu_guest(bench: Bench, name: str = "vcpu0") -> Guest:
    guest = bench.guest(name=name)
    guest.long_mode()
    guest.ram.view[DATA : DATA + 512] = bytes((number * 7) & 0xFF for number in range(512))
    a = guest.assembler()
    a.fld1()
    a.fldpi()
    a.fldz()
    a.fxch("st0", "st1")
    a.fchs()
    a.mov("esi", DATA)
    for number in range(16):
        a.movdqu(f"xmm{number}", Mem("rsi", 16 * number))
    a.ldmxcsr(Mem("rsi", 0x180))
    a.fldcw(Mem("rsi", 0x184))
    a.mov("edi", DATA + 0x400)
    a.fxsave64(Mem("rdi"))
    a.cpuid()
    a.fxsave64(Mem("rdi"))
    a.cpuid()
    guest.load(a)
    guest.put(DATA + 0x180, 4, 0x7F80)
    guest.put(DATA + 0x184, 2, 0x0B7F)
    return guest


def _image(data: bytes) -> tuple[bytes, ...]:
    """What of an FXSAVE image is the same everywhere: not the last instruction and data pointers, nor padding."""
    parts = [data[:2], data[2:4], data[4:5], data[24:28]]
    parts += [data[32 + 16 * number : 42 + 16 * number] for number in range(8)]
    parts += [data[160:416]]
    return tuple(parts)


@case(Need.MACHINE_CODE)
def fpu_image(bench: Bench) -> None:
    """`get_fpu` is what FXSAVE64 stores, and what `set_fpu` loads is what FXSAVE64 stores next."""
    guest = _fpu_guest(bench)
    engine = guest.engine
    assert isinstance(engine.run(1000), bench.marker)
    saved = bytes(guest.ram.view[DATA + 0x400 : DATA + 0x600])
    assert _image(engine.get_fpu()) == _image(saved)
    image = bytearray(saved)
    image[32:42] = b"\x01\x02\x03\x04\x05\x06\x07\x88\x09\x40"
    image[160:176] = bytes(range(100, 116))
    image[400:416] = bytes(range(200, 216))
    image[2:4] = (3 << 11 | 0x41).to_bytes(2, "little")
    image[4] = 0x0F
    image[24:28] = (0x9FC0).to_bytes(4, "little")
    engine.set_fpu(bytes(image))
    assert _image(engine.get_fpu()) == _image(bytes(image))
    engine.skip(2)
    assert isinstance(engine.run(1000), bench.marker)
    assert _image(bytes(guest.ram.view[DATA + 0x400 : DATA + 0x600])) == _image(bytes(image))


@case(Need.MACHINE_CODE)
def fpu_modes_take_effect(bench: Bench) -> None:
    """Rounding set by `set_fpu` is how the guest rounds: x87 and SSE, up and down."""
    guest = bench.guest()
    guest.long_mode()
    a = guest.assembler()
    a.fld1()
    a.fidiv(Mem(None, DATA, size=4))
    a.fstp(Mem(None, DATA + 8, size=8))
    a.cvtsi2sd("xmm0", "eax")
    a.cvtsi2sd("xmm1", "ecx")
    a.divsd("xmm0", "xmm1")
    a.movq(Mem(None, DATA + 16, size=8), "xmm0")
    a.cpuid()
    guest.load(a)
    guest.put(DATA, 4, 3)
    results = []
    engine = guest.engine
    for mode in (1, 2):  # down, up
        image = bytearray(512)
        image[:2] = (0x037F | mode << 10).to_bytes(2, "little")
        image[24:28] = (0x1F80 | mode << 13).to_bytes(4, "little")
        engine.set_fpu(bytes(image))
        engine.regs.rip, engine.regs.rax, engine.regs.rcx = a.base, 1, 3
        assert isinstance(engine.run(100), bench.marker)
        results.append((guest.read(DATA + 8, 8), guest.read(DATA + 16, 8)))
    assert results[0] == (0x3FD5555555555555, 0x3FD5555555555555)
    assert results[1] == (0x3FD5555555555556, 0x3FD5555555555556)


@case()
def bad_fpu_images_are_refused(bench: Bench) -> None:
    engine = bench.start(ops.Cpuid()).engine
    for size in (0, 511, 513):
        try:
            engine.set_fpu(bytes(size))
        except ValueError:
            continue
        raise AssertionError(f"an image of {size} bytes was accepted")


def _mark(engine: Engine, number: int) -> None:
    for offset, name in enumerate(GENERAL_REGISTERS):
        setattr(engine.regs, name, number << 32 | offset)
    engine.regs.rip = 0x1000 * number
    sregs = engine.get_sregs()
    sregs.cr2, sregs.gs.base = 0x5000 * number, 0x6000 * number
    engine.set_sregs(sregs)
    engine.set_debugregs((number, number + 1, number + 2, number + 3, 0xFFFF0FF0 | number, 0x400))
    image = bytearray(engine.get_fpu())
    image[160:176] = bytes([number]) * 16
    engine.set_fpu(bytes(image))
    engine.xcr0 = 1 | number << 1 & 2
    engine.rflags = RFLAGS_FIXED | RFLAGS_IF if number == 1 else RFLAGS_FIXED


@case()
def state_that_vtls_share(bench: Bench) -> None:
    """General registers but RSP, CR2, DR0 to DR3, FPU and XCR0 are taken over; all else stays."""
    source, target = bench.engine("vtl0"), bench.engine("vtl1")
    _mark(source, 1)
    _mark(target, 2)
    target.copy_shared_state(source)
    for offset, name in enumerate(GENERAL_REGISTERS):
        assert getattr(target.regs, name) == (2 if name == "rsp" else 1) << 32 | offset
    sregs = target.get_sregs()
    assert (sregs.cr2, sregs.gs.base, target.regs.rip) == (0x5000, 0xC000, 0x2000)
    assert target.get_debugregs() == (1, 2, 3, 4, 0xFFFF0FF2, 0x400)
    assert target.get_fpu()[160:176] == bytes([1]) * 16
    assert target.xcr0 == source.xcr0
    assert target.rflags == RFLAGS_FIXED


@case(Need.MACHINE_CODE, Need.USER_HYPERCALL)
def protection_keys_are_shared(bench: Bench) -> None:
    """PKRU is part of the XSAVE state that VTLs share; what it forbids from then on faults."""
    source, target = bench.guest(name="vtl0"), bench.guest(name="vtl1")
    for guest in (source, target):
        guest.long_mode(cpl=3)
        sregs = guest.engine.get_sregs()
        sregs.cr4 |= CR4_PKE
        guest.engine.set_sregs(sregs)
        guest.map_page(DATA, DATA | PTE_P | PTE_W | PTE_U | 1 << PTE_PKEY_SHIFT)
        a = guest.assembler()
        if guest is source:
            a.wrpkru()
        else:
            a.mov("ebx", Mem(None, DATA))
            a.vmmcall()
            a.rdpkru()
            a.mov("ebx", Mem(None, DATA))
        a.vmmcall()
        guest.load(a)
        guest.engine.regs.rcx = guest.engine.regs.rdx = 0
    assert isinstance(target.engine.run(100), api.Hypercall)
    target.engine.skip(len(target.engine.hypercall_instruction))
    source.engine.regs.rax = PKRU_AD << 2
    assert isinstance(source.engine.run(100), api.Hypercall)
    target.engine.copy_shared_state(source.engine)
    assert isinstance(target.engine.run(100), api.Hlt)
    assert target.engine.regs.rip == target.handler(Vector.PF)
    assert target.engine.regs.rax == PKRU_AD << 2
    assert target.frame(1)[0] == PFERR_PK | PFERR_USER | PFERR_PRESENT


@case()
def abandoned_accesses(bench: Bench) -> None:
    """An unfinished instruction is forgotten: it stores nothing, exits no more, and registers may be replaced."""
    for first in (ops.In(0x60, 4), ops.Add(IO, 4), ops.Read(IO, 8)):
        running = bench.start(ops.Set(9), first, ops.Write(DATA, 4, 7), ops.Cpuid())
        engine = running.engine
        engine.map_exit(IO, 4096)
        reason = engine.run(1000)
        assert not reason.fault_like
        engine.abandon()
        assert engine.at_boundary
        assert running.read(DATA, 4) == 0
        engine.regs.rip = running.at(0)
        reason = engine.run(1000)
        assert not reason.fault_like
        engine.abandon()
        engine.abandon()
        assert running.read(DATA, 4) == 0


@case()
def an_access_in_a_shadow_is_abandoned(bench: Bench) -> None:
    """An NMI waits for the end of the shadow that covers the access: no reason to go on with what is forgotten."""
    for first in (ops.In(0x60, 4), ops.Read(IO, 8)):
        running = bench.start(ops.Cpuid(), first, ops.Write(DATA, 4, 7), name=f"abandoned {first}")
        engine = running.engine
        engine.map_exit(IO, 4096)
        exit_ = running.run(api.Cpuid)
        engine.skip(exit_.length)
        engine.rflags |= RFLAGS_IF
        engine.interrupt_shadow = True
        engine.request_nmi_window(True)
        running.run(api.PortIn if isinstance(first, ops.In) else api.MmioRead)
        engine.abandon()
        assert engine.at_boundary
        assert running.read(DATA, 4) == 0


@case()
def abandon_takes_the_event_along(bench: Bench) -> None:
    """INIT: what was to be injected is gone, a kick too."""
    running = bench.start(ops.Compute(2))
    running.engine.inject(api.Event(api.EventType.INTERRUPT, 0x41))
    running.engine.kick()
    running.engine.abandon()
    assert running.engine.injected() is None
    running.run_at(api.Hlt, running.at(1))


@case()
def closing_in_every_state(bench: Bench) -> None:
    """Never run; stopped at an exit, in an access, at a fault, by the budget; with an event injected. Twice is fine."""
    bench.engine("never run").close()
    for last in (ops.Cpuid(), ops.In(0x60, 1), ops.Add(IO, 4), ops.Read(IO + 4096, 4), ops.Compute(50)):
        running = bench.start(ops.Set(9), last, name=f"at {last}")
        running.engine.map_exit(IO, 4096)
        running.engine.run(10)
        if running.engine.at_boundary:
            running.engine.inject(api.Event(api.EventType.INTERRUPT, 0x41))
            running.engine.request_interrupt_window(True)
        running.engine.kick()
        running.engine.close()
    bench.factory.close()
    bench.factory.close()
